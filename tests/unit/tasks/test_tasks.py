"""Sources give the same queries everywhere; scorers accept what is right, and survive whatever a model writes."""

from __future__ import annotations

import functools
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clear_ray.errors import ClearRayError, ConfigError
from clear_ray.tasks import (
    Demonstration,
    ReasoningGymSource,
    extract_answer,
    generate_queries,
    get_ready,
    has_complete_answer,
    load_scorer,
)
from clear_ray.tasks.referee import Referee, shared_referee
from clear_ray.tasks.referee_process import EVALUATING, _is_harmless

EASY_SUM = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@functools.cache
def gym_metadata(task: str) -> tuple[str | None, str]:
    (row,) = generate_queries([ReasoningGymSource(task=task, count=1, seed=3)])
    return row["gold"], row["metadata"]


# --- the final answer of a text ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7. 7 + 5 = 12. Answer: 12", "12"),
        ("Answer: 3\nNo, wait.\n**Answer:** 12.", "12"),
        ("The final answer is: 12.", "12"),
        ("the ANSWER IS Dan", "Dan"),
        ("Answer:\n\n  word, other\nmore", "word, other"),
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"Answer: \boxed{7}", "7"),
        (r"\boxed{7} is wrong. Answer: 8", "8"),
        (r"\boxed{7 and never closed", "7 and never closed"),
        ("Answer: **`12`**.", "12"),
        ("Answer: $1,234$", "1,234"),
        ("Dan", "Dan"),
        ("I think\nDan Brown.\n\n", "Dan Brown"),
        ("So there are 3 tigers and 12 legs in total.", "12"),
        ("Amelia is a hero, and Bo is a villain.", "Amelia is a hero, and Bo is a villain"),
        ("answers: none. unanswered = 3 times", "3"),
        ("", ""),
        ("Answer:", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@given(st.text(), st.integers(-(10**9), 10**9))
def test_the_last_marked_answer_is_found_after_any_text(before: str, number: int) -> None:
    assert extract_answer(f"{before}\nAnswer: {number}") == str(number)
    assert has_complete_answer(f"{before}\nAnswer: {number}\n")


@given(st.text(alphabet=st.sampled_from("answer is:=\\boxed{}$*`\"'.,0123456789 \n\t"), max_size=400))
def test_extraction_takes_any_text(text: str) -> None:
    answer = extract_answer(text)
    assert answer == answer.strip()
    assert isinstance(has_complete_answer(text), bool)


@pytest.mark.parametrize("unit", ["answer ", "\\boxed{", "Answer: ", "1,", "* ", "$", "-1/1", " " * 50])
def test_extraction_is_not_quadratic(unit: str) -> None:
    # A quadratic scan of half a million characters would run into this file's timeout.
    extract_answer(unit * (500_000 // len(unit)))


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("Answer: 12\n", True),
        ("Answer: 12\nQuestion: what", True),
        (r"\boxed{12}", True),
        ("Answer: 12", False),
        ("Answer:\n", False),
        (r"\boxed{12", False),
        ("Answer: 12\nAnswer: 1", False),
        ("twelve\n", False),
    ],
)
def test_only_an_ended_line_or_a_closed_box_is_a_complete_answer(text: str, complete: bool) -> None:
    assert has_complete_answer(text) is complete


# --- exact ---


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("Answer: 12.0", "12", 1.0),
        ("Answer: 1,234", "1234", 1.0),
        ("Answer: -0", "0", 1.0),
        ("Answer: +07", "7", 1.0),
        ("Answer:  DAN   brown", "Dan Brown", 1.0),
        ("Answer: 1,2", "12", 0.0),
        ("Answer: 12", "-12", 0.0),
        ("Answer: 120", "12", 0.0),
        ("", "12", 0.0),
    ],
)
def test_exact(text: str, gold: str, score: float) -> None:
    assert load_scorer("exact")(text, gold, None) == score


@pytest.mark.parametrize("name", ["exact", "math_verify"])
def test_without_gold_there_is_no_score(name: str) -> None:
    assert load_scorer(name)("Answer: 12", None, "{}") is None


def test_without_metadata_reasoning_gym_gives_no_score() -> None:
    assert load_scorer("reasoning_gym")("Answer: 12", "12", None) is None


# --- math-verify ---


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        (r"Answer: \frac{1}{2}", "0.5", 1.0),
        ("Answer: 1/2", r"\frac12", 1.0),
        (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", 1.0),
        ("Answer: 12", "12", 1.0),
        ("Answer: 12", "13", 0.0),
        ("Answer: 0.33", r"\frac13", 0.0),
        ("nothing here", "12", 0.0),
        (r"Answer: \frac{1}{0}", "12", 0.0),
    ],
)
def test_math_verify(text: str, gold: str, score: float) -> None:
    assert load_scorer("math_verify")(text, gold, None) == score


def test_math_verify_and_reasoning_gym_work_off_the_main_thread() -> None:
    gold, metadata = gym_metadata("chain_sum")
    scores: list[float | None] = []

    def score() -> None:
        scores.append(load_scorer("math_verify")(r"\boxed{\frac{2}{4}}", "1/2", None))
        scores.append(load_scorer("reasoning_gym")(f"Answer: {gold}", gold, metadata))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == [1.0] * 8


# --- hostile text ---


def test_a_check_that_would_not_end_is_a_wrong_answer_and_the_next_one_works() -> None:
    scorer = load_scorer("reasoning_gym")
    gold, metadata = gym_metadata("countdown")
    assert scorer("Answer: 9**9**9**9", gold, metadata) == 0.0
    assert scorer(f"Answer: {gold}", gold, metadata) == 1.0


def test_math_that_would_not_end_is_a_wrong_answer_and_the_next_one_works() -> None:
    scorer = load_scorer("math_verify")
    assert scorer(r"\boxed{9^{9^{9^9}}}", "12", None) == 0.0
    assert scorer(r"\boxed{12}", "12", None) == 1.0


@pytest.mark.parametrize("task", ["spiral_matrix", "countdown"])
def test_an_answer_is_not_run_as_a_program(task: str, tmp_path: Path) -> None:
    gold, metadata = gym_metadata(task)
    proof = tmp_path / "ran"
    attack = f"Answer: __import__('pathlib').Path({str(proof)!r}).touch()"
    assert load_scorer("reasoning_gym")(attack, gold, metadata) == 0.0
    assert not proof.exists()


def test_every_check_that_evaluates_answers_is_guarded() -> None:
    from reasoning_gym.factory import DATASETS

    # bitwise_arithmetic evaluates its own problem, number_sorting its own gold answer; neither evaluates the model's.
    own_text_only = {"bitwise_arithmetic", "number_sorting"}
    evaluating = set()
    for task, (dataset, _) in DATASETS.items():
        lines, first = inspect.getsourcelines(dataset.score_answer)
        source = "".join(lines) if first else ""
        if re.search(r"\b(eval|exec|parse_expr|sympify|literal_eval)\(", source):
            evaluating.add(task)
    assert evaluating - own_text_only == EVALUATING


@pytest.mark.parametrize(
    "text", ["94*4 - 61 - 6", "(x + 1)^2 / 3", "[[0, 1], [1, 0]]", "['A', 'B']", "3.5*x**2 + C", "sin(x)"]
)
def test_arithmetic_and_literals_are_harmless(text: str) -> None:
    assert _is_harmless(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "eval(input())", "x.real", "1 .real", "(1). real", "exec", "chr(1)", "sqrt('a')", "lambda: 1",
        "sqrt(\"\\x65\")", "print(1)", "x; y", "\uff11+1", "a if b else c", "[i for i in x]", "{}.x",
    ],
)  # fmt: skip
def test_programs_are_not_harmless(text: str) -> None:
    assert not _is_harmless(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["countdown", "spiral_matrix", "letter_counting", "sentence_reordering"]))
def test_reasoning_gym_scores_any_text_and_twice_the_same(text: str, task: str) -> None:
    gold, metadata = gym_metadata(task)
    scorer = load_scorer("reasoning_gym")
    assert scorer(text, gold, metadata) == scorer(text, gold, metadata) in (0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789+-*/^(){}\\fracsqtx=,. $"), max_size=60))
def test_math_verify_scores_any_text(text: str) -> None:
    assert load_scorer("math_verify")(text, "12", None) in (0.0, 1.0)


def test_metadata_of_something_else_is_the_rows_error() -> None:
    with pytest.raises(ClearRayError, match="metadata"):
        load_scorer("reasoning_gym")("Answer: 12", "12", '{"task": "chain_sum"}')


# --- a scorer of the user's own ---


@pytest.fixture
def own_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_scorers.py").write_text(
        "def length(text, gold, metadata):\n    return min(len(text) / 10, 1)\n"
        "def none(text, gold, metadata):\n    return None\n"
        "def raises(text, gold, metadata):\n    raise KeyError('missing')\n"
        "def large(text, gold, metadata):\n    return 7\n"
        "def nan(text, gold, metadata):\n    return float('nan')\n"
        "def text(text, gold, metadata):\n    return 'good'\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_scorers", raising=False)
    return "own_scorers"


def test_own_scorer_from_the_working_folder_survives_pickling(own_scorers: str) -> None:
    scorer = pickle.loads(pickle.dumps(load_scorer(f"{own_scorers}:length")))  # noqa: S301
    assert scorer("abcde", None, None) == 0.5
    assert load_scorer(f"{own_scorers}:none")("a", "b", None) is None


@pytest.mark.parametrize("function", ["raises", "large", "nan", "text"])
def test_failure_of_an_own_scorer_names_it(own_scorers: str, function: str) -> None:
    with pytest.raises(ClearRayError, match=f"own_scorers:{function}"):
        load_scorer(f"{own_scorers}:{function}")("a", None, None)


@pytest.mark.parametrize(
    "name", ["guess", "", "own_scorers:absent", "own_scorers:constant", "no_such_module:f", ":", "a:"]
)
def test_unusable_scorer_names_are_refused(own_scorers: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.scorer"):
        load_scorer(name)


def test_a_module_that_ends_the_program_on_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ending_scorers.py").write_text("import sys\nsys.exit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match=r"scoring\.scorer: the scorer cannot be imported: SystemExit\(7\)"):
        load_scorer("ending_scorers:f")


@pytest.mark.parametrize("name", ["exact", "math_verify", "reasoning_gym"])
def test_named_scorers_survive_pickling(name: str) -> None:
    scorer = load_scorer(name)
    assert pickle.loads(pickle.dumps(scorer)) is scorer  # noqa: S301


@pytest.mark.parametrize(("name", "package"), [("math_verify", "math-verify"), ("reasoning_gym", "reasoning-gym")])
def test_a_missing_package_names_the_extra(name: str, package: str) -> None:
    # A process of its own, in which the package cannot be found: what the extra's absence looks like.
    program = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        f"u.find_spec = lambda n, p=None: None if n == {name!r} else real(n, p)\n"
        "from clear_ray.tasks import load_scorer\n"
        f"load_scorer({name!r})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"ConfigError: scoring.scorer: the package {package} is not installed" in run.stderr
    assert "clear_ray[tasks]" in run.stderr


# --- sources ---


def test_rows_hold_what_a_query_needs() -> None:
    source = ReasoningGymSource(task="chain_sum", name="chain_sum-easy", count=3, seed=7, params=EASY_SUM)
    rows = list(generate_queries([source]))
    assert [row["query_id"] for row in rows] == ["chain_sum-easy-0000", "chain_sum-easy-0001", "chain_sum-easy-0002"]
    scorer = load_scorer("reasoning_gym")
    for row in rows:
        assert set(row) == {"query_id", "prompt", "messages", "gold", "task", "metadata"}
        assert row["task"] == "chain_sum-easy"
        assert row["messages"] is None
        assert row["prompt"].startswith("State the final answer")
        assert scorer(f"Answer: {row['gold']}", row["gold"], row["metadata"]) == 1.0
        assert scorer(f"Answer: {row['gold']}1", row["gold"], row["metadata"]) == 0.0


@pytest.mark.parametrize("task", ["chain_sum", "isomorphic_strings", "ransom_note"])
def test_the_same_queries_come_out_of_another_process(task: str) -> None:
    # The latter two iterate over sets of letters: their queries depend on the interpreter's hash seed.
    source = ReasoningGymSource(task=task, count=5, seed=11)
    program = (
        "import json; from clear_ray.tasks import *\n"
        f"print(json.dumps(list(generate_queries([ReasoningGymSource(task={task!r}, count=5, seed=11)]))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "77"},
    )
    assert json.loads(other.stdout) == list(generate_queries([source]))


def test_fewer_queries_are_the_first_of_more() -> None:
    few, many = (list(generate_queries([ReasoningGymSource(task="letter_counting", count=n, seed=5)])) for n in (4, 40))
    assert many[:4] == few


def test_no_question_comes_twice_and_no_example_is_asked() -> None:
    source = ReasoningGymSource(
        task="chain_sum",
        count=80,
        seed=1,
        params=EASY_SUM,
        examples=4,
        demonstrations=(
            Demonstration(
                question="State the final answer to the following arithmetic problem: 6 + 0 =",
                answer="6 + 0 = 6. Answer: 6",
            ),
        ),
    )
    rows = list(generate_queries([source]))
    conversations = [json.loads(row["messages"]) for row in rows]
    asked = [conversation[-1]["content"] for conversation in conversations]
    shown = {conversation[k]["content"] for conversation in conversations for k in range(0, 10, 2)}
    assert len(set(asked)) == 80
    assert len(shown) == 5
    assert not shown & set(asked)
    assert [message["role"] for message in conversations[0]] == ["user", "assistant"] * 5 + ["user"]
    assert conversations[0][1]["content"] == "6 + 0 = 6. Answer: 6"
    assert re.fullmatch(r"Answer: -?\d+", conversations[0][3]["content"])


def test_examples_as_text_end_with_the_question() -> None:
    source = ReasoningGymSource(task="chain_sum", count=1, seed=1, examples=2, style="text")
    (row,) = generate_queries([source])
    assert row["messages"] is None
    assert row["prompt"].count("Question: ") == 3
    assert row["prompt"].count("Answer: ") == 2
    assert row["prompt"].rstrip().endswith("=")


@pytest.mark.parametrize(
    "source",
    [
        {"task": "no_such_task", "count": 1},
        {"task": "chain_sum", "count": 1, "params": {"no_such_param": 1}},
        {"task": "chain_sum", "count": 1, "params": {"min_terms": 5, "max_terms": 2}},
        {"task": "chain_sum", "count": 500, "params": EASY_SUM},
        {"task": "arc_agi", "count": 1},
    ],
)
def test_what_reasoning_gym_cannot_give_is_refused(source: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"input\.tasks"):
        list(generate_queries([ReasoningGymSource.model_validate(source)]))


def test_two_sources_of_one_name_are_refused() -> None:
    source = ReasoningGymSource(task="chain_sum", count=1)
    with pytest.raises(ConfigError, match="same name"):
        list(generate_queries([source, source]))


@pytest.mark.parametrize(
    "settings_",
    [{"count": 0}, {"seed": -1}, {"name": "-"}, {"unknown": 1}, {"style": "poem"}, {"examples": 99}, {"task": ""}],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReasoningGymSource.model_validate({"task": "chain_sum", "count": 1} | settings_)


# --- the referee's process ---


def test_a_request_it_does_not_know_is_an_error_not_its_end() -> None:
    referee = Referee()
    reply = referee.ask({"do": "dance"})
    assert reply is not None
    assert "dance" in reply["error"]
    referee.close()
    assert referee.ask({}) == {"value": "ready"}
    referee.close()


def test_what_judges_is_started_before_the_first_answer_and_a_function_of_the_users_is_not_called() -> None:
    referee, called = shared_referee(), list[str]()

    def own(text: str, gold: str | None, metadata: str | None) -> float | None:
        called.append(text)
        return 1.0

    def is_up() -> bool:
        return referee._child._process is not None

    referee.close()
    get_ready(own, None)
    assert not is_up()
    assert not called
    get_ready(load_scorer("math"), None)
    assert is_up()
