"""What is to be said of a run's model before it is loaded: what cannot run is refused, what is not as elsewhere is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

from clear_ray.config.engine import ModelConfig, VllmConfig
from clear_ray.engine.architectures import refuse_unfit, way_note
from clear_ray.engine.context import context_tokens
from clear_ray.engine.plain_files import has_template_file, plain_config, plain_folder
from clear_ray.errors import ConfigError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": ((),),
    "suppress_tokens": ((),),
    "begin_suppress_tokens": ((),),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ((), ""),
    "watermarking_config": (),
}
"""Settings that change greedy answers too, and what they are where they change nothing."""
_OF_SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "top_h": (),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
"""Settings that only change drawn answers."""


def model_notes(config: ModelConfig) -> tuple[str, ...]:
    """Return a line for each thing about the model that a user would not expect; loads no weights.

    Args:
        config: Configuration of the engine.

    Raises:
        ConfigError: The model is not there or cannot be run by this engine, or its chat template does not take what is set.
        EngineError: Its tokenizer cannot be loaded.
    """
    folder = plain_folder(config.model)
    asks_template = config.system_prompt is not None or bool(config.chat_template_kwargs)
    if folder is not None and not asks_template:
        return _notes(config, folder, plain_config(folder), has_template=has_template_file(folder))
    from clear_ray.engine.architectures import read_model_config
    from clear_ray.engine.loading import model_folder
    from clear_ray.engine.rendering import rendering_of

    with silent_transformers():
        folder = model_folder(config.model)
        return _notes(
            config,
            folder,
            read_model_config(folder),
            has_template=rendering_of(config, for_templates=True).has_template,
        )


def _notes(config: ModelConfig, folder: Path, saved: Any, *, has_template: bool) -> tuple[str, ...]:
    is_ours = not isinstance(config, VllmConfig)
    if is_ours:
        refuse_unfit(saved)
    limit_tokens = context_tokens(config, saved)
    notes = []
    if is_ours:
        notes.append(way_note(saved, limit_tokens))
    if not has_template and config.chat_template:
        notes.append("the model has no chat template: prompts are read as the plain text that they are")
    if untaken := untaken_settings(folder, config):
        notes.append(f"not taken from the model's generation_config: {', '.join(untaken)}")
    return tuple(note for note in notes if note)


def untaken_settings(folder: Path, config: ModelConfig) -> list[str]:
    """Return the settings of the model's generation_config.json that the run does not follow, each with its value.

    Its end tokens are heeded. Sampling is the run's own: what it sets to the same value is not listed.

    Args:
        folder: Folder of the saved model.
        config: Configuration of the engine.

    Raises:
        ConfigError: The file is not JSON.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            "the file is not valid JSON", str(file), str(error), "Save the model's folder again."
        ) from error
    draws = bool(saved.get("do_sample", False))
    neutral = _NEUTRAL | (_OF_SAMPLING if draws else {})
    listed = ["do_sample true"] if draws and config.temperature == 0 else []
    for name, harmless in neutral.items():
        value = saved.get(name)
        ours = getattr(config, name, None)
        is_harmless = any(value == same for same in harmless) or value == []
        if value is not None and value != ours and not is_harmless:
            listed.append(f"{name} {json.dumps(value)}")
    return listed


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Have transformers say nothing beside the one line that we make of its error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
