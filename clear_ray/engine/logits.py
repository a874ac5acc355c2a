"""What rows ask of their logits before a token is chosen, each row its own, for all rows of a pass together.

The order is that of transformers' `generate`: biases, the penalty of repetition, then those of presence and frequency, the
least length, and last what a structure allows. All of it in float32.

Shapes: N rows of a pass, M of them, R kept rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clear_ray.engine.batch import ReadToken, RunningGrant
from clear_ray.engine.choice import TokenChoice
from clear_ray.engine.sampling import choose_tokens, sampling_key, uniform


class LogitsShaper:
    """Shapes logits by what each answer asks and by what it holds.

    Penalties of repetition count what stands in the prompt or the answer; those of presence and frequency the answer, the
    tokens of earlier grants among it. What an answer holds is kept in tables on the device, brought up to date with one
    operation a pass, and forgotten when the answer is in the pass no more.

    Args:
        end_token_ids: Tokens that end every answer.
    """

    def __init__(self, end_token_ids: frozenset[int]) -> None:
        self._end_token_ids = end_token_ids
        self._row_of: dict[RunningGrant, int] = {}
        self._told: dict[RunningGrant, int] = {}
        self._is_read_RV = torch.zeros(0, 0, dtype=torch.bool)
        self._count_RV = torch.zeros(0, 0, dtype=torch.int32)

    def shape(self, logits_NV: torch.Tensor, answers_N: Sequence[RunningGrant]) -> torch.Tensor:
        """Return the logits from which each answer's next token is to be chosen; those of plain answers are as they were.

        Args:
            logits_NV: As the model gave them; not changed.
            answers_N: Answers of the rows; each has its choice.
        """
        asking = [row for row, answer in enumerate(answers_N) if _asks(answer)]
        self._forget_all_but(answers_N)
        if not asking:
            return logits_NV
        answers = [answers_N[row] for row in asking]
        index_M = torch.tensor(asking, device=logits_NV.device)
        shaped_MV = logits_NV[index_M].float()
        _add_biases(shaped_MV, answers)
        shaped_MV = self._penalise(shaped_MV, answers)
        self._keep_going(shaped_MV, answers)
        self._keep_to_structures(shaped_MV, answers)
        if len(asking) == len(answers_N):
            return shaped_MV
        kind = logits_NV.dtype if logits_NV.dtype == torch.float64 else torch.float32
        return logits_NV.to(kind).index_copy(0, index_M, shaped_MV.to(kind))

    def _forget_all_but(self, answers: Sequence[RunningGrant]) -> None:
        if self._row_of:
            running = set(answers)
            for answer in [answer for answer in self._row_of if answer not in running]:
                del self._row_of[answer], self._told[answer]

    def _penalise(self, logits_MV: torch.Tensor, answers: Sequence[RunningGrant]) -> torch.Tensor:
        rows = [row for row, answer in enumerate(answers) if choice_in(answer).is_penalising]
        if not rows:
            return logits_MV
        penalised = [answers[row] for row in rows]
        self._bring_up_to_date(penalised, logits_MV)
        index_P = torch.tensor(rows, device=logits_MV.device)
        kept_P = torch.tensor([self._row_of[answer] for answer in penalised], device=logits_MV.device)
        count_PV = self._count_RV[kept_P]
        is_in_PV = self._is_read_RV[kept_P] | (count_PV > 0)
        choices = [choice_in(answer) for answer in penalised]
        repetition_P1 = _column([choice.repetition_penalty for choice in choices], logits_MV)
        part_PV = logits_MV[index_P]
        repeated_PV = torch.where(part_PV < 0, part_PV * repetition_P1, part_PV / repetition_P1)
        part_PV = torch.where(is_in_PV, repeated_PV, part_PV)
        part_PV = part_PV - _column([choice.frequency_penalty for choice in choices], logits_MV) * count_PV
        part_PV = part_PV - _column([choice.presence_penalty for choice in choices], logits_MV) * (count_PV > 0)
        return logits_MV.index_copy(0, index_P, part_PV)

    def _bring_up_to_date(self, answers: Sequence[RunningGrant], like: torch.Tensor) -> None:
        """Count the tokens that came since the last pass."""
        new = [answer for answer in answers if answer not in self._row_of]
        self._make_room(len(self._row_of) + len(new), like)
        free = iter(set(range(len(self._count_RV))) - set(self._row_of.values()) if new else ())
        rows: list[int] = []
        ids: list[int] = []
        for answer in new:
            row = self._row_of[answer] = next(free)
            self._told[answer] = 0
            self._is_read_RV[row], self._count_RV[row] = False, 0
            self._is_read_RV[row, torch.tensor(answer.input_ids, device=like.device)] = True
            rows += [row] * len(answer.grant.prefix_token_ids)
            ids += answer.grant.prefix_token_ids
        for answer in answers:
            since = answer.generated[self._told[answer] :]
            rows += [self._row_of[answer]] * len(since)
            ids += since
            self._told[answer] = len(answer.generated)
        if ids:
            place = (torch.tensor(rows, device=like.device), torch.tensor(ids, device=like.device))
            one = torch.ones(len(ids), dtype=torch.int32, device=like.device)
            self._count_RV.index_put_(place, one, accumulate=True)

    def _make_room(self, rows: int, like: torch.Tensor) -> None:
        kept = len(self._count_RV)
        if rows <= kept and self._count_RV.shape[1] == like.shape[1]:
            return
        size = (max(rows, 2 * kept), like.shape[1])
        is_read_RV = torch.zeros(size, dtype=torch.bool, device=like.device)
        count_RV = torch.zeros(size, dtype=torch.int32, device=like.device)
        if kept:
            is_read_RV[:kept], count_RV[:kept] = self._is_read_RV, self._count_RV
        self._is_read_RV, self._count_RV = is_read_RV, count_RV

    def _keep_going(self, logits_MV: torch.Tensor, answers: Sequence[RunningGrant]) -> None:
        """Forbid the end of answers that are too short."""
        rows: list[int] = []
        ids: list[int] = []
        for row, answer in enumerate(answers):
            choice = choice_in(answer)
            if answer.length < choice.min_tokens:
                ends = self._end_token_ids | choice.stop_token_ids
                rows += [row] * len(ends)
                ids += ends
        if ids:
            logits_MV[torch.tensor(rows), torch.tensor(ids)] = -torch.inf

    def _keep_to_structures(self, logits_MV: torch.Tensor, answers: Sequence[RunningGrant]) -> None:
        """Forbid what no text of the structure goes on with; an end is allowed where the structure is complete."""
        rows = [row for row, answer in enumerate(answers) if answer.matcher is not None]
        if not rows:
            return
        is_allowed_PV = np.zeros((len(rows), logits_MV.shape[1]), dtype=bool)
        for place, row in enumerate(rows):
            matcher = answers[row].matcher
            if matcher is not None:
                ends = [*self._end_token_ids, *choice_in(answers[row]).stop_token_ids]
                is_allowed_PV[place] = matcher.allowed(logits_MV.shape[1])
                is_allowed_PV[place, ends] = matcher.is_complete
        index_P = torch.tensor(rows, device=logits_MV.device)
        is_out_PV = ~torch.from_numpy(is_allowed_PV).to(logits_MV.device)
        logits_MV[index_P] = logits_MV[index_P].masked_fill(is_out_PV, -torch.inf)


def next_tokens(logits_NV: torch.Tensor, answers_N: Sequence[RunningGrant]) -> list[int]:
    """Choose each answer's next token as it asks; the draw depends on the answer and the token's place in it alone.

    Args:
        logits_NV: As `LogitsShaper` returned them.
        answers_N: Answers of the rows; each has its choice.
    """
    choices = [choice_in(answer) for answer in answers_N]
    return choose_tokens(
        logits_NV,
        temperature=[choice.temperature for choice in choices],
        top_p=[choice.top_p for choice in choices],
        top_k=[choice.top_k for choice in choices],
        min_p=[choice.min_p for choice in choices],
        uniform_N=[
            uniform(sampling_key(answer.grant), answer.length) if choice.temperature > 0 else 0.0
            for answer, choice in zip(answers_N, choices, strict=True)
        ],
    )


def read_logprobs(logits_NV: torch.Tensor, answers_N: Sequence[RunningGrant]) -> None:
    """Note what the model thought of each answer's newest token, for those that ask.

    Args:
        logits_NV: As the model gave them: before biases, penalties and temperature.
        answers_N: Answers of the rows; changed.
    """
    asking = [row for row, answer in enumerate(answers_N) if answer.top_logprobs is not None]
    if not asking:
        return
    log_p_MV = logits_NV[torch.tensor(asking, device=logits_NV.device)].float().log_softmax(dim=-1)
    newest_M1 = torch.tensor([[answers_N[row].generated[-1]] for row in asking], device=logits_NV.device)
    own_M = log_p_MV.gather(1, newest_M1)[:, 0].tolist()
    most = max(answers_N[row].top_logprobs or 0 for row in asking)
    top_MK, ids_MK = (part.tolist() for part in log_p_MV.topk(min(most, log_p_MV.shape[1]), dim=-1))
    for place, row in enumerate(asking):
        answer, top = answers_N[row], tuple(zip(ids_MK[place], top_MK[place], strict=True))
        answer.read.append(ReadToken(answer.generated[-1], own_M[place], top[: answer.top_logprobs]))


def choice_in(answer: RunningGrant) -> TokenChoice:
    """Return an answer's choice, which it has once it is in a batch."""
    return answer.choice or _PLAIN


_PLAIN = TokenChoice()


def _asks(answer: RunningGrant) -> bool:
    return answer.matcher is not None or choice_in(answer).is_shaping


def _add_biases(logits_MV: torch.Tensor, answers: Sequence[RunningGrant]) -> None:
    rows, ids, values = [], [], []
    for row, answer in enumerate(answers):
        for token_id, bias in choice_in(answer).logit_bias:
            rows.append(row)
            ids.append(token_id)
            values.append(bias)
    if ids:
        place = (torch.tensor(rows, device=logits_MV.device), torch.tensor(ids, device=logits_MV.device))
        logits_MV.index_put_(place, torch.tensor(values, device=logits_MV.device), accumulate=True)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
