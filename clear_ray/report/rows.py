"""What the report page needs of the rows in `completions/`, gathered in one pass and in bounded memory."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

READ_OF_ALL = ("status", "correct", "finish_reason", "max_tokens", "spent_tokens", "reservation_price")
"""Columns that are looked at in every row."""
_MOST_POINTS = 2_000
_MOST_ABANDONED = 50
_MOST_FAILED = 50


@dataclass(frozen=True)
class QueryPoint:
    """One funded query of the plot of tokens.

    Attributes:
        granted_tokens: Sum of its ceilings.
        spent_tokens: What it generated.
        outcome: One of `plots.OUTCOMES`.
    """

    granted_tokens: int
    spent_tokens: int
    outcome: str


@dataclass(frozen=True)
class Gathered:
    """Parts of the completions that a page shows.

    Attributes:
        rows: All rows that were read.
        first: The first of them, in their order.
        nearest: Abandoned rows, those first for which most would have been paid.
        abandoned: How many abandoned rows there are.
        failed_first: The first failed rows.
        failed: How many failed rows there are.
        points: Funded queries for the plot of tokens, drawn evenly from all of them.
        funded: How many funded queries there are.
    """

    rows: int
    first: tuple[Mapping[str, Any], ...]
    nearest: tuple[Mapping[str, Any], ...]
    abandoned: int
    failed_first: tuple[Mapping[str, Any], ...]
    failed: int
    points: tuple[QueryPoint, ...]
    funded: int


def gather(completions: Iterable[Mapping[str, Any]], *, most_rows: int) -> Gathered:
    """Read every row once and keep what a page shows.

    Args:
        completions: Rows of `COMPLETION_SCHEMA`.
        most_rows: How many of the first rows to keep.
    """
    first: list[Mapping[str, Any]] = []
    failed_first: list[Mapping[str, Any]] = []
    points: list[QueryPoint] = []
    # Min-heap of the nearest: the number breaks ties in favour of the earlier row, and before rows are compared.
    nearest: list[tuple[float, int, Mapping[str, Any]]] = []
    draw = random.Random(0)  # noqa: S311 - which marks a plot shows is no secret, and must not change
    rows = abandoned = failed = funded = 0
    for number, row in enumerate(completions):
        rows = number + 1
        if len(first) < most_rows:
            first.append(dict(row))
        if row["status"] == "abandoned":
            abandoned += 1
            _keep(nearest, _reservation_price(row), -number, row)
            continue
        funded += 1
        if (place := _place(funded, draw)) is not None:
            points[place : place + 1] = [_point(row)]
        if row["status"] == "failed":
            failed += 1
            if len(failed_first) < _MOST_FAILED:
                failed_first.append(dict(row))
    ordered = tuple(row for _, _, row in sorted(nearest, key=lambda item: item[:2], reverse=True))
    return Gathered(rows, tuple(first), ordered, abandoned, tuple(failed_first), failed, tuple(points), funded)


def outcome(row: Mapping[str, Any]) -> str:
    """Return what came of a query in one or two words; a score of one half counts as correct."""
    if row["status"] != "completed":
        return str(row["status"])
    if row["correct"] is not None and row["correct"] >= 0.5:
        return "correct"
    if row["finish_reason"] == "length":
        return "cut off"
    return "ended" if row["correct"] is None else "wrong"


def _reservation_price(row: Mapping[str, Any]) -> float:
    price = float(row["reservation_price"])
    return price if price == price else float("-inf")  # a NaN has no place in an order


def _point(row: Mapping[str, Any]) -> QueryPoint:
    return QueryPoint(int(row["max_tokens"]), int(row["spent_tokens"]), outcome(row))


def _keep(
    nearest: list[tuple[float, int, Mapping[str, Any]]], price: float, number: int, row: Mapping[str, Any]
) -> None:
    if len(nearest) < _MOST_ABANDONED:
        heapq.heappush(nearest, (price, number, dict(row)))
    elif (price, number) > nearest[0][:2]:
        heapq.heapreplace(nearest, (price, number, dict(row)))


def _place(seen: int, draw: random.Random) -> int | None:
    """Return where to keep the last of the points seen, if at all: each has the same chance (reservoir sampling)."""
    if seen <= _MOST_POINTS:
        return seen - 1
    place = draw.randrange(seen)
    return place if place < _MOST_POINTS else None
