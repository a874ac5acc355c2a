"""Fenced blocks of Markdown, found line by line: in time linear in the text, whatever it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPENING = re.compile(r"(?P<indent> {0,12})(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]{0,30})[^`\n]*\Z")


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """One fenced block.

    Attributes:
        language: What stands after its opening fence, in lower case; empty if nothing does.
        body: Its lines.
    """

    language: str
    body: str


def fenced_blocks(text: str) -> list[FencedBlock]:
    """Return the fenced blocks of a text in their order; the last one may be open."""
    blocks: list[FencedBlock] = []
    fence, language, indent = "", "", 0
    body: list[str] = []
    for line in text.split("\n"):
        if fence:
            stripped = line.strip()
            if stripped.startswith(fence) and not stripped.strip(fence[0]):
                blocks.append(FencedBlock(language, "\n".join(body) + "\n"))
                fence = ""
            else:
                body.append(line[indent:] if line[:indent].isspace() else line)
        elif found := _OPENING.match(line):
            fence, language, body = found["fence"], found["language"].lower(), []
            indent = len(found["indent"])
    if fence:
        blocks.append(FencedBlock(language, "\n".join(body) + "\n"))
    return blocks
