from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from clear_ray.report.page import write_page
from clear_ray.report.summary import RunReport
from clear_ray.storage import open_folder
from tests.unit.report.reading import Seen, assert_inert, read_page
from tests.unit.report.samples import HOSTILE, completions, hostile_completions, hostile_report, run_report


def page_of(report: RunReport, rows: object, folder: Path, **settings: int) -> str:
    path = write_page(report, completions=rows, folder=open_folder(str(folder)), **settings)  # type: ignore[arg-type]
    assert path == f"{folder}/report.html"
    return Path(path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(run_report(), completions(), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(hostile_report(), hostile_completions(), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def hostile(hostile_page: str) -> Seen:
    return read_page(hostile_page)


def test_the_page_forbids_itself_to_load_or_run_anything(plain: str) -> None:
    seen = read_page(plain)
    policy = next(value for tag, name, value in seen.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert plain.index("Content-Security-Policy") < plain.index("<style>")
    assert_inert(seen)


def test_hostile_strings_are_shown_and_do_nothing(hostile: Seen) -> None:
    assert_inert(hostile)
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4], HOSTILE[5], HOSTILE[9]):
        assert text in hostile.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", hostile.text)


def test_hostile_strings_change_nothing_in_the_structure(hostile: Seen, tmp_path: Path) -> None:
    report = hostile_report()
    tame = report.model_copy(
        update={
            "tasks": tuple(task.model_copy(update={"task": "x"}) for task in report.tasks),
            "run_dir": "x", "model": "x", "head": "x", "stopped_early": "x", "policy": "x",
        }
    )  # fmt: skip
    rows = (
        row | {key: "x" for key in ("query_id", "task", "reason", "text", "error", "finish_reason") if row[key]}
        for row in hostile_completions()
    )
    assert read_page(page_of(tame, rows, tmp_path)).outside_svg == hostile.outside_svg


def test_long_answers_are_cut_and_the_page_stays_small(hostile_page: str) -> None:
    assert sum(len(row["text"] or "") for row in hostile_completions()) > 1_000_000
    assert len(hostile_page) < 250_000


def test_the_same_run_gives_the_same_bytes(plain: str, tmp_path: Path) -> None:
    assert page_of(run_report(), completions(), tmp_path) == plain


def test_ids_are_unique_and_every_reference_leads_somewhere(plain: str) -> None:
    seen = read_page(plain)
    ids = Counter(value for _, name, value in seen.attributes if name == "id")
    assert [name for name, times in ids.items() if times > 1] == []
    links = {value[1:] for _, name, value in seen.attributes if name in {"href", "xlink:href"}}
    links |= {match for _, _, value in seen.attributes for match in re.findall(r"url\(#([^)]+)\)", value)}
    assert links
    assert links <= set(ids)


def test_plots_are_coloured_by_the_page_alone(plain: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", plain, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        assert figure.startswith('<svg role="img" aria-label="')
        assert not re.search(r"#[0-9a-fA-F]{6}\b", figure)
        assert "var(--accent)" in figure


def test_the_headline_numbers_are_there(plain: str) -> None:
    text = " ".join(read_page(plain).text.split())
    for said in (
        "6,341 of 6,368 tokens (99.6 %), 27 left",
        "92 of 199 queries; 107 abandoned, 2 failed",
        "30 of 199 with a gold answer (15.1 %)",
        "15.1 from uniform ceilings, 2.1 times as many",
        "At 6,368 tokens: 31.5 correct answers expected from priced grants",
        "could be expected to give more than 28.5 correct answers",
        "112 of the tokens spent were lost",
        "prompt: longer than the context.",
    ):
        assert said in text


def test_only_the_first_rows_are_listed_and_the_page_says_so(tmp_path: Path) -> None:
    text = " ".join(read_page(page_of(run_report(), completions(), tmp_path, most_rows=7)).text.split())
    assert "The first 7 of 199" in text
    assert "letter_counting-0003" in text
    assert "leg_counting-0018" in text  # abandoned: listed as such, though it is no longer among the first
    assert "number_sorting-0016" not in text


@pytest.mark.parametrize(
    "report",
    [
        run_report(rounds=(), tasks=(), budget_curve=()),
        run_report(correct=None, scored=0, shadow_price=0.0, uniform_expected_utility=0.0, policy="uniform"),
        run_report(queries=0, budget_tokens=0, spent_tokens=0, completed=0, abandoned=0, failed=0, wasted_tokens=0),
    ],
    ids=["nothing-priced", "nothing-scored", "nothing-asked"],
)
def test_a_page_without_some_of_its_parts_is_still_a_page(report: RunReport, tmp_path: Path) -> None:
    page = page_of(report, [], tmp_path)
    assert_inert(read_page(page))
    assert page.rstrip().endswith("</html>")
    assert "None" not in read_page(page).text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"objective": "solved", "solved_by_attempt": (31, 0, 4), "tokens_per_solved": 180.0},
            "attempts: 35 solved in 240 attempts: 31 by attempt 1, 4 by attempt 3; 180 tokens for each solved; "
            "one more: at each unsolved one: 2.5 solved, for 1,200 tokens",
        ),
        (
            {"objective": "vote", "solved_by_attempt": (), "tokens_per_solved": None, "agreed": 52},
            "votes: 240 answers; of 52 queries several agree on what was kept; one more: for each query: 2.5 more right, "
            "for 1,200 tokens",
        ),
    ],
)
def test_a_run_that_asked_again_says_so(tmp_path: Path, asked: dict[str, object], said: str) -> None:
    more = {"most": 4, "attempts": 240, "one_more_solves": 2.5, "one_more_tokens": 1_200.0}
    page = page_of(run_report(attempts=asked | more), completions(), tmp_path)
    assert said in " ".join(read_page(page).text.split())
