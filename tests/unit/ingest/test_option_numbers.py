"""Whether the numbers of options count from 0 or from 1 is told by the whole column, or said, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.batch.intake import take_in
from clear_ray.config.run import RunConfig
from clear_ray.errors import SchemaError
from clear_ray.storage import open_folder
from tests.unit.ingest.taking import taken

FOUR = ["w", "x", "y", "z"]


def golds(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[list[str | None], tuple[str, ...]]:
    """Return the reference answers of some rows as a run reads them, and what is said of the input."""
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"id": k, **row}) for k, row in enumerate(rows)))
    config = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "out"),
            "budget": 100,
            "engine": {"kind": "replay", "rollouts": str(tmp_path)},
            "input": {"path": str(path), **settings.pop("input", {})},
            **settings,
        }
    )
    digest = take_in(None, config, open_folder(str(tmp_path / "run")))
    return [row["gold"] for row in taken(tmp_path / "run")], digest.notices


def beside(column: str, *answers: Any, options: Any = FOUR) -> list[dict[str, Any]]:
    return [{"question": "Which?", "choices": options, column: answer} for answer in answers]


@pytest.mark.parametrize(
    "column", ["answer", "label", "cop", "correct_option", "answer_idx", "answer_index", "correct"]
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_column_shows_from_which_number_it_counts(tmp_path: Path, column: str, as_text: bool) -> None:
    for answers, wanted in (((1, 0, 3), "BAD"), ((1, 4, 3), "ADC"), ((4,), "D"), ((0,), "A")):
        written = [str(answer) if as_text else answer for answer in answers]
        found, notices = golds(tmp_path, beside(column, *written))
        assert found == list(wanted)
        assert not any("counting options" in line for line in notices)


def test_the_last_row_may_show_it(tmp_path: Path) -> None:
    found, _ = golds(tmp_path, beside("answer", *[1 + k % 3 for k in range(5_000)], 4))
    assert found[:3] == ["A", "B", "C"]
    assert found[-1] == "D"


def test_where_no_row_shows_it_zero_is_taken_and_said(tmp_path: Path) -> None:
    found, notices = golds(tmp_path, beside("answer", 1, 2, 3))
    assert found == ["B", "C", "D"]
    assert notices[-1] == (
        "`answer` is read as counting options from 0, which no row shows: if it counts from 1, "
        "set input.first_option to 1"
    )
    found, notices = golds(tmp_path, beside("answer", 1, 2, 3), input={"first_option": 1})
    assert found == ["A", "B", "C"]
    assert not any("counting options" in line for line in notices)


def test_a_column_that_shows_both_is_refused_unless_it_is_said(tmp_path: Path) -> None:
    rows = [*beside("answer", 0), *beside("answer", 2, options=["a", "b"])]
    with pytest.raises(SchemaError, match=r"some reference answers are 0, and some as high as there are options"):
        golds(tmp_path, rows)
    with pytest.raises(SchemaError, match="no such option among 2, counted from 0"):
        golds(tmp_path, rows, input={"first_option": 0})


def test_no_answer_and_several_answers(tmp_path: Path) -> None:
    found, notices = golds(tmp_path, beside("label", 0, -1, 3))
    assert found == ["A", None, "D"]
    assert notices[-1] == "-1 is read as no reference answer in 1 row"
    assert golds(tmp_path, beside("answer", [0, 2], ["D", "B"]))[0] == ["A,C", "B,D"]
    assert golds(tmp_path, beside("answer", [1, 4]))[0] == ["A,D"]


def test_an_options_own_label_or_text_is_no_place(tmp_path: Path) -> None:
    labelled = {"text": ["a", "b"], "label": ["1", "2"]}
    assert golds(tmp_path, beside("answerKey", "1", "2", options=labelled))[0] == ["1", "2"]
    assert golds(tmp_path, beside("answer", 4, options=["3", "4"]))[0] == ["4"]


def test_options_in_the_prompt_are_counted_by_the_column_too(tmp_path: Path) -> None:
    prompt = "Which?\nA) w\nB) x\nC) y"
    rows = [{"prompt": prompt, "gold": answer} for answer in (1, 3, 2)]
    assert golds(tmp_path, rows, scoring={"scorer": "choice"})[0] == ["A", "C", "B"]
    rows = [{"prompt": prompt, "gold": answer} for answer in (1, 0, "2")]
    assert golds(tmp_path, rows, scoring={"scorer": "choice"})[0] == ["B", "A", "C"]
    assert golds(tmp_path, rows, scoring={"scorer": "number"})[0] == ["1", "0", "2"]
    numbered = [{"prompt": "Which?\n1. w\n2. x", "gold": 2}]
    assert golds(tmp_path, numbered, scoring={"scorer": "choice"})[0] == ["2"]
