"""Holds NumPy and SciPy to few threads in our commands; imported before them, for OpenBLAS reads this once.

The matrices of a clearing are small, and the cores belong to the engines: with as many threads as cores, each of which waits
for all others at every step, fits that take a second of one core take ten beside a busy engine. What is set already stays.
"""

from __future__ import annotations

import os

_CORES_A_THREAD, _MOST_THREADS = 4, 8

os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, min((os.cpu_count() or 1) // _CORES_A_THREAD, _MOST_THREADS))))
