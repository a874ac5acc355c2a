"""Reads a page as a browser would, far enough to see whether anything in it could act."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Seen:
    """What a page is made of: start tags in their order, all attributes, text."""

    tags: list[str] = field(default_factory=list)
    outside_svg: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    text: str = ""
    styles: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen = Seen()
        self._svg_depth = 0
        self._is_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._svg_depth += tag == "svg"
        self._is_style = tag == "style"
        self.seen.tags.append(tag)
        if not self._svg_depth:
            self.seen.outside_svg.append(tag)
        self.seen.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.tags.append(tag)
        self.seen.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._svg_depth -= tag == "svg"
        self._is_style = False

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.seen.styles += data
        else:
            self.seen.text += data


def read_page(page: str) -> Seen:
    """Return what a page is made of."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.seen


def assert_inert(seen: Seen) -> None:
    """Assert that nothing in a page runs, loads or leaves it."""
    forbidden = {
        "script",
        "img",
        "image",
        "iframe",
        "object",
        "embed",
        "form",
        "input",
        "button",
        "link",
        "base",
        "a:href",
    }
    forbidden |= {"foreignobject", "animate", "set", "audio", "video", "source", "template", "b"}
    assert forbidden.isdisjoint(seen.tags)
    for tag, name, value in seen.attributes:
        assert not name.startswith("on"), (tag, name, value)
        assert name not in {"src", "srcset", "action", "formaction", "background", "poster", "srcdoc"}, (
            tag,
            name,
            value,
        )
        if name in {"href", "xlink:href"}:
            assert value.startswith("#"), (tag, name, value)
        if "url(" in value:
            assert value.count("url(#") == value.count("url("), (tag, name, value)
    assert "url(" not in seen.styles
    assert "@import" not in seen.styles
