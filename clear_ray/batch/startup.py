"""What begins while the input of a run is read: Ray, and then the engines with their models, in threads of their own.

    driver   reads the input ------------> market --> callers --> waits for the models
    thread   starts Ray --> engine actors start --> (each loads its model)

Each of them takes seconds, and none needs what the others find. What fails in a thread is raised where it is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from clear_ray.cluster.engines import EngineActors
from clear_ray.cluster.gpu_requests import GpuClaim, gpus_for
from clear_ray.cluster.joining import joining_cluster
from clear_ray.cluster.meanwhile import meanwhile
from clear_ray.cluster.room import settled
from clear_ray.config.engine import EngineConfig
from clear_ray.estimation.head import Head

Engines = Callable[..., AbstractContextManager[EngineActors]]
"""What starts the engines of a run and ends them, with the arguments of `cluster.several.engines_of_run`."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Ray and the engines of a run on their way.

    Attributes:
        ray: Waits until Ray is up, and raises what keeps it from that.
        engines: Waits until the engines have been started, which have not loaded their models then.
        gpus: Their claim of GPUs.
    """

    ray: Callable[[], object]
    engines: Callable[[], EngineActors]
    gpus: GpuClaim


@contextmanager
def beginning(
    start_engines: Engines,
    engines: Sequence[tuple[EngineConfig, Head]],
    *,
    run_dir: str,
    rows_each: Sequence[int | None],
) -> Iterator[Beginning]:
    """Have Ray and the engines begin; end both afterwards.

    Args:
        start_engines: What starts them.
        engines: Settings and estimate of each.
        run_dir: The run folder.
        rows_each: See `EngineActors`; of each.
    """
    gpus = GpuClaim(gpus_for)

    @contextmanager
    def started() -> Iterator[EngineActors]:
        ray_is_up()
        each = [(settled(config), head) for config, head in engines]
        gpus.num_gpus = tuple(config.num_gpus or 0.0 for config, _ in each)
        with start_engines(each, run_dir=run_dir, ask_for=gpus, rows_each=rows_each) as actors:
            yield actors

    with joining_cluster() as ray_is_up, meanwhile(started()) as engines_of:
        yield Beginning(ray_is_up, engines_of, gpus)
