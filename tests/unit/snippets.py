"""The fenced blocks of README.md and docs/*.md, by their language, which says what is done with them.

python          runs as it stands, on a tiny input (tests/ray/test_snippets.py)
sh              commands of ours and of Ray: each is parsed by its program (tests/unit/test_shell_snippets.py)
json jsonl yaml is parsed
console         commands of other programs (a cloud's, a container's): bash must be able to read it
text csv mermaid  is looked at
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = {"python", "sh", "json", "jsonl", "yaml", "console", "text", "csv", "mermaid"}
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>[^\n`]*)\n(?P<text>.*?)^ *(?P=fence) *$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Attributes:
        place: File and line, which names it in a failure.
        language: What its fence says.
        text: What is in it.
    """

    place: str
    language: str
    text: str


def snippets_in(document: str, place: str) -> list[Snippet]:
    """Return the fenced blocks of a document."""
    return [
        Snippet(f"{place}:{document.count(chr(10), 0, found.start()) + 1}", found["language"].strip(), found["text"])
        for found in FENCE.finditer(document)
    ]


def snippets() -> list[Snippet]:
    """Return those of README.md and of every guide."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [each for file in files for each in snippets_in(file.read_text(), str(file.relative_to(ROOT)))]


def written_in(*languages: str) -> list[Snippet]:
    """Return the snippets of some languages."""
    return [snippet for snippet in snippets() if snippet.language in languages]
