"""Bytes in pieces that Ray keeps with an actor: one that is started again needs no object of a node that may be gone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS

_INLINE_BYTES = 90_000  # Ray puts an argument of over 100 KiB into its object store, and says so on stderr


def pieces_of(whole: bytes) -> list[bytes]:
    """Return bytes as arguments that are small enough each."""
    return [whole[start : start + _INLINE_BYTES] for start in range(0, len(whole), _INLINE_BYTES)]


def cost_pieces(cost_N: NDArray[np.float64]) -> list[bytes]:
    """Return costs in whole thousandths, packed; those of a million queries are a few pieces where few costs differ."""
    return pieces_of(zlib.compress(np.rint(cost_N * COST_PARTS).astype("<i8").tobytes(), 1))


def costs_in(pieces: Iterable[bytes]) -> NDArray[np.float64]:
    """Return the costs that `cost_pieces` has packed."""
    parts_N = np.frombuffer(zlib.decompress(b"".join(pieces)), "<i8")
    return parts_N / COST_PARTS
