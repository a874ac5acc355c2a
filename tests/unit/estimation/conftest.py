"""Recorded rollouts where they are, and drawn ones (from a known law) everywhere."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest


def drawn_tables(queries: int, *, rollouts: int = 4, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Rollouts from a known law: the first hidden entry sets solvability, the second the length."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(queries, 6)).astype(np.float32)
    rows = []
    for n in range(queries):
        lengths = 5 + rng.gamma(2.0, 12.0 * np.exp(0.6 * hidden[n, 1]), size=rollouts)
        right = rng.random(rollouts) < 1 / (1 + np.exp(-2 * hidden[n, 0]))
        for length, is_right in zip(lengths.astype(int), right, strict=True):
            rows.append(
                {
                    "query_id": f"q{n}",
                    "output_tokens": min(int(length), 120),
                    "finish_reason": "stop" if length <= 120 else "length",
                    "correct": bool(is_right),
                    "prompt": f"What is {n} + {n * 7}?",
                    "max_tokens": 120,
                    "tok_entropy": [0.5],
                }
            )
    features = pa.table(
        {
            "query_id": [f"q{n}" for n in range(queries)],
            "prompt_tokens": pa.array([10 + n % 5 for n in range(queries)], pa.int32()),
            "hidden_last": list(hidden),
            "hidden_mean": list(hidden[:, ::-1].copy()),
        }
    )
    return pa.Table.from_pylist(rows), features


@pytest.fixture(scope="session")
def tables() -> tuple[pa.Table, pa.Table]:
    return drawn_tables(60)
