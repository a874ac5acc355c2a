"""What is found out about an input is found out while it is read, and not by reading it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.batch.intake import take_in
from clear_ray.config.run import RunConfig
from clear_ray.errors import SchemaError
from clear_ray.storage import open_folder
from clear_ray.tasks import survey_queries
from clear_ray.tasks.survey import survey


def test_the_gold_answers_are_surveyed_while_they_are_read(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [{"query_id": str(k), "prompt": "p", "gold": str(k)} for k in range(30)]
    rows += [{"query_id": "words", "prompt": "p", "gold": "because it is so"}, {"query_id": "none", "prompt": "p"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"input": {"path": str(tmp_path / "q.jsonl")}, "scoring": {"scorer": "number"}}
    config = RunConfig.parse(replay_settings | settings)
    folder = open_folder(str(tmp_path / "run"))

    def not_again(*_: object) -> None:
        raise AssertionError("the queries were read again")

    monkeypatch.setattr("clear_ray.tasks.survey._rows", not_again)
    take_in(None, config, folder)
    found = survey_queries(folder.child("queries"), "number")
    looked_at = [{"gold": None, "index": k} | row for k, row in enumerate(rows)]
    assert found == survey(looked_at, "number")
    assert (found.golds, found.unfit) == (31, 1)
    assert found.first_unfit is not None
    assert (found.first_unfit.row, found.first_unfit.query_id) == (31, "words")


@pytest.mark.parametrize(("golds", "is_refused"), [((None, None), True), (("1", None), False)])
def test_nothing_is_asked_again_where_nothing_says_what_is_right(
    replay_settings: dict[str, Any], tmp_path: Path, golds: tuple[str | None, ...], *, is_refused: bool
) -> None:
    rows = [{"query_id": str(k), "prompt": "p", "gold": gold} for k, gold in enumerate(golds)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"input": {"path": str(tmp_path / "q.jsonl")}, "scoring": {"scorer": "number"}}
    config = RunConfig.parse(replay_settings | settings | {"allocation": {"objective": "solved"}})
    folder = open_folder(str(tmp_path / "run"))
    if is_refused:
        with pytest.raises(SchemaError, match=r"no row has a gold answer, and allocation.objective solved"):
            take_in(None, config, folder)
        assert not folder.child("queries").files(".parquet")
    else:
        assert take_in(None, config, folder).rows == len(rows)


@pytest.mark.parametrize("objective", ["solved", "correct"])
def test_rows_that_would_give_the_same_answer_again_are_refused(tmp_path: Path, objective: str) -> None:
    rows = [{"prompt": "p", "gold": "1", "sampling_params": {"temperature": heat}} for heat in (0, 0.5, 0.0)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": "p"}])))
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "budget": 100,
        "input": {"path": str(tmp_path / "q.jsonl")},
    }
    endpoint = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "temperature": 0.8}
    asked = {"engine": endpoint, "allocation": {"objective": objective}, "scoring": {"scorer": "number"}}
    config, folder = RunConfig.parse(settings | asked), open_folder(settings["run_dir"])
    if objective == "correct":
        assert take_in(None, config, folder).rows == 4
        return
    with pytest.raises(SchemaError, match=r"(?s)2 problems.*q\.jsonl:1.*greedy sampling gives the same answer"):
        take_in(None, config, folder)
