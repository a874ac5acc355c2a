"""Which rows of a pass belong to which prompt, told without vLLM: passes as its workers see them, cut, padded and mixed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.engine.vllm_probe import PROBE_PREFIX, VllmProbe

WIDTH, VOCABULARY = 5, 9


class Model(torch.nn.Module):
    """A state for each token that depends on all tokens up to it, as in a causal model; rows of a pass in any order."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.head = torch.randn(WIDTH, VOCABULARY, generator=generator)
        self.directions = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.known: list[list[int]] = []  # whole prompts, by row of the pass

    def forward(self, *, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        states = torch.full((len(input_ids), WIDTH), 77.0)  # what padding holds
        for row, prompt in enumerate(self.known):
            states[row] = self.states(prompt)[positions[row]]
        return states

    def states(self, prompt: list[int]) -> torch.Tensor:
        return torch.cumsum(self.directions[torch.tensor(prompt)], dim=0).tanh()

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.head


class Worker(VllmProbe):
    """What `VllmProbe` is mixed into: a runner with a model, and passes that the scheduler orders."""

    def __init__(self, model: Model) -> None:
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.model = model
        self.seen: dict[str, list[int]] = {}

    def execute_model(self, scheduler_output: Any) -> None:
        ids, positions, known = [], [], []
        for name in scheduler_output.order:
            start, tokens = scheduler_output.starts[name], scheduler_output.num_scheduled_tokens[name]
            ids += self.seen[name][start : start + tokens]
            positions += range(start, start + tokens)
            known += [self.seen[name]] * tokens
        self.model.known = known
        # Padding that looks like the beginning of the pass before it.
        self.model(input_ids=torch.tensor(ids + ids[:3]), positions=torch.tensor(positions + positions[:3]))


def run_pass(worker: Worker, new: dict[str, list[int]], parts: list[tuple[str, int, int]]) -> None:
    """Run one pass over parts of prompts: name, first position, tokens, in the order of the rows."""
    worker.seen |= new
    cached = [(name, start) for name, start, _ in parts if name not in new]
    starts = {name: start for name, start, _ in parts}
    worker.execute_model(
        SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(req_id=name, prompt_token_ids=ids, num_computed_tokens=starts[name])
                for name, ids in new.items()
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[name for name, _ in cached], num_computed_tokens=[start for _, start in cached]
            ),
            num_scheduled_tokens={name: tokens for name, _, tokens in parts},
            total_num_scheduled_tokens=sum(tokens for _, _, tokens in parts),
            starts=starts,
            order=[name for name, _, _ in parts],
        )
    )


def watched() -> Worker:
    worker = Worker(Model())
    worker.clear_ray_watch()
    return worker


def check(worker: Worker, number: int, prompt: list[int]) -> None:
    (taken,) = worker.clear_ray_take([number])
    assert taken is not None
    states = worker.model.states(prompt)
    log_p = torch.log_softmax(worker.model.compute_logits(states[-1:]), dim=-1)[0]
    np.testing.assert_allclose(np.frombuffer(taken[0], np.float32), states[-1], atol=1e-6)
    np.testing.assert_allclose(np.frombuffer(taken[1], np.float32), states.mean(dim=0), atol=1e-6)
    assert taken[2] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-6)
    assert worker.clear_ray_take([number]) == [None]  # taken once


@settings(deadline=None, max_examples=60)
@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5),
    others=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), max_size=3),
    room=st.integers(1, 15),
    seed=st.integers(0, 99),
)
def test_every_prompt_is_read_whole_however_it_is_cut_and_mixed(
    prompts: list[list[int]], others: list[list[int]], room: int, seed: int
) -> None:
    worker, rng = watched(), np.random.default_rng(seed)
    names = {f"{PROBE_PREFIX}{n}-abcd": prompt for n, prompt in enumerate(prompts)}
    names |= {f"clear_ray-{n}-abcd": prompt for n, prompt in enumerate(others)}
    done: dict[str, int] = dict.fromkeys(names, 0)
    begun: set[str] = set()
    while any(done[name] < len(prompt) for name, prompt in names.items()):
        parts, left = [], room
        for name in done:
            tokens = min(left, len(names[name]) - done[name])
            if tokens:
                parts.append((name, done[name], tokens))
                done[name] += tokens
                left -= tokens
        new = {name: names[name] for name, _, _ in parts if name not in begun}
        begun |= set(new)
        rng.shuffle(parts)
        run_pass(worker, new, [(str(name), int(start), int(tokens)) for name, start, tokens in parts])
    for number, prompt in enumerate(prompts):
        # What could be another prompt's is not taken; that takes a cut and the same tokens at the same positions.
        is_cut = room < sum(map(len, names.values()))
        if worker.clear_ray_state.readings[number].entropy is not None or not is_cut:
            check(worker, number, prompt)


def test_what_could_be_another_prompts_is_not_taken() -> None:
    worker, one, other = watched(), [1, 2, 3, 1, 2], [3, 3, 3, 1, 2]
    names = [f"{PROBE_PREFIX}{number}-x" for number in range(2)]
    run_pass(worker, {names[0]: one}, [(names[0], 0, 3)])
    run_pass(worker, {names[1]: other}, [(names[1], 0, 5), (names[0], 3, 2)])
    assert worker.clear_ray_take([0]) == [None]
    check(worker, 1, other)
    run_pass(worker, {names[0]: one}, [(names[0], 0, 5)])
    check(worker, 0, one)


def test_a_prompt_that_made_room_is_read_again_from_its_start() -> None:
    worker, prompt = watched(), [1, 2, 3, 1, 2]
    name = f"{PROBE_PREFIX}7-x"
    run_pass(worker, {name: prompt}, [(name, 0, 3)])
    run_pass(worker, {}, [(name, 0, 4)])
    run_pass(worker, {}, [(name, 4, 1)])
    check(worker, 7, prompt)


def test_a_prompt_of_which_a_part_was_not_seen_is_told() -> None:
    worker = watched()
    name = f"{PROBE_PREFIX}1-x"
    run_pass(worker, {name: [1, 2, 3, 1, 2]}, [(name, 2, 3)])  # the first two from a cache
    assert worker.clear_ray_take([1, 2]) == [None, None]
