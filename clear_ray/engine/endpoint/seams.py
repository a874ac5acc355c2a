"""What an endpoint counts or begins anew in each call: where an answer that is gone on with may differ, or cannot be had."""

from __future__ import annotations

from collections import Counter

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling
from clear_ray.ingest import NormalRow
from clear_ray.ingest.sampling_fields import STRUCTURE_FIELDS

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
        self._structured = 0
        self._is_structured = any(config.extra_body.get(name) for name in STRUCTURE_FIELDS)

    def see(self, index: int, query: NormalRow) -> None:
        """Look at what a row asks for."""
        is_text = self._config.api == "completions" or query.prompt_form is not None
        if self._config.continuation == "none" and not is_text:
            return
        sampling = Sampling.load(query.sampling)
        if self._is_structured or (sampling is not None and sampling.structure is not None):
            self._structured += 1
            return  # one call, in which nothing is counted anew
        asked = [] if sampling is None else [name for name in _COUNTED_ANEW if getattr(sampling, name)]
        self._rows += bool(asked or self._everywhere)
        self._fields.update({*asked, *self._everywhere})

    def close(self, rows: int) -> tuple[str, ...]:
        """Return a line about such rows, and one about those that get one grant, if there are any."""
        said = []
        if self._rows:
            fields = ", ".join(sorted(self._fields))
            said.append(
                f"{self._rows} of {rows} rows set {fields}, which an endpoint counts anew in each call: where a cut answer "
                "is gone on with, it does not see what came before. `continuation: none` gives an answer one call"
            )
        if self._structured:
            said.append(
                f"{self._structured} of {rows} rows keep to a structure, which an endpoint begins anew in each call: each "
                "gets one grant, and is over where that cuts it"
            )
        return tuple(said)
