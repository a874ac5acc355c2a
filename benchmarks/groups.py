"""How many groups of rollouts have both right and wrong ones, for the same tokens?

Every prompt is as solvable as its recorded rollouts were, and as long. A rollout is drawn from them anew each time, so that a
group may be of any size. What each policy is told at the start:

    uniform          nothing: groups of 8 of prompts in random order, until the budget is spent
    rounds           nothing: so many rollouts of every prompt a round; a prompt with a mixed group leaves, and so does one
                     that has 64 (our reading of Reinforce-Ada, arXiv 2510.04996, with 2 and with 4 a round)
    price            nothing: `RolloutGroups`, which learns from what it is told
    price_head       what a head says that was fitted on the other folds
    price_epoch      what eight rollouts of each prompt came to in an epoch before, which are not charged
    price_known      the truth: no policy can do better
    at_once_known    the truth; one call of `allocate_rollouts`, and no look at what comes back. Its tokens are expected ones,
                     so a draw may take a little more or less than the budget
    outcomes         how many prompts are how solvable, and the mean length of each, but not which is which: one rollout
                     at a time of the prompt that is likeliest to become mixed by it for its tokens. What outcomes alone can
                     teach: `price`, which is told nothing, is not to be expected above it where the budget is ample

    python benchmarks/groups.py [--draws 10] [--policies uniform_8,at_once_known] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation.rollout_groups import RolloutGroups
from clear_ray.allocation.rollouts import allocate_rollouts
from clear_ray.sweep.estimates import estimate, training_by_folds
from clear_ray.sweep.recording import Recording, read_recording

DATA = Path(__file__).parents[1] / "tests" / "data" / "rollouts"
SHARES = (0.1, 0.25, 0.5, 1.0)
MOST, GROUP, WAVE = 64, 8, 64


class World:
    """Rollouts of recorded prompts, drawn with replacement; counts what it generates."""

    def __init__(self, recording: Recording, seed: int) -> None:
        self.p_N, self.length_NS = recording.is_right_NS.mean(axis=1), recording.length_NS
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.right_N, self.wrong_N = np.zeros((2, len(recording)), np.int64)
        self.spent = 0

    def roll(self, prompt_R: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Draw a rollout of each, and count it."""
        column_R = self.rng.integers(self.length_NS.shape[1], size=len(prompt_R))
        right_R = self.rng.random(len(prompt_R)) < self.p_N[prompt_R]
        tokens_R = self.length_NS[prompt_R, column_R]
        np.add.at(self.right_N, prompt_R, right_R)
        np.add.at(self.wrong_N, prompt_R, ~right_R)
        self.spent += int(tokens_R.sum())
        return right_R, tokens_R

    def mixed(self) -> int:
        """Return how many groups have right and wrong rollouts."""
        return int(((self.right_N > 0) & (self.wrong_N > 0)).sum())


def uniform(world: World, budget: int) -> int:
    """Groups of 8; the last one may go over the budget."""
    for prompt in world.rng.permutation(len(world.p_N)):
        if world.spent >= budget:
            break
        world.roll(np.repeat(prompt, GROUP))
    return world.mixed()


def rounds(world: World, budget: int, *, each: int) -> int:
    """Rounds with elimination; the last rollouts may go over the budget."""
    active = world.rng.permutation(len(world.p_N))
    while len(active) and world.spent < budget:
        for prompt in active:
            world.roll(np.repeat(prompt, each))
            if world.spent >= budget:
                break
        has_both_N = (world.right_N > 0) & (world.wrong_N > 0)
        active = active[~has_both_N[active] & (world.right_N + world.wrong_N < MOST)[active]]
    return world.mixed()


def outcomes(world: World, budget: int) -> int:
    """One rollout at a time, by the chance that it makes its group mixed; never over the budget."""
    solvability_G, prompts_G = np.unique(world.p_N, return_counts=True)
    mean_N = world.length_NS.mean(axis=1)
    while True:
        right_N, wrong_N = world.right_N[:, None], world.wrong_N[:, None]
        believed_NG = prompts_G * solvability_G**right_N * (1.0 - solvability_G) ** wrong_N
        believed_NG = believed_NG / believed_NG.sum(axis=1, keepdims=True)
        chance_N = believed_NG @ solvability_G
        differ_N = believed_NG @ (solvability_G * (1.0 - solvability_G))
        lacks_N = np.where(world.right_N > 0, 1.0 - chance_N, np.where(world.wrong_N > 0, chance_N, differ_N))
        is_open_N = ((world.right_N == 0) | (world.wrong_N == 0)) & (world.right_N + world.wrong_N < MOST)
        worth_N = np.where(is_open_N, lacks_N / mean_N + 1e-12 * world.rng.random(len(mean_N)), -1.0)
        prompt = int(worth_N.argmax())
        if worth_N[prompt] < 0 or world.spent + world.length_NS[prompt].max() > budget:
            return world.mixed()
        world.roll(np.array([prompt]))


def epoch_before(recording: Recording, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return what a group of eight rollouts of every prompt says of it."""
    before = World(recording, seed + 1_000)
    _, tokens_R = before.roll(np.repeat(np.arange(len(recording)), GROUP))
    tokens_N = tokens_R.reshape(-1, GROUP).mean(axis=1)
    return {"tokens_N": np.maximum(tokens_N, 1.0), "solvability_N": (before.right_N + 0.25) / (GROUP + 0.5)}


def price(world: World, budget: int, *, ceiling: int, tokens_N: NDArray[np.float64], **belief: object) -> int:
    """By the price; never over the budget."""
    queries = len(world.p_N)
    groups = RolloutGroups(
        tokens_N,
        budget_tokens=budget,
        ceiling_N=np.full(queries, ceiling),
        rollouts=(2, MOST),
        **belief,  # type: ignore[arg-type]
    )
    while len(asked := groups.ask(WAVE)):
        prompt_R = np.repeat(asked.prompt_M, asked.rollouts_M)
        groups.tell(prompt_R, *world.roll(prompt_R))
    assert world.spent == groups.spent_tokens <= budget
    return world.mixed()


def at_once(world: World, budget: int, *, solvability_N: NDArray[np.float64], tokens_N: NDArray[np.float64]) -> int:
    """Buy all groups by one price and sample them whole."""
    bought = allocate_rollouts(solvability_N, tokens_N, budget_tokens=budget, rollouts=(2, MOST))
    world.roll(np.repeat(np.arange(len(tokens_N)), bought.rollouts_N))
    return world.mixed()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--policies", help="only these, and uniform_8")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    files = {"rollouts_path": str(DATA / "rollouts.parquet"), "features_path": str(DATA / "features.parquet")}
    recording = read_recording(*files.values())
    training = training_by_folds(recording, folds_path=str(DATA / "split.json"), **files)
    curves = estimate(recording, training, kinds=["competing_risks"], seed=0)["competing_risks"]
    head = {"tokens_N": np.maximum(curves.spend_NK[:, -1], 1.0), "solvability_N": curves.success_NK[:, -1]}
    mean, ceiling = recording.length_NS.mean(), recording.cap_tokens
    known = {"tokens_N": recording.length_NS.mean(axis=1), "solvability_N": recording.is_right_NS.mean(axis=1)}
    epoch_D = [epoch_before(recording, seed) for seed in range(options.draws)]
    policies: dict[str, Callable[[World, int], int]] = {
        "uniform_8": uniform,
        "rounds_4": lambda world, budget: rounds(world, budget, each=4),
        "rounds_2": lambda world, budget: rounds(world, budget, each=2),
        "price": lambda world, budget: price(world, budget, ceiling=ceiling, tokens_N=np.full(len(recording), mean)),
        "price_head": lambda world, budget: price(world, budget, ceiling=ceiling, **head),
        "price_epoch": lambda world, budget: price(world, budget, ceiling=ceiling, **epoch_D[world.seed]),
        "outcomes": outcomes,
        "price_known": lambda world, budget: price(world, budget, ceiling=ceiling, strength=1e9, **known),
        "at_once_known": lambda world, budget: at_once(world, budget, **known),
    }
    if options.policies:
        wanted = {"uniform_8", *options.policies.split(",")}
        policies = {name: play for name, play in policies.items() if name in wanted}
    rows = []
    for share in SHARES:
        budget = int(share * GROUP * recording.length_NS.mean(axis=1).sum())
        for name, play in policies.items():
            worlds = [World(recording, seed) for seed in range(options.draws)]
            mixed_D = np.array([play(world, budget) for world in worlds])
            rows.append(
                {
                    "policy": name,
                    "budget": budget,
                    "share": share,
                    "mixed": float(mixed_D.mean()),
                    "error": float(mixed_D.std(ddof=1) / np.sqrt(options.draws)),
                    "spent": float(np.mean([world.spent for world in worlds])),
                }
            )
    of = {(row["policy"], row["share"]): row["mixed"] for row in rows}
    figure = {
        "figure": "groups",
        "prompts": len(recording),
        "draws": options.draws,
        "over_uniform_8": {
            name: {str(share): of[name, share] / of["uniform_8", share] for share in SHARES} for name in policies
        },
        "rows": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(figure, indent=1) + "\n")
    print(json.dumps(figure))


if __name__ == "__main__":
    main()
