"""Joining a Ray cluster, or starting one on this machine, and setting Ray Data up for a run."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from clear_ray.cluster.connection import join
from clear_ray.cluster.meanwhile import meanwhile

_UNDER_WAY: list[Callable[[], object]] = []
_OF_OUR_OWN = {
    # Stages follow each other within seconds, and starting a worker process takes a second of a core.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # What every process counts of its calls and sends home, for pages and logs that this cluster does not have.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
}
"""Settings of a Ray that a run starts for itself."""


@contextmanager
def joined_cluster() -> Iterator[None]:
    """Use the Ray cluster that is there (a job's, `RAY_ADDRESS`, or one already joined), else start a local one.

    A local cluster is left behind no longer than the run; one that was there before is left alone. The environment and the
    handler of SIGTERM are afterwards what they were: Ray and its settings change both.

    Raises:
        ClusterError: There is none, and none can be started.
    """
    if ray.is_initialized():
        yield
        return
    with _environment_kept(), _terminated_as_interrupted() as take_sigterm, _own_ray():
        take_sigterm()
        yield


@contextmanager
def joining_cluster() -> Iterator[Callable[[], object]]:
    """Do what `joined_cluster` does while its user goes on; yield what waits for the cluster, or raises why there is none.

    What is under way in this process already is waited for, and not begun again.
    """
    if _UNDER_WAY or ray.is_initialized():
        yield _UNDER_WAY[-1] if _UNDER_WAY else lambda: None
        return
    with _environment_kept(), _terminated_as_interrupted() as take_sigterm, meanwhile(_own_ray()) as ray_is_up:

        def is_up() -> None:
            ray_is_up()
            if threading.current_thread() is threading.main_thread():  # no other may take a signal
                take_sigterm()

        _UNDER_WAY.append(is_up)
        try:
            yield is_up
        finally:
            _UNDER_WAY.pop()


@contextmanager
def _own_ray() -> Iterator[None]:
    try:
        _start_ray()
        yield
    finally:
        ray.shutdown()


def _start_ray() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        address = os.environ.get("RAY_ADDRESS") or None
        os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")  # a process more, for statistics that Ray would send home
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        if not address:
            os.environ.pop("RAY_ADDRESS", None)  # set to nothing, Ray would take it for an address
            for name, value in _OF_OUR_OWN.items():
                os.environ.setdefault(name, value)
        join(address, **local)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Put the environment back as it was."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _terminated_as_interrupted() -> Iterator[Callable[[], None]]:
    """Take SIGTERM (`ray job stop`, `timeout`, a pod's end) for Ctrl-C: what Ray makes of it is a stack of its own C++.

    A caller that handles SIGTERM goes on doing so. Yields what takes the signal again, once Ray has set a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    own = signal.default_int_handler if before in (None, signal.SIG_DFL) else before

    def take() -> None:
        signal.signal(signal.SIGTERM, own)

    take()
    try:
        yield take
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def quiet_data(*, is_quiet: bool = True) -> Iterator[None]:
    """Set Ray Data up for a run: our own progress instead of its bars, stalls as errors, exact errors, few processes.

    Ray Data starts nodes for its tasks as soon as half of the cluster's CPUs are busy; on our clusters those are nodes with
    GPUs, for a little reading. So it is held to the CPUs that are there. And its new reader starts 32 actors for the footers
    of Parquet files at every read, which was most of the CPU of a small run; the older reader starts none.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    limits = context.execution_options.resource_limits
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if (cpus := resources.get("CPU", 0.0)) >= 1:
        context.execution_options.resource_limits = limits.copy(cpu=min(limits.cpu, cpus))
    names = ("enable_progress_bars", "print_on_execution_start", "raise_original_map_exception", "use_datasource_v2")
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    context.enable_progress_bars = not is_quiet
    context.print_on_execution_start = not is_quiet
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True  # in its wrapping the original is lost on the way to the driver
    logger = logging.getLogger("ray.data")
    level = logger.level
    if is_quiet:
        logger.setLevel(logging.CRITICAL)  # what Ray Data logs as an error it raises too
    try:
        yield
    finally:
        logger.setLevel(level)
        context.execution_options.resource_limits = limits
        for name, value in before.items():
            setattr(context, name, value)
