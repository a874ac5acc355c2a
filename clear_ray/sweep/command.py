"""`clear-ray sweep` as a typer command."""

from __future__ import annotations

import json
from typing import Annotated, get_args

import typer

from clear_ray.config.scoring import VoteKind
from clear_ray.errors import ConfigError
from clear_ray.report.printing import print_result

_DEFAULT_BUDGETS = "8,12,16,24,32,48,64,96,128,192,256,320"


def sweep(
    rollouts: Annotated[str, typer.Option("--rollouts", help="Parquet of the recorded rollouts to judge on.")],
    features: Annotated[
        str,
        typer.Option("--features", help="Parquet of their probe features; or `text`, `length`, `task`, with commas."),
    ],
    output: Annotated[str, typer.Option("--output", help="Folder for sweep.json, sweep.txt and the figure.")],
    train: Annotated[str | None, typer.Option("--train", help="Folder of other rollouts to fit heads on.")] = None,
    folds: Annotated[str | None, typer.Option("--folds", help="Or JSON of folds, for cross-fitting.")] = None,
    budgets: Annotated[str, typer.Option("--budgets", help="Average tokens a query, with commas.")] = _DEFAULT_BUDGETS,
    policies: Annotated[
        str, typer.Option("--policies", help="Names with commas, or `all` that can be played.")
    ] = "all",
    seeds: Annotated[int, typer.Option("--seeds", help="Fits and orders of breaking ties to average over.")] = 1,
    on_ray: Annotated[
        bool, typer.Option("--on-ray", help="Also run clear_ray and uniform_refunds on Ray, one run a seed: slow.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose answers, where the file has those of several.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            "--agreement",
            help="How final answers are read that learning_without_gold compares: exact, number, choice, math or json.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the table.")] = False,
) -> None:
    """Replay recorded rollouts under every policy over a range of budgets; nothing is generated."""
    from clear_ray.run_folder.locations import refuse_passing
    from clear_ray.storage import open_folder
    from clear_ray.sweep.budgets import SWEEP
    from clear_ray.sweep.budgets import sweep as sweep_budgets
    from clear_ray.sweep.rows import table

    refuse_passing(open_folder(output), "--output")
    found = sweep_budgets(
        rollouts,
        features,
        train=train,
        folds_path=folds,
        budgets=_numbers(budgets),
        policies=None if policies == "all" else _words(policies),
        model=model,
        agreement=_kind(agreement),
        seeds=seeds,
        on_ray=f"{output}/runs" if on_ray else None,
    )
    found.write(output)
    if as_json:
        print_result(json.dumps({"output": f"{output}/{SWEEP}", "summary": found.summary}))
        return
    lines = [table(found.rows)]
    for name, figures in found.summary.items():
        lines.append(f"\n{name.replace('_', ' ')}")
        for policy, by_budget in figures.items():
            lines.append(f"  {policy:<22}" + "".join(_cell(budget, value) for budget, value in by_budget.items()))
    print_result("\n".join([*lines, f"\nWritten to {output}."]))


def _cell(budget: str, value: float | None) -> str:
    return f"{budget:>6}: " + (f"{value:5.2f}" if value is not None else "    -")


def _kind(text: str | None) -> VoteKind | None:
    known = {kind: kind for kind in get_args(VoteKind)}
    if text is not None and text not in known:
        raise ConfigError("no such way to read answers", "--agreement", text, remedy=f"Use one of {', '.join(known)}.")
    return None if text is None else known[text]


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError as error:
        raise ConfigError(
            "budgets are numbers with commas between them", "--budgets", text, remedy="Write them as 16,32,64."
        ) from error
