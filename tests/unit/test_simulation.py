"""A thousand seeded schedules of faults over the real market, ledger, journal, stage and clearing (`simulation.py`)."""

from __future__ import annotations

import pytest

from tests.unit.simulation import BATCHES, FAULTS, Simulation, simulate, world_of_attempts, world_of_learning

SCHEDULES = 1_000
_PER_TEST = 100
OVERLAPPING_SEEDS = (2, 28, 29, 31, 44, 109, 125, 127, 131, 163)
"""Of batches whose price is cleared at least twice beside running grants when nothing dies."""


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
    played = [simulate(seed, given=world_of_learning(seed % 4)) for seed in range(8)]
    struck = [
        simulate(seed, given=world_of_learning(seed % 4), is_faultless=True, beside=((1, seed % 3, kind),))
        for seed, kind in enumerate(FAULTS)
    ]
    for simulation in [*played, *struck]:
        assert any(granted.is_beside for granted in simulation.grants.values()), simulation.seed
    assert any(simulation.wasted_tokens for simulation in played)


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
