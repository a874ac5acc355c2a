"""The probe's processes start while the engines load their models: what has to be known first is waited for in a thread.

driver   starts the probe ------------------> follows it to its end
thread   waits for the engines, opens the run --> opens the gate
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from clear_ray.stages.gate import Gate
from clear_ray.storage import Folder

Opened = TypeVar("Opened")
_PATIENCE_SECONDS = 5.0


@contextmanager
def opened_meanwhile(folder: Folder, open_run: Callable[[Gate], Opened]) -> Iterator[tuple[Gate, Callable[[], Opened]]]:
    """Open a run in a thread; yield the gate of its probe, and what waits for the thread.

    Args:
        folder: The run folder.
        open_run: Opens the gate once the run is open, and gives up when it is not there any more; what it raises takes the
            place of what the probe raises for it.
    """
    gate = Gate(folder)
    gate.close()
    outcome: Future[Opened] = Future()

    def work() -> None:
        try:
            outcome.set_result(open_run(gate))
        except BaseException as error:
            outcome.set_exception(error)
            gate.remove()

    # A daemon, which is not waited for long: it ends when there is no gate any more.
    thread = threading.Thread(target=work, name="clear_ray opening", daemon=True)
    thread.start()
    try:
        yield gate, outcome.result
    except Exception:
        if not outcome.done() or outcome.exception() is None:
            raise
    finally:
        gate.remove()
        thread.join(_PATIENCE_SECONDS)
    outcome.result()  # raises what kept the run from being opened, with no word of the probe that found no gate
