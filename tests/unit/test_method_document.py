"""docs/method.md has every section that code and guides cite, and the public repository holds what is cited."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/method.md").read_text()
HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)?)[. ]", re.MULTILINE)
CITED = re.compile(r"(?<!\w)(?:docs/)?method\.md[`)]*,? sections? (\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*)")
ANY_MENTION = re.compile(r"method\.md|\bmethod,? sections?\b")
NOT_PUBLIC = re.compile(
    r"(?<![\w/])(?:\.\./)?(?:shared/(?:method|facts|house|data)|facts/)|\b(?:engines|ray|field)\.md\b"
)
SOURCES = [
    path
    for folder in ("clear_ray", "tests", "benchmarks", "jobs", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md", ".yaml", ".jinja") and path.name not in ("method.md", Path(__file__).name)
] + [ROOT / "README.md"]


def citations(text: str) -> list[str]:
    """Return the numbers of the sections that a text cites, line breaks and comment signs aside."""
    joined = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)
    return [number for found in CITED.findall(joined) for number in re.findall(r"\d+(?:\.\d+)?", found)]


def test_sections_are_numbered_without_a_gap() -> None:
    numbers = HEADING.findall(DOCUMENT)
    assert [number for number in numbers if "." not in number] == [str(number) for number in range(1, 12)]
    assert numbers == sorted(numbers, key=lambda number: [int(part) for part in number.split(".")])


def test_every_section_that_is_cited_is_there() -> None:
    cited = {str(path.relative_to(ROOT)): citations(path.read_text()) for path in SOURCES}
    headings = set(HEADING.findall(DOCUMENT))
    assert {place: missing for place, found in cited.items() if (missing := set(found) - headings)} == {}
    assert sum(map(len, cited.values())) > 30


def test_no_mention_is_without_a_section() -> None:
    """A mention in another form would be seen by no other test here."""
    for path in (path for path in SOURCES if path.suffix == ".py" and ROOT / "clear_ray" in path.parents):
        joined = re.sub(r"\s*\n\s*(?:#\s*)?", " ", path.read_text())
        assert len(ANY_MENTION.findall(joined)) == len(CITED.findall(joined)), path


def test_only_what_is_public_is_cited() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if NOT_PUBLIC.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(docs/method.md, sections 3 and 4.4).", ["3", "4.4"]),
        ("Source: docs/method.md, section 2.1 (as there).", ["2.1"]),
        ("docs/method.md,\n    section 3, Scale", ["3"]),
        ("# docs/method.md, sections\n# 2.1, 2.2 and 9", ["2.1", "2.2", "9"]),
    ],
)
def test_citations_are_found(text: str, numbers: list[str]) -> None:
    assert citations(text) == numbers
