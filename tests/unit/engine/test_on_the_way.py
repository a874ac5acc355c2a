"""Grants and generations pass between processes."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest

from clear_ray.engine.base import Generation, Grant


@pytest.mark.parametrize("kind", [Grant, Generation])
def test_nothing_of_it_is_lost_between_processes(kind: type[Grant] | type[Generation]) -> None:
    one = kind(**{field.name: f"the {field.name}" for field in fields(kind)})
    assert copy.copy(one) == one
