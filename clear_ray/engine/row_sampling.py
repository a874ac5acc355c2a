"""What an engine makes of a row's own sampling, told without loading weights: refused, or said to have no effect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from clear_ray.config.engine import EngineConfig, ModelConfig, OpenAIConfig, ReplayConfig, VllmConfig
from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError


def sampling_check(config: EngineConfig, *, attempts: int = 1) -> Callable[[Sampling], Sequence[str]]:
    """Return a function that says what of a row's sampling has no effect with this engine.

    It raises ConfigError if the library that keeps structures is not installed, and SchemaError for what cannot be done.

    Args:
        config: The engine.
        attempts: Most answers to one query.
    """
    if isinstance(config, ReplayConfig):
        return _all_of_it
    # An endpoint refuses by itself what it does not know.
    check = _nothing if isinstance(config, OpenAIConfig) else _ModelCheck(config)
    return check if attempts == 1 else partial(_drawn_anew, check)


def reads_names(config: EngineConfig) -> bool:
    """Whether the model is told what the speakers of a conversation are called.

    Raises:
        ConfigError: There is no such model.
        EngineError: Its tokenizer cannot be loaded.
    """
    if isinstance(config, ReplayConfig | OpenAIConfig):
        return isinstance(config, OpenAIConfig)
    from clear_ray.engine.rendering import rendering_of

    rendering = rendering_of(config)
    return rendering.has_template and rendering.reads_names()


def _nothing(sampling: Sampling) -> Sequence[str]:
    return ()


def _drawn_anew(check: Callable[[Sampling], Sequence[str]], sampling: Sampling) -> Sequence[str]:
    if sampling.temperature == 0:
        what, remedy = "greedy sampling gives the same answer at every attempt", "Set it above 0, or leave it out."
        raise SchemaError(what, "temperature", "0", remedy)
    return check(sampling)


_BREAKING = ("answer_reserve_tokens", "thinking_tokens")
"""Settings by which text is put into an answer."""
_THINKING = ("enable_thinking", "thinking")
_NEUTRAL = dict[str, float](top_p=1, top_k=0, min_p=0, repetition_penalty=1, presence_penalty=0, frequency_penalty=0)
"""What asks for nothing, whatever an engine draws by."""


def _all_of_it(sampling: Sampling) -> list[str]:
    """Return everything: a recording is played as it was made."""
    names = {"structure": "response_format", "template": "chat_template_kwargs"}
    values = sampling.model_dump(exclude_defaults=True)
    asked = sorted(names.get(name, name) for name, value in values.items() if _NEUTRAL.get(name) != value)
    return [f"{name} (recordings are played as they are)" for name in asked]


class _ModelCheck:
    """The check of an engine with a model; reads its tokenizer at the first row that needs it."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.check = lru_cache(maxsize=1_024)(self._check)  # rows of a batch ask for the same, mostly

    def __call__(self, sampling: Sampling) -> Sequence[str]:
        # The seed is each row's own, and no more is to be said of it.
        return self.check(sampling.model_copy(update={"seed": None}))

    def _check(self, sampling: Sampling) -> Sequence[str]:
        unheeded: tuple[str, ...] = ()
        if sampling.structure is not None:
            self._check_structure(sampling)
            breaking = (name for name in _BREAKING if getattr(self._config, name, None) is not None)
            unheeded = tuple(f"engine.{name} (it would break a structure)" for name in breaking)
        named = [*sampling.stop_token_ids, *(token_id for token_id, _ in sampling.logit_bias)]
        if named and max(named) >= (vocabulary := self._vocabulary()):
            where = "stop_token_ids" if max(named) in sampling.stop_token_ids else "logit_bias"
            what, remedy = "a token id is none of this model's", "Give ids of this model's tokenizer."
            raise SchemaError(what, where, f"{max(named)} of a vocabulary of {vocabulary}", remedy)
        if sampling.template is None:
            return unheeded
        from clear_ray.engine.rendering import rendering_of

        settings = json.loads(sampling.template)
        rendering = rendering_of(self._config)
        unknown = rendering.unknown_settings(settings)
        if settings.get("reasoning_effort") == "none" and len(rendering.unknown_settings(_THINKING)) == len(_THINKING):
            unknown = [name for name in unknown if name != "reasoning_effort"]  # of a model that does not think
        return *unheeded, *(f"chat_template_kwargs.{name} (the model's template knows none)" for name in unknown)

    def _check_structure(self, sampling: Sampling) -> None:
        from clear_ray.engine.structured import check_structure, is_installed

        if sampling.structure is not None and (is_installed() or not isinstance(self._config, VllmConfig)):
            check_structure(sampling.structure)

    def _vocabulary(self) -> int:
        from clear_ray.engine.architectures import read_model_config
        from clear_ray.engine.loading import model_folder

        return int(read_model_config(model_folder(self._config.model)).get_text_config().vocab_size)
