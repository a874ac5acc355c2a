"""Attempts that were charged and came to nothing: their rows do not count."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    pass


_MOST_ATTEMPTS = 1 << 20


class VoidAttempts:
    """Attempts that were charged and came to nothing; one whose caller was taken for dead may write its row after all.

    Args:
        pairs: Query index and attempt of each.
    """

    def __init__(self, pairs: Collection[tuple[int, int]] = ()) -> None:
        self._keys = np.asarray([_key(index, attempt) for index, attempt in pairs], np.int64)

    def dropped_from(self, rows: pa.Table) -> pa.Table:
        """Return the rows, which have `index` and `attempt`, without those of such attempts."""
        if not len(self._keys):
            return rows
        keys = _key(rows["index"].to_numpy(), rows["attempt"].to_numpy().astype(np.int64))
        return rows.filter(pa.array(~np.isin(keys, self._keys)))


def _key(index: Any, attempt: Any) -> Any:
    return index * _MOST_ATTEMPTS + attempt
