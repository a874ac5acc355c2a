"""The examples of docs/input.md say what the page says they say."""

import re
from pathlib import Path

import pytest

from tests.unit.ingest.taking import take

TEXT = (Path(__file__).parents[3] / "docs/input.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(jsonl|json|csv)\n(.*?)```\n```text\n(.*?)\n```", TEXT, re.DOTALL)


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 8
    assert TEXT.count("```text") == len(EXAMPLES)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_read_as_the_page_says(tmp_path: Path, number: int) -> None:
    ending, content, said = EXAMPLES[number]
    (tmp_path / f"q.{ending}").write_text(content, encoding="utf-8")
    settings = {"on_error": "fail_row"} if said.startswith("failed") else {}
    digest = take(tmp_path / f"q.{ending}", tmp_path / "run", **settings)
    assert "\n".join(digest.notices) == said
