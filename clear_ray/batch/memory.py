"""What a stage of a large batch has left unused goes back to the system before the next one begins.

Arrow and the C library keep what was freed for themselves. A driver that has read 200 MB and solved a price would go on with
what each of the two took at its most.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

import pyarrow as pa

from clear_ray.allocation.in_blocks import ROWS_OF_BLOCK


def give_back_memory(queries: int) -> None:
    """Give back what is unused; nothing for a batch of so few queries that it does not matter, for it takes milliseconds."""
    if queries <= ROWS_OF_BLOCK:
        return
    pa.default_memory_pool().release_unused()
    with suppress(OSError, TypeError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
