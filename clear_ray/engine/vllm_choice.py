"""How tokens are chosen inside vLLM's workers: by the code of `slots`, so that the same grants give the same texts.

To vLLM the tokens of earlier grants are a prompt, and its own sampling would begin anew behind them: penalties would not
count them, a structure would start again, and the draw would be another one. So whatever is more than the likeliest token
is chosen here. A request says what its answer asks, and how much of its prompt the answer is; the token that is chosen is
then the only one left to vLLM. `vllm_processors` brings this to both of vLLM's runners; nothing here needs vLLM.

Shapes: N rows of a pass, M of them, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from clear_ray.config.sampling import Structure
from clear_ray.engine.base import Grant
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.choice import TokenChoice
from clear_ray.engine.closing import Closing
from clear_ray.engine.logits import LogitsShaper, choice_in, next_tokens
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.structured import Structures

TOLD = "clear_ray"
"""Name of what a request, and the engine, tell the workers."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the workers are told of the model when they start.

    Attributes:
        model: Its folder.
        vocabulary: Tokens that it knows.
        end_token_ids: Tokens that end an answer.
    """

    model: str
    vocabulary: int
    end_token_ids: tuple[int, ...]


def told_of(answer: RunningGrant, choice: TokenChoice, closing: Closing | None) -> str | None:
    """Return what a request tells the workers of its answer; None if it asks for the likeliest token and nothing else.

    Args:
        answer: About to go on behind what it holds.
        choice: How its tokens are chosen.
        closing: How it is forced at the end of its grant, if it is.
    """
    grant = answer.grant
    structure = None if grant.sampling is None else grant.sampling.structure
    if structure is not None:
        closing = None  # a text put into a structure would break it
    if choice.temperature == 0 and not choice.is_shaping and structure is None and closing is None:
        return None
    return json.dumps(
        {
            "drawn_as": grant.query_id if grant.drawn_as is None else grant.drawn_as,
            "seed": grant.seed,
            "sample": grant.sample,
            "max_tokens": grant.max_tokens - len(answer.generated),
            "prefix_tokens": answer.length,
            "choice": asdict(choice) | {"stop_token_ids": sorted(choice.stop_token_ids)},
            "structure": structure and [structure.kind, structure.value],
            "closing": closing and [closing.reserve_tokens, closing.token_ids, closing.mark],
        }
    )


@dataclass(eq=False, slots=True)
class RequestRow:
    """One request in a worker.

    Attributes:
        answer: What it holds and asks.
        closing: How it is forced at the end of its grant, if it is.
        taken: Of its generated tokens, how many its structure has taken.
    """

    answer: RunningGrant
    closing: Closing | None = None
    taken: int = 0


class TokenChooser:
    """Chooses tokens for the requests of one worker.

    Args:
        facts: The model's.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._shaper = LogitsShaper(frozenset(facts.end_token_ids))

    def begin(self, told: str, prompt_ids: Sequence[int], generated: list[int]) -> RequestRow:
        """Return a request that enters the batch, for the first time or again.

        Args:
            told: As `told_of` made it.
            prompt_ids: Its prompt, which ends with what the answer holds.
            generated: What vLLM has generated; kept, and looked at in every pass.
        """
        asked: Mapping[str, Any] = json.loads(told)
        prefix_tokens = asked["prefix_tokens"]
        prefix = tuple(prompt_ids[len(prompt_ids) - prefix_tokens :])
        grant = Grant(asked["drawn_as"], "", asked["max_tokens"], asked["seed"], prefix, asked["sample"])
        answer = RunningGrant(grant, list(prompt_ids), _ends_nowhere, generated)
        answer.choice = _choice(asked["choice"])
        if asked["structure"] is not None:
            kind, value = asked["structure"]
            answer.matcher = self._structures.matcher(Structure(kind=kind, value=value), prefix)
        row = RequestRow(answer, self._closing(asked["closing"]))
        if row.closing is not None:
            answer.is_closing = row.closing.has_begun(answer)
        return row

    def force(self, logits_NV: torch.Tensor, rows: Sequence[tuple[int, RequestRow]]) -> None:
        """Leave one token to each of these rows.

        Args:
            logits_NV: Of all rows of the pass; changed.
            rows: Places of rows in it, with what they ask.
        """
        answers = [row.answer for _, row in rows]
        for _, row in rows:
            _take(row)
        index_M = torch.tensor([place for place, _ in rows], device=logits_NV.device)
        chosen = next_tokens(self._shaper.shape(logits_NV[index_M], answers), answers)
        forced = [self._forced(row, token_id) for (_, row), token_id in zip(rows, chosen, strict=True)]
        logits_NV.index_fill_(0, index_M, -torch.inf)
        logits_NV[index_M, torch.tensor(forced, device=logits_NV.device)] = 0.0

    def _forced(self, row: RequestRow, token_id: int) -> int:
        answer, ends = row.answer, self._facts.end_token_ids
        if answer.matcher is not None:  # one that can go no further ends, well or badly: the engine tells which
            is_over = answer.matcher.is_over or bool(answer.matcher.error)
            return min(ends) if is_over and ends else token_id
        if row.closing is None:
            return token_id
        is_end = token_id in ends or token_id in choice_in(answer).stop_token_ids
        return row.closing.next_token(answer, token_id, is_end=is_end)

    def _closing(self, asked: Sequence[Any] | None) -> Closing | None:
        if asked is None:
            return None
        reserve_tokens, token_ids, mark = asked
        return Closing(reserve_tokens, tuple(token_ids), self._rendering.text, mark)

    @cached_property
    def _rendering(self) -> Rendering:
        return Rendering(self._facts.model, chat_template=False)

    @cached_property
    def _structures(self) -> Structures:
        ends = frozenset(self._facts.end_token_ids)
        return Structures(self._rendering, vocabulary=self._facts.vocabulary, end_token_ids=ends)


def _take(row: RequestRow) -> None:
    """Bring a row's structure up to what was generated."""
    matcher, generated = row.answer.matcher, row.answer.generated
    if matcher is not None and row.taken < len(generated):
        matcher.take(generated[row.taken :])
        row.taken = len(generated)


def _choice(asked: Mapping[str, Any]) -> TokenChoice:
    biases = tuple((token_id, bias) for token_id, bias in asked["logit_bias"])
    return TokenChoice(**{**asked, "stop_token_ids": frozenset(asked["stop_token_ids"]), "logit_bias": biases})


def _ends_nowhere(ended: object) -> None:
    """Stand for what waits for an answer, which is not in this process."""
