"""A thousand seeded schedules of faults over the real market, ledger, journal, stage and clearing (`simulation.py`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clear_ray.rounds.rounds import Rounds
from tests.unit.simulation import (
    BATCHES,
    FAULTS,
    Simulation,
    World,
    attempts_of_rows,
    simulate,
    world_of_agreement,
    world_of_attempts,
    world_of_learning,
    world_of_streamed_learning,
    world_of_streaming,
    world_of_windows,
)

SCHEDULES = 1_000
_PER_TEST = 100
OVERLAPPING_SEEDS = (2, 28, 29, 31, 44, 109, 125, 127, 131, 163)
"""Of batches whose price is cleared at least twice beside running grants when nothing dies."""
LEARNING_WORLDS = (0, 1, 3)
"""Likewise, of those that learn, with any seed."""


@pytest.mark.parametrize("first", range(0, SCHEDULES, _PER_TEST))
def test_whatever_dies_no_token_is_unaccounted_for_and_no_row_is_lost(first: int) -> None:
    for seed in range(first, first + _PER_TEST):
        simulate(seed)


@pytest.mark.parametrize("first", [0])
def test_whatever_dies_an_attempt_is_made_once_and_paid_for_once(first: int) -> None:
    played = [simulate(seed, given=world_of_attempts(seed % BATCHES)) for seed in range(first, first + 60)]
    assert any(row["sample"] == 2 for simulation in played for _, row in rows_of(simulation))
    assert any(simulation.wasted_tokens for simulation in played)
    for simulation in played:
        for index, attempts in enumerate(simulation.rounds.states.attempt_N):
            samples = {row["sample"] for _, row in rows_of(simulation) if row["index"] == index}
            assert samples == set(range(attempts))


def test_whatever_dies_a_run_that_compares_answers_grants_what_follows_from_what_is_on_disk() -> None:
    played = [simulate(seed, given=world_of_agreement(seed)) for seed in (3, 4)]
    again = dict.fromkeys(FAULTS, 0)
    for simulation in played:
        given, told = simulation.world, "\n".join(simulation.told)
        rounds = Rounds(given.offers, given.allocation, rule=given.rule)
        for number in sorted(simulation.grants):
            kept = simulation.grants[number]
            anew = rounds.next(kept.available_tokens)
            assert anew is not None
            for name in ("index_M", "tokens_M", "is_fresh_M"):
                np.testing.assert_array_equal(getattr(anew.clearing, name), getattr(kept.clearing, name))
            rounds.take(number, [attempts_of_rows(simulation.rows[number])])
        np.testing.assert_array_equal(rounds.states.chosen_round_N, simulation.rounds.states.chosen_round_N)
        asked_again = int((rounds.states.attempt_N > 1).sum())
        assert 0 < asked_again < 20, "a small part of the batch"
        for kind in FAULTS:
            again[kind] += asked_again * (f"{kind} dies" in told)
    assert all(again.values()), again


@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_dies_between_clearings_that_overlap_is_made_good(kind: str) -> None:
    """It dies as soon as such a clearing is on disk, before anything acts on it, or while it and the one before run."""
    for seed in OVERLAPPING_SEEDS:
        for beside in (((1, 3, kind), (2, 0, kind)), ((1, 0, kind), (2, 1, "driver"))):
            played = simulate(seed, is_faultless=True, beside=beside)
            drivers = sum(one == "driver" for _, one in played.faults)
            assert played.faults, "no clearing was made beside running grants"
            assert len([line for line in played.told if line.endswith("run again")]) <= drivers


def test_whatever_dies_in_a_run_that_learns_its_stages_are_made_good() -> None:
    """Its batches are played as they are drawn, and struck between clearings that overlap."""
    worlds = [world_of_learning(number) for number in LEARNING_WORLDS]
    played = [simulate(seed, given=worlds[seed % 3]) for seed in range(8)]
    struck = [
        simulate(seed, given=worlds[seed % 3], is_faultless=True, beside=((1, seed % 3, kind),))
        for seed, kind in enumerate(FAULTS)
    ]
    assert any(granted.is_beside for simulation in played for granted in simulation.grants.values())
    assert any(simulation.wasted_tokens for simulation in played)
    for simulation in struck:
        assert simulation.faults, "no clearing was made beside running grants"


@pytest.mark.parametrize("first", range(0, 200, _PER_TEST))
@pytest.mark.parametrize("world_of", [world_of_streaming, world_of_windows])
def test_whatever_dies_a_batch_that_is_priced_while_it_is_read_is_answered(
    first: int, world_of: Callable[[int], World]
) -> None:
    played = [simulate(seed, given=world_of(seed % BATCHES)) for seed in range(first, first + _PER_TEST)]
    assert any(simulation.wasted_tokens for simulation in played)
    for simulation in played:
        assert sorted(simulation.estimated) == list(range(simulation.queries)), "a prompt is read once"
        known = [simulation.grants[number].known_queries for number in sorted(simulation.grants)]
        amid = [queries for queries in known if queries is not None]
        assert known[: len(amid)] == amid == sorted(amid), "once all is read it stays so"
        assert known[0] is None or known[0] < simulation.queries / 2, "it was to begin with a part"


@pytest.mark.parametrize("kind", [*FAULTS, "reader"])
@pytest.mark.parametrize("world_of", [world_of_streaming, world_of_windows])
def test_whatever_dies_between_clearings_of_what_was_read_is_made_good(
    kind: str, world_of: Callable[[int], World]
) -> None:
    """It dies as soon as such a clearing is on disk, or while its grants run and the next part is read."""
    for seed in range(8):
        for beside in (
            ((1, 0, kind), (3, 5, kind)),
            ((2, 1, kind), (2, 9, "driver")),
            ((4, 2, kind), (4, 2, "reader")),
        ):
            played = simulate(seed, given=world_of(seed), is_faultless=True, beside=beside)
            assert played.faults, "no clearing was made while prompts were read"
            drivers = sum(one == "driver" for _, one in played.faults)
            assert len([line for line in played.told if line.endswith("run again")]) <= drivers


def test_whatever_dies_in_a_run_that_learns_while_it_is_read_is_made_good() -> None:
    """Its batches are played as they are drawn, and struck amid the reading."""
    worlds = [world_of_streamed_learning(number) for number in range(4)]
    played = [simulate(seed, given=worlds[seed % 4]) for seed in range(12)]
    struck = [
        simulate(
            seed, given=worlds[seed % 4], is_faultless=True, beside=((which, seed % 3, kind), (which + 2, 4, kind))
        )
        for seed, (kind, which) in enumerate((kind, which) for kind in (*FAULTS, "reader") for which in (1, 3))
    ]
    assert any(simulation.wasted_tokens for simulation in played)
    for simulation in (*played, *struck):
        assert sorted(simulation.estimated) == list(range(simulation.queries)), "a prompt is read once"
        known_at, granted = {index: at for at, index in enumerate(simulation.estimated)}, simulation.grants
        known = [granted[number].known_queries for number in sorted(granted)]
        amid = [queries for queries in known if queries is not None]
        assert amid, "it was to begin with a part"
        assert known[: len(amid)] == amid == sorted(amid), "once all is read it stays so"
        for number, queries in enumerate(amid, 1):
            assert max(known_at[index] for index in granted[number].clearing.index_M.tolist()) < queries
    assert all(simulation.faults for simulation in struck)


def test_a_driver_that_died_amid_the_reading_grants_what_it_had_granted() -> None:
    """Its successor finds the clearings made over a part, and what it grants is theirs, to the number."""
    alone = simulate(5, given=world_of_streaming(5), is_faultless=True)
    struck = simulate(5, given=world_of_streaming(5), is_faultless=True, beside=((2, 0, "driver"),))
    for number in (1, 2):
        kept, again = (run.grants[number] for run in (alone, struck))
        assert kept.known_queries == again.known_queries
        np.testing.assert_array_equal(kept.clearing.index_M, again.clearing.index_M)
        np.testing.assert_array_equal(kept.clearing.tokens_M, again.clearing.tokens_M)
    assert any(line.endswith("run again") for line in struck.told)


def test_a_schedule_is_the_same_every_time() -> None:
    def story(played: Simulation) -> object:
        rows = [(number, row["index"], row["attempt"], row["attempt_tokens"]) for number, row in rows_of(played)]
        return played.told, rows, played.generated_N

    for seed in (4, 5, 7, 40, 41, 123):
        assert story(simulate(seed)) == story(simulate(seed)), f"seed {seed}"


def test_the_schedules_are_worth_playing() -> None:
    """Faults of every kind strike while something runs, rounds follow rounds, and something is lost on the way."""
    played = [simulate(seed) for seed in range(60)]
    told = "\n".join(line for simulation in played for line in simulation.told)
    assert all(f"{kind} dies" in told for kind in FAULTS)
    assert "round 3" in told
    assert any(granted.is_beside for simulation in played for granted in simulation.grants.values())
    assert any(simulation.wasted_tokens for simulation in played)
    assert any(row["error"] for simulation in played for _, row in rows_of(simulation)), "no query was quarantined"
    assert sum(len(list(rows_of(simulation))) for simulation in played) > 100


def rows_of(played: Simulation) -> list[tuple[int, dict[str, object]]]:
    return [(number, row) for number in sorted(played.rows) for row in played.rows[number]]
