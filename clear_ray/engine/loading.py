"""Weights into memory, and what the memory that is left can hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from clear_ray.engine.packed import pack_linears
from clear_ray.engine.quantized import refuse_unreadable
from clear_ray.engine.smollm2 import refuse_own_code, resolve_model
from clear_ray.engine.trial import Way, measure_footprint
from clear_ray.errors import ConfigError, EngineError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What takes a mask of any shape. transformers picks sdpa where an architecture has it; soft-capped scores, sinks and ALiBi
# need eager.
_WITH_MASKS = frozenset(("sdpa", "eager"))
_CPU_CACHE_SHARE = 0.25
_CUDA_CACHE_SHARE = 0.75


def model_folder(model: str | Path) -> Path:
    """Return the local folder of a model, for a hub name that of its downloaded snapshot.

    Raises:
        ConfigError: There is no such model, here or on the hub, or the hub cannot be reached.
    """
    source = resolve_model(str(model))
    if isinstance(source, Path):
        return source
    try:
        found = cached_file(source, "config.json")
    except OSError as error:
        raise ConfigError(
            "the model is not on this machine and cannot be had from the hub",
            "model",
            source,
            f"Download it first and name its folder. {_first_line(error)}",
        ) from error
    return Path(str(found)).parent


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))


def load_model(
    model: str | Path, *, device: torch.device, dtype: str | None, told: Callable[[float], None] = lambda _: None
) -> Any:
    """Load a causal language model for inference.

    Code that a model brings along is never run, and weights are read from safetensors only, never unpickled.

    Args:
        model: Name as for `resolve_model`.
        device: Where it is to run.
        dtype: A name of `_DTYPES`, or None for the device's default.
        told: Hears which share of the weights has been read, from 0 to 1.

    Raises:
        ConfigError: There is no such model or dtype.
        EngineError: The model cannot be loaded.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError("unknown number format", "dtype", dtype, f"Give one of {', '.join(_DTYPES)}.")
    source = resolve_model(str(model))
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        refuse_own_code(model_folder(model))
        with _weights_counted(told):
            read: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source,
                dtype=_DTYPES[dtype] if dtype else _default_dtype(device),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        loaded, found = read
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random, and goes on
            raise ValueError(f"its files lack {len(missing):,} of its weights, the first of them {missing[0]}")
        refuse_unreadable(loaded.config, runs_here=False)
        if loaded.config._attn_implementation not in _WITH_MASKS:
            loaded.set_attn_implementation("eager")
        ready = loaded.to(device).eval()
        pack_linears(ready, free_bytes=_available_bytes())
        return ready
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise EngineError(
            "the model cannot be loaded",
            f"model {model}",
            str(error),
            remedy="Look whether its folder is whole and safetensors, and whether memory is left for it.",
        ) from error
    finally:
        if had_progress_bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _weights_counted(told: Callable[[float], None]) -> Iterator[None]:
    """Have transformers' own bar tell how far it is, which is not shown."""

    def counted(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        first, *others = arguments or (None,)
        return factory(*((_told_of_each(first, told), *others) if isinstance(first, Sized) else arguments), **options)

    told(0.0)
    hook_before = transformers_logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook_before)


def _told_of_each(items: Any, told: Callable[[float], None]) -> Iterator[Any]:
    for number, item in enumerate(items, start=1):
        yield item
        told(number / len(items))


def _default_dtype(device: torch.device) -> torch.dtype:
    # Few CPUs multiply bfloat16 in hardware; on those that do not it takes twice as long as float32.
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def cache_capacity_tokens(model: Any, way: Way = "slots", *, answers: int = 1) -> int:
    """Return how many positions of cache the free memory can hold beside the model, over all answers.

    Args:
        model: A causal language model of transformers.
        way: How it is run.
        answers: How many run at the same time.
    """
    if model.device.type == "cuda":
        free_bytes = int(torch.cuda.mem_get_info(model.device)[0] * _CUDA_CACHE_SHARE)
    else:
        free_bytes = int(_available_bytes() * _CPU_CACHE_SHARE)
    footprint = measure_footprint(model, way)
    left_bytes = free_bytes - answers * footprint.answer_bytes
    return max(1, left_bytes // max(1, footprint.position_bytes))


def _available_bytes() -> int:
    """Return the memory that can be had without swapping, what files are cached in included."""
    rooms = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = meminfo.read_text(encoding="ascii").splitlines()
        rooms += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return max(0, min(rooms + container_rooms(Path("/sys/fs/cgroup"))))


def container_rooms(root: Path) -> list[int]:
    """Return how many bytes the container's limits leave, as far as there are any: /proc/meminfo knows only the machine.

    Args:
        root: Where the control groups are mounted; version 2 has its files there, version 1 under `memory`.
    """
    rooms = []
    for folder, limit_name, used_name, cached_name in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = ((folder / name).read_text(encoding="ascii") for name in (limit_name, used_name))
            statistics = (folder / "memory.stat").read_text(encoding="ascii").split()
        except OSError:
            continue
        if limit.strip() != "max":
            # Cached files are given up before any process runs out of memory.
            cached = dict(zip(statistics[::2], statistics[1::2], strict=True)).get(cached_name, "0")
            rooms.append(int(limit) - int(used) + int(cached))
    return rooms
