"""What a report says of attempts, and what is kept of each answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.batch.asked_again import attempts_report
from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.report.text import asked_again
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.rounds import Rounds
from clear_ray.run_folder.grants import read_grants, write_grants
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.answers import KeepAnswers, LastGrants
from clear_ray.storage import open_folder
from tests.unit.rounds.test_attempts import outcome, two_outcomes


def played(scores: list[float]) -> Rounds:
    """One query whose attempts get these scores, each in a round of its own."""
    offers, rule = AttemptOffers(two_outcomes(0.3, 0.2)), AttemptRule("solved", np.full(1, 4, np.int64))
    rounds = Rounds(offers, AllocationConfig(objective="solved", attempts=4), rule=rule)
    for number, score in enumerate(scores, start=1):
        granted = rounds.next(100)
        assert granted is not None
        tokens = int(granted.clearing.tokens_M[0])
        rounds.take(number, [outcome(0, granted=tokens, spent=2, answer=2, stopped=True, score=score)])
    return rounds


def test_a_report_says_which_attempt_solved_and_what_a_solved_query_took() -> None:
    found = attempts_report([two_outcomes(0.3, 0.2)], played([0.0, 0.0, 1.0]).states)
    assert found is not None
    assert (found.solved, found.attempts, found.solved_by_attempt) == (1, 3, (0, 0, 1, 0))
    assert found.tokens_per_solved == 6.0
    assert (found.one_more_solves, found.one_more_tokens) == (0.0, 0.0), "nothing is left to solve"


def test_a_report_says_what_one_more_attempt_would_have_bought() -> None:
    found = attempts_report([two_outcomes(0.3, 0.2)], played([0.0]).states)
    assert found is not None
    assert found.tokens_per_solved is None
    assert 0.0 < found.one_more_solves < 0.3, "less than was believed before its failure"
    assert found.one_more_tokens > 0.0


def test_a_run_that_compares_answers_to_learn_from_them_says_how_many_agree() -> None:
    batch = two_outcomes(0.3, 0.2)
    rounds = Rounds(AttemptOffers(batch), AllocationConfig(max_rounds=9), rule=Agreement().rule(np.ones(1, bool)))
    for number in (1, 2):
        granted = rounds.next(100)
        assert granted is not None
        tokens = int(granted.clearing.tokens_M[0])
        attempt = outcome(0, granted=tokens, spent=2, answer=2, stopped=True, score=np.nan)
        rounds.take(number, [replace(attempt, vote_M=np.array([7]))])
    found = attempts_report([batch], rounds.states, objective="correct")
    assert found is not None
    assert (found.objective, found.most, found.attempts, found.agreed) == ("correct", 2, 2, 1)
    assert (found.one_more_solves, found.one_more_tokens) == (0.0, 0.0)
    assert asked_again(found, "tokens") == [("compared", "2 answers; of 1 queries several agree on what was kept")]
    counted = attempts_report([batch], rounds.states)
    assert counted is not None
    assert [label for label, _ in asked_again(counted, "tokens")] == ["votes", "one more"]


def test_a_run_that_asks_once_has_no_report_of_attempts() -> None:
    rounds = Rounds(AttemptOffers(two_outcomes(0.3, 0.2)), AllocationConfig())
    assert attempts_report([two_outcomes(0.3, 0.2)], rounds.states) is None


def test_every_attempt_is_kept_as_its_last_grant_and_the_chosen_one_is_marked(tmp_path: object) -> None:
    rounds = played([0.0, 1.0])
    row = dict.fromkeys(ATTEMPT_SCHEMA.names) | {"index": 0, "query_id": "q"}
    row |= {"weight": 1.0, "cost": 1.0, "max_tokens": 9, "granted_tokens": 4, "attempt_tokens": 2, "seconds": 0.0}
    row |= {"finish_reason": "stop", "token_ids": [1, 2], "answer_tokens": 2, "error": ""}
    rows = [
        row | {"round": 1, "attempt": 1, "sample": 5, "text": "wrong", "correct": 0.0},
        row | {"round": 2, "attempt": 2, "sample": 6, "text": "right", "correct": 1.0},
        row | {"round": 2, "attempt": 3, "sample": 6, "text": "void", "correct": 1.0},
        row | {"round": 1, "attempt": 4, "sample": 6, "text": "before its last grant", "correct": 0.0},
    ]
    keep = KeepAnswers(
        LastGrants.of(rounds.states),
        first_sample=5,
        price_R=np.array([0.0, 0.1, 0.2]),
        void=VoidAttempts([(0, 3)]),
        parts=AnswerParts(open_folder(str(tmp_path))),
    )
    found = keep(pa.Table.from_pylist(rows, schema=ATTEMPT_SCHEMA)).to_pylist()
    assert [(row["text"], row["is_chosen"], row["price"], row["tokens"]) for row in found] == [
        ("wrong", False, 0.1, 2),
        ("right", True, 0.2, 2),
    ]


def test_grants_that_begin_an_attempt_are_read_again_as_such(tmp_path: object) -> None:
    rounds = played([0.0])
    granted = rounds.next(98)
    assert granted is not None
    folder = open_folder(str(tmp_path))
    write_grants(folder, granted)
    kept = read_grants(folder, granted.number)
    assert kept is not None
    assert kept.clearing.is_fresh_M is not None
    assert kept.clearing.is_fresh_M.tolist() == [True]
    assert kept.clearing.later_utility == granted.clearing.later_utility


def test_grants_of_a_menu_are_read_again_with_their_model_and_what_they_reserve(tmp_path: object) -> None:
    granted = played([0.0]).next(98)
    assert granted is not None
    chosen = replace(granted.clearing, option_M=np.array([1]), reserved_parts_M=np.array([7_250]))
    folder = open_folder(str(tmp_path))
    write_grants(folder, replace(granted, clearing=chosen))
    kept = read_grants(folder, granted.number)
    assert kept is not None
    assert kept.clearing.option_M is not None
    assert kept.clearing.reserved_parts_M is not None
    assert (kept.clearing.option_M.tolist(), kept.clearing.reserved_parts_M.tolist()) == ([1], [7_250])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"allocation": {"attempts": 3}}, "several attempts need an objective"),
        ({"allocation": {"objective": "solved"}}, "needs scoring.scorer"),
        (
            {"allocation": {"objective": "solved"}, "scoring": {"scorer": "number"}},
            "temperature 0 gives the same answer",
        ),
        ({"allocation": {"objective": "solved", "policy": "uniform"}}, "uniform asks every query once"),
        ({"allocation": {"objective": "solved", "sketched": True}}, "priced from sketches asks every query once"),
    ],
)
def test_what_cannot_be_asked_again_is_refused_by_name(change: dict[str, object], said: str) -> None:
    settings = {"run_dir": "r", "budget": 10, "input": {"path": "q.jsonl"}}
    with pytest.raises(ConfigError, match=said):
        RunConfig.parse(settings | change)


def test_one_attempt_may_be_greedy() -> None:
    settings = {"run_dir": "r", "budget": 10, "input": {"path": "q.jsonl"}, "scoring": {"scorer": "number"}}
    config = RunConfig.parse(settings | {"allocation": {"objective": "solved", "attempts": 1}})
    assert config.allocation.most_rounds == AllocationConfig().most_rounds
