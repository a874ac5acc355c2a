"""What an endpoint counts anew in each call: an answer that is gone on with may differ there from one in one piece."""

from __future__ import annotations

from collections import Counter

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling
from clear_ray.ingest import NormalRow

_COUNTED_ANEW = ("stop", "stop_token_ids", "min_tokens", "presence_penalty", "frequency_penalty")


class SeamWatch:
    """Counts the rows of an input that ask for such a thing (`ingest.Watch`), where an endpoint may go on with answers.

    Args:
        config: Configuration of the endpoint.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        self._rows, self._fields = 0, Counter[str]()
        self._everywhere = sorted(name for name in _COUNTED_ANEW if config.extra_body.get(name))

    def see(self, index: int, query: NormalRow) -> None:
        """Look at what a row asks for."""
        is_text = self._config.api == "completions" or query.prompt_form is not None
        if self._config.continuation == "none" and not is_text:
            return
        sampling = Sampling.load(query.sampling)
        asked = [] if sampling is None else [name for name in _COUNTED_ANEW if getattr(sampling, name)]
        self._rows += bool(asked or self._everywhere)
        self._fields.update({*asked, *self._everywhere})

    def close(self, rows: int) -> tuple[str, ...]:
        """Return a line about such rows, if there are any."""
        if not self._rows:
            return ()
        fields = ", ".join(sorted(self._fields))
        return (
            f"{self._rows} of {rows} rows set {fields}, which an endpoint counts anew in each call: where a cut answer is "
            "gone on with, it does not see what came before. `continuation: none` gives an answer one call",
        )
