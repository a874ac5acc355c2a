"""Grants, generations and settlements pass between processes."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest

from clear_ray.engine.base import Generation, Grant
from clear_ray.ledger.entries import Settlement


@pytest.mark.parametrize("kind", [Grant, Generation, Settlement])
def test_nothing_of_it_is_lost_between_processes(kind: type[Any]) -> None:
    one = kind(**{field.name: f"the {field.name}" for field in fields(kind)})
    assert copy.copy(one) == one
