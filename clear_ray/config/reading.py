"""YAML as its writer means it: nothing that was written is dropped, and no number becomes another one.

YAML's own rules let the second of two equal keys win without a word, take `0150` for 104 and `1:30` for 90, and `1e6` for a
text. Here a key that stands twice is refused with its lines, and numbers are read as YAML 1.2 reads them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_INTEGERS = re.compile(r"[-+]?[0-9][0-9_]*\Z|0b[01_]+\Z|0o[0-7_]+\Z|0x[0-9a-fA-F_]+\Z")
_FLOATS = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z"
    r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)


class _Loader(yaml.SafeLoader):
    """Loads what `read_yaml` says."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written, once no key was found to stand in it twice.

        A key may replace one that a merge brings along. So it is looked at here: a merge elsewhere fills in what it names.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in lines:
                    before = lines[key.tag, key.value]
                    what = f"`{key.value}` stands here and in line {before}, and only one of them would count"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                lines[key.tag, key.value] = key.start_mark.line + 1
        return node


def _resolvers() -> dict[Any, list[Any]]:
    """Return the loader's own rules of what a plain word is, but for those of numbers."""
    found = {
        first: [(tag, rule) for tag, rule in rules if tag not in (_INT, _FLOAT)]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, rule, firsts in ((_FLOAT, _FLOATS, "-+.0123456789"), (_INT, _INTEGERS, "-+0123456789")):
        for first in firsts:
            found[first] = [(tag, rule), *found.get(first, [])]
    return found


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    written = loader.construct_scalar(node).replace("_", "")
    sign, digits = (-1, written[1:]) if written.startswith("-") else (1, written.removeprefix("+"))
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits if base == 10 else digits[2:], base)


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_constructor(_INT, _whole)


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        ValueError: It is not YAML, it is nested too deep, a key stands twice in it, or a value in it is none, such as the
            date 2026-99-99; the message begins with the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a safe one
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = str(error.problem or error.context)
        raise ValueError(f"{place}{error.context} {said}" if said.startswith("but ") else f"{place}{said}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # what its readers of numbers, dates and truth values met
        raise ValueError(f"a value cannot be read: {error!r}") from error
