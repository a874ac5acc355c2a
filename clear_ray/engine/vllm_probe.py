"""What runs inside vLLM's own worker processes: reading the hidden states of probe requests as they pass by.

vLLM mixes `VllmProbe` into its worker class (`worker_extension_cls`) and calls its methods by name, so nothing is pickled
and no code travels. A probe request is an ordinary request of one token whose id begins with `PROBE_PREFIX`. Before each
pass the scheduler says which requests are in it and how many of their tokens; the rows of a request are found in the pass
by their positions and token ids, because the runners of vLLM order them differently. Prompts that are cut into several
passes are added up.

Only what vLLM states in its worker interface is used: `execute_model(scheduler_output)`, `model_runner.get_model()`, and
that the model's forward returns the states after its final norm, which `compute_logits` turns into logits. Whether all that
holds for a model, a device and a version is tried once at the start (see `clear_ray/engine/vllm.py`).

Shapes: T rows of a pass, D hidden width, V vocabulary.
"""

from __future__ import annotations

import os
import re
import select
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PROBE_PREFIX = "clear_ray-probe-"
_PROBE_NUMBER = re.compile(re.escape(PROBE_PREFIX) + r"(\d+)")  # vLLM adds letters of its own behind the number


@dataclass(slots=True)
class _Reading:
    """One prompt on its way through the model: tokens seen so far, and the sum and the last of their states."""

    token_ids: NDArray[np.int64]
    seen: int = 0
    total_D: torch.Tensor | None = None
    last_D: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@dataclass(slots=True)
class _State:
    """What a worker knows of the probe requests."""

    model: Any
    readings: dict[int, _Reading] = field(default_factory=dict)
    number_of: dict[str, int] = field(default_factory=dict)
    pass_tokens: int = 0
    in_pass: list[tuple[_Reading, int, int]] = field(default_factory=list)  # reading, first position, tokens


class VllmProbe:
    """Mixed into vLLM's worker class; every name begins with `clear_ray_`, as vLLM allows no conflicts."""

    def clear_ray_follow(self, process_id: int) -> None:
        """End this worker's process as soon as the process that uses the engine is gone.

        vLLM's engine process outlives a parent that was killed, and with it the memory of the GPU that the next engine needs.
        """
        descriptor = os.pidfd_open(process_id)

        def wait() -> None:
            select.select([descriptor], [], [])
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=wait, name="clear_ray-follow", daemon=True).start()

    def clear_ray_watch(self) -> None:
        """Begin to read the states of probe requests."""
        worker: Any = self
        state = _State(worker.model_runner.get_model())
        execute = worker.execute_model

        def watched(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            _announce(state, scheduler_output)
            return execute(scheduler_output, *args, **kwargs)

        def read(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if state.in_pass:
                _read_pass(state, args, kwargs, output)

        worker.clear_ray_state = state
        worker.execute_model = watched
        state.model.register_forward_hook(read, with_kwargs=True)

    def clear_ray_take(self, numbers: list[int]) -> list[tuple[bytes, bytes, float] | None]:
        """Return and forget what was read of probe requests.

        Args:
            numbers: What follows `PROBE_PREFIX` in their ids.

        Returns:
            Last and mean state as bytes of float32, and the entropy in nats; None for one that was not read whole.
        """
        worker: Any = self
        state: _State = worker.clear_ray_state
        taken = [state.readings.pop(number, None) for number in numbers]
        forgotten = frozenset(numbers)
        state.number_of = {name: number for name, number in state.number_of.items() if number not in forgotten}
        return [_result(reading) for reading in taken]


def _announce(state: _State, scheduler_output: Any) -> None:
    """Note which tokens of which probe requests are in the coming pass."""
    starts: dict[str, int] = {}
    for new in scheduler_output.scheduled_new_reqs:
        found = _PROBE_NUMBER.match(new.req_id)
        if found and new.prompt_token_ids is not None:
            number = int(found[1])
            state.number_of[new.req_id] = number
            state.readings[number] = _Reading(np.asarray(new.prompt_token_ids, np.int64))
            starts[new.req_id] = new.num_computed_tokens
    state.in_pass = []
    if not state.number_of:
        return
    cached = scheduler_output.scheduled_cached_reqs
    starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    state.pass_tokens = scheduler_output.total_num_scheduled_tokens
    for name, start in starts.items():
        reading = state.readings.get(state.number_of.get(name, -1))
        if reading is not None:
            tokens = min(scheduler_output.num_scheduled_tokens[name], len(reading.token_ids) - start)
            if tokens > 0:
                state.in_pass.append((reading, start, tokens))


@torch.inference_mode()
def _read_pass(state: _State, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Add the rows of the pass that belong to probe requests to their readings."""
    in_pass, state.in_pass = state.in_pass, []
    hidden_TD = output[0] if isinstance(output, tuple) else output
    ids = kwargs.get("input_ids", args[0] if args else None)
    positions = kwargs.get("positions", args[1] if len(args) > 1 else None)
    if not isinstance(hidden_TD, torch.Tensor) or ids is None or positions is None:
        return
    # Behind them is padding. Positions with several components are those of images; text has them all alike.
    ids_T = ids[: state.pass_tokens].cpu().numpy()
    positions_T = (positions if positions.dim() == 1 else positions[0])[: state.pass_tokens].cpu().numpy()
    whole: list[_Reading] = []
    for reading, start, tokens in in_pass:
        row = _row_of(ids_T, positions_T, reading.token_ids[start : start + tokens], start)
        # One that is read again after it had to make room begins anew.
        if row is None or start not in (0, reading.seen):
            reading.seen = -1
            continue
        states_ND = hidden_TD[row : row + tokens].float()
        part_D = states_ND.sum(dim=0)
        reading.total_D = part_D if start == 0 or reading.total_D is None else reading.total_D + part_D
        reading.last_D, reading.seen = hidden_TD[row + tokens - 1].clone(), start + tokens
        if reading.seen == len(reading.token_ids):
            whole.append(reading)
    if whole:
        _add_entropy(state.model, whole)


def _row_of(
    ids_T: NDArray[np.int64], positions_T: NDArray[np.int64], wanted: NDArray[np.int64], start: int
) -> int | None:
    """Return the row from which the wanted tokens stand at the positions from `start` on; None if that is not certain.

    Two requests with the same tokens from position 0 on have the same states there, so either will do. The same tokens
    further on may stand behind others: then nothing is taken, and the prompt is read once more.
    """
    rows = [
        int(row)
        for row in np.flatnonzero(positions_T == start)
        if positions_T[row : row + len(wanted)][-1] == start + len(wanted) - 1
        and np.array_equal(ids_T[row : row + len(wanted)], wanted)
    ]
    return rows[0] if len(rows) == 1 or (rows and start == 0) else None


def _add_entropy(model: Any, readings: list[_Reading]) -> None:
    """Add the entropy of the next token; every rank of a split model takes part, the first has the logits."""
    logits_NV = model.compute_logits(
        torch.stack([reading.last_D for reading in readings if reading.last_D is not None])
    )
    if logits_NV is None:
        return
    log_p_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    entropy_N = torch.special.entr(log_p_NV.exp()).sum(dim=-1)
    for reading, entropy in zip(readings, entropy_N, strict=True):
        reading.entropy = entropy


def _result(reading: _Reading | None) -> tuple[bytes, bytes, float] | None:
    if reading is None or reading.total_D is None or reading.last_D is None or reading.entropy is None:
        return None
    if reading.seen != len(reading.token_ids):
        return None
    last_D, mean_D = reading.last_D.float(), reading.total_D / reading.seen
    return last_D.cpu().numpy().tobytes(), mean_D.cpu().numpy().tobytes(), float(reading.entropy)
