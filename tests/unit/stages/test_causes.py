"""A message keeps its cause: what a template, an engine or a scorer said reaches the row, with a code and a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.engine.rendering import Rendering
from clear_ray.engine.smollm2 import embedded_model_folder
from clear_ray.errors import SchemaError
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA, QUERY_SCHEMA
from clear_ray.rounds.states import QueryStates
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.causes import LOST, code_of, code_of_answer, reason_of
from clear_ray.stages.completions import Abandon, Complete, Verdicts
from clear_ray.stages.generate import SCORER
from clear_ray.storage import open_folder
from tests.unit.simulation import query_row


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (LOST, "batch_expired", LOST),
        (
            "its engine died three times",
            "engine_failed",
            "its engine died three times",
        ),
        (
            "/q.jsonl:17, column prompt: the prompt does not fit the model's context of 2048 tokens (got 5000 tokens). Cut.",
            "context_length_exceeded",
            "the prompt does not fit the model's context of 2048 tokens",
        ),
        (
            "q.csv row 3: the row has 1 cells and the header 2. Quote it.",
            "invalid_request",
            "the row has 1 cells and the header 2. Quote it",
        ),
        (
            "its prompt cannot be read: the chat template refuses the conversation: System role not supported",
            "invalid_request",
            "its prompt cannot be read: the chat template refuses the conversation: System role not supported",
        ),
    ],
)
def test_a_failure_has_a_code_and_a_reason_that_can_be_counted(error: str, code: str, reason: str) -> None:
    assert code_of(error) == code
    assert reason_of(error) == reason


def test_an_answer_fails_of_its_scorer_or_its_engine() -> None:
    assert code_of_answer(f"{SCORER}ValueError: no number") == "scorer_failed"
    assert code_of_answer("a grant must allow at least 1 token") == "engine_failed"
    said = (
        f"{SCORER}ClearRayError: own:score: the scorer raised ValueError (got no number in it). Correct the function."
    )
    assert reason_of(said) == said, "what a scorer said is its reason"
    assert reason_of("") == ""


def test_the_template_says_why_it_refuses() -> None:
    rendering = Rendering(embedded_model_folder())
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role\\n not supported') }}{% endif %}hi"
    rendering._tokenizer.chat_template = template
    with pytest.raises(SchemaError) as caught:
        rendering.token_ids([(("system", "Be brief."), ("user", "a"))])
    assert caught.value.what == "the chat template refuses the conversation: System role not supported"
    assert rendering.token_ids([(("user", "a"),)])


def verdicts(queries: int, *, error_of_index: dict[int, str] | None = None, **states: Any) -> Verdicts:
    """Return how queries ended, all numbers 0 but those that are given: of a state, or of the verdicts themselves."""
    found, zeros = QueryStates(np.ones(queries)), np.zeros(queries, np.int64)
    own = {"spent_tokens_N": zeros, "reservation_price_N": np.zeros(queries), "prompt_tokens_N": zeros}
    for name, values in states.items():
        if name in own:
            own[name] = values
        else:
            setattr(found, name, values)
    found.chosen_round_N = found.last_round_N
    return Verdicts(states=found, error_of_index=error_of_index or {}, **own)


def test_every_end_has_its_code() -> None:
    queries = pa.Table.from_pylist([query_row(index) for index in range(4)], schema=QUERY_SCHEMA)
    abandon = Abandon(
        verdicts(
            4,
            price_N=np.full(4, 0.5),
            reservation_price_N=np.array([0.25, 0.75, 0.75, 0.75]),
            spent_tokens_N=np.array([0, 0, 7, 0]),
            error_of_index={3: "q.jsonl:4, column prompt: the prompt is empty (got ''). Remove the row."},
        )
    )
    found = abandon(queries)
    assert abandon(queries.select(abandon.reads)) == found
    assert found["error_code"].to_pylist() == [
        "abandoned_by_price",
        "batch_expired",
        "batch_expired",
        "invalid_request",
    ]
    assert found["status"].to_pylist() == ["abandoned", "abandoned", "failed", "failed"]
    assert found["ended_at"].null_count == 4
    assert found["reason"][3].as_py().startswith("Failed: q.jsonl:4, column prompt: the prompt is empty")
    assert not found["reason"][3].as_py().endswith("..")


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ("", "Nothing was left when its turn came"),
        ("batch_cancelled", "The batch was cancelled before its turn came."),
        ("batch_expired", "The time of the batch was over before its turn came."),
    ],
)
def test_a_query_that_an_order_left_unanswered_says_which(stopped: str, said: str) -> None:
    queries = pa.Table.from_pylist([query_row(index) for index in range(2)], schema=QUERY_SCHEMA)
    known = verdicts(2, price_N=np.full(2, 0.5), reservation_price_N=np.array([0.25, 0.75]))
    worthless, other = Abandon(replace(known, stopped=stopped))(queries)["reason"].to_pylist()
    assert worthless.startswith("Not worth the price"), "what the price refused it refused all the same"
    assert other.startswith(said)


def test_a_query_that_an_order_left_unread_has_no_price_and_is_not_said_to_be_worthless() -> None:
    queries = pa.Table.from_pylist([query_row(index) for index in range(3)], schema=QUERY_SCHEMA)
    known = verdicts(3, price_N=np.full(3, 0.5), reservation_price_N=np.array([0.25, 0.75, 0.0]))
    stopped = replace(known, stopped="batch_cancelled", is_known_N=np.array([True, True, False]))
    found = Abandon(stopped)(queries)
    assert found["status"].to_pylist() == ["abandoned"] * 3
    assert found["error_code"].to_pylist() == ["abandoned_by_price", "batch_expired", "batch_expired"]
    assert found["price"].to_pylist() == [0.5, 0.5, None]
    assert found["reason"].to_pylist()[1:] == ["The batch was cancelled before its turn came."] * 2


def test_an_answer_keeps_when_it_ended(tmp_path: Path) -> None:
    rest: dict[str, Any] = {"round": 1, "attempt": 1, "granted_tokens": 9, "attempt_tokens": 2, "finish_reason": "stop"}
    rest |= {"text": "a", "token_ids": [1, 2], "correct": None, "seconds": 0.1}
    rows = [query_row(0) | rest | {"error": "", "ended_at": 12.5}, query_row(1) | rest | {"error": "scorer: X: y"}]
    attempts = pa.Table.from_pylist(rows, schema=ATTEMPT_SCHEMA)
    of = verdicts(2, last_round_N=np.ones(2, np.int64), rounds_N=np.ones(2, np.int64))
    complete = Complete(of, VoidAttempts(), AnswerParts(open_folder(str(tmp_path))))
    found = complete(attempts)
    assert complete(attempts.select(complete.reads)) == found
    assert found["ended_at"].to_pylist() == [12.5, None]
    assert found["error_code"].to_pylist() == [None, "scorer_failed"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"price_N": 0.5, "answer_tokens_N": 9}, "that is the most that it may have"),
        ({"price_N": 0.5, "may_go_on_N": False}, "its engine goes on with no such answer"),
        ({"price_N": 0.5}, "more was not worth 500 correct answers per 1,000 tokens"),
        ({"price_N": 0.0}, "nothing was left for more"),
        ({"price_N": 0.5, "stopped": "batch_cancelled"}, "the batch was cancelled before it had more"),
        ({"price_N": 0.5, "stopped": "batch_expired"}, "the time of the batch was over before it had more"),
        ({"price_N": 0.5, "answer_tokens_N": 9, "stopped": "batch_cancelled"}, "that is the most that it may have"),
    ],
)
def test_a_cut_answer_says_why_it_had_no_more(tmp_path: Path, state: dict[str, Any], said: str) -> None:
    rest: dict[str, Any] = {
        "round": 1,
        "attempt": 1,
        "granted_tokens": 5,
        "attempt_tokens": 5,
        "finish_reason": "length",
    }
    row = query_row(0) | rest | {"text": "a", "token_ids": [1] * 5, "correct": None, "seconds": 0.1, "error": ""}
    state = {"answer_tokens_N": 5, "may_go_on_N": True, "granted_tokens_N": 5, "attempt_N": 1} | state
    stopped = state.pop("stopped", "")
    numbers = {name: np.array([value]) for name, value in state.items()}
    of = verdicts(1, last_round_N=np.ones(1, np.int64), rounds_N=np.ones(1, np.int64), **numbers)
    of = replace(of, stopped=stopped, ceiling_N=np.array([9]))
    complete = Complete(of, VoidAttempts(), AnswerParts(open_folder(str(tmp_path))))
    found = complete(pa.Table.from_pylist([row], schema=ATTEMPT_SCHEMA))
    assert found["reason"].to_pylist() == [f"Cut off at its last grant of 5 tokens in all; {said}."]


def test_every_word_that_is_shown_is_told_apart_from_paths(tmp_path: Path) -> None:
    assert reason_of(f"{tmp_path}/a b.jsonl:3: bad JSON at character 2: Expecting value (got '{{'). x") == (
        "bad JSON at character 2: Expecting value"
    )
    assert SimpleNamespace(reason=reason_of("x" * 5_000)).reason == "x" * 300
