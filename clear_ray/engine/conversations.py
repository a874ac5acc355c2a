"""Whether a model's chat template takes the conversations of a batch: told from its tokenizer, before weights are loaded."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from clear_ray.config.engine import EngineConfig, OpenAIConfig, ReplayConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Prompt, read_prompt
from clear_ray.engine.rendering import Rendering, rendering_of
from clear_ray.errors import SchemaError
from clear_ray.ingest import NormalRow

_MOST_RENDERED = 20_000
_MOST_REASONS = 3


class ConversationWatch:
    """Renders the conversations of an input as they are taken in (`ingest.Watch`); of very many only the first ones.

    Args:
        config: Configuration of the engine.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._tried = 0
        self._refused = Counter[str]()
        self._first_of: dict[str, str] = {}

    @cached_property
    def _rendering(self) -> Rendering | None:
        # An endpoint's template is not here.
        return (
            None
            if isinstance(self._config, ReplayConfig | OpenAIConfig)
            else rendering_of(self._config, for_templates=True)
        )

    def see(self, index: int, query: NormalRow) -> None:
        """Render a conversation.

        Raises:
            SchemaError: The model has no chat template.
        """
        if not query.is_conversation or self._tried >= _MOST_RENDERED or self._rendering is None:
            return
        if not self._rendering.has_template:
            raise SchemaError(
                "the model has no chat template, so it cannot read a conversation",
                f"query {query.query_id}",
                remedy="Give the prompts as plain text, or use an instruction-tuned model.",
            )
        self._tried += 1
        prompt = read_prompt(query.prompt, is_conversation=True, sampling=Sampling.load(query.sampling))
        if reason := _refusal(self._rendering, prompt):
            self._refused[reason] += 1
            self._first_of.setdefault(reason, query.query_id)

    def close(self, rows: int) -> tuple[str, ...]:
        """Return a line for each reason for which the chat template refuses prompts; those rows will fail, the others run.

        Raises:
            SchemaError: It refuses every prompt.
        """
        if rows and self._refused.total() == self._tried == rows:
            reason, _ = self._refused.most_common(1)[0]
            what = f"every one of {self._tried} prompts: {reason}"
            raise SchemaError(what, "input", remedy="Give roles that the model knows.")
        return tuple(
            f"{count} of {self._tried} conversations will fail: {reason} (first: query {self._first_of[reason]})"
            for reason, count in self._refused.most_common(_MOST_REASONS)
        )


def _refusal(rendering: Rendering, prompt: Prompt) -> str:
    try:
        rendering.token_ids([prompt])
    except SchemaError as error:
        return error.what
    return ""
