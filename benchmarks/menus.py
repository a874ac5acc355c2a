"""What do several models under one price answer, against each of them alone and any mixture, at the same money?

Replays of recorded answers through the real law: `Rounds`, the ledger in money, `MenuOffers`. Nothing is known at the start;
pilot and stages are charged. Money is what the recorded token counts cost by the price lists below, prompts included.

    python benchmarks/menus.py FOLDER [--set NAME] [--mode solved,once] [--draws 2] [--shares 0.1,0.5]
    python benchmarks/menus.py --figure ROWS.json          writes docs/figures/menus.svg from rows of mode `solved`

FOLDER holds zeroeval_math.parquet and epoch_gpqa_aime.parquet. Prints one JSON line a set and mode.

Modes. `solved`: a scorer says at once whether an answer is right, and a wrong or cut one may be followed by one of a dearer
model. `once`: what has ended is the answer, right or wrong; the scorer only teaches.

Yardsticks, in hindsight on the same answers: *single*, the best (model, ceiling) for all; *mixture*, the best random mixture
of those, "no call" included; *oracle*, each query's own best (model, ceiling) by all its recorded answers. In mode `solved`
also *ladder*: the best mixture of plans that treat all queries alike, each a ceiling for every model or none, asked in their
order until an answer is right. Nothing that knows queries apart by nothing can be above it, whatever it knows of the models.

*told*: the same law, told at the start and for nothing what all recorded answers to the other queries teach of each model, by
what is known of a query. A run that learns the same from fewer answers, and pays for them, is not to be expected above it.

Budgets are shares of what the dearest model takes without a ceiling.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from figures import drawn
from recorded_menus import PRICES, Recorded, yardsticks

from clear_ray.batch.learning import incidence_of
from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.money import COST_PARTS
from clear_ray.engine.base import Features
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Observed
from clear_ray.estimation.hazards import Incidence
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import Ledger
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS
from clear_ray.rounds.menu_beliefs import MenuBeliefs
from clear_ray.rounds.menu_courses import Seen
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.menu_pilot import stretch_J
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates

Array = NDArray[np.float64]
INCIDENCE = ("right_NK", "wrong_NK", "survival_NK")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SETS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], int]] = {
    "math-l5": ("zeroeval_math", ("math-l5",), tuple(list(PRICES)[0:4]), 1),
    "gsm": ("zeroeval_math", ("gsm",), tuple(list(PRICES)[4:8]), 1),
    "sizes": ("epoch_gpqa_aime", ("gpqa_diamond", "otis_mock_aime"), tuple(list(PRICES)[8:11]), 4),
    "efforts": ("epoch_gpqa_aime", ("otis_mock_aime",), tuple(list(PRICES)[11:14]), 8),
    "thinking": ("epoch_gpqa_aime", ("gpqa_diamond", "otis_mock_aime"), tuple(list(PRICES)[14:17]), 1),
}
"""File, tasks, models, and in how many copies, each with answers of its own, a query is in a batch."""


FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "menus.svg"
STYLES = {
    "menu": ("clear_ray, nothing known beforehand", "#2f7ed8", "-", 2.4),
    "mixture": ("best mixture of (model, ceiling)", "#888888", "--", 1.6),
    "single": ("best single (model, ceiling)", "#888888", ":", 1.4),
    "ladder": ("best plan for all queries alike, wrong answers followed", "#3f9f5f", "--", 1.2),
    "oracle": ("each query's own best, in hindsight", "#d08b2f", "-.", 1.4),
}


def read(folder: Path, name: str) -> tuple[Recorded, int]:
    """Return the queries of a set that all its models have answered often enough, and its copies."""
    file, tasks, models, copies = SETS[name]
    table = pq.read_table(folder / f"{file}.parquet")
    rows = [row for row in table.to_pylist() if row["task"] in tasks and row["model"] in models]
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        answers.setdefault((row["query_id"], row["model"]), []).append(row)
    samples = 8 if copies > 1 else 1
    ids = sorted({query for query, _ in answers})
    ids = [query for query in ids if all(len(answers.get((query, model), ())) >= samples for model in models)]

    def column(field: str) -> NDArray[Any]:
        return np.array([[[r[field] for r in answers[q, m][:samples]] for q in ids] for m in models])

    prompt = np.array([[answers[q, m][0]["prompt_tokens"] for q in ids] for m in models], np.int64)
    first = [answers[q, models[0]][0] for q in ids]
    return (
        Recorded(
            models,
            tuple(ids),
            np.maximum(column("output_tokens").astype(np.int64), 1),
            column("correct").astype(bool),
            column("finish_reason") == "length",
            prompt,
            _coordinates(first),
        ),
        copies,
    )


def _coordinates(rows: Sequence[dict[str, Any]]) -> Array:
    """Return what is known of a query before it is asked: its text, or else its task and its length."""
    lengths = np.array([row["prompt_tokens"] for row in rows], np.int64)
    if "prompt" in rows[0]:
        nothing = np.zeros((len(rows), 0), np.float32)
        features = Features(lengths, np.zeros(len(rows), np.float32), nothing, nothing)
        prompts = [row["prompt"] for row in rows]
        return np.asarray(fit_coordinates(features, prompts, sets=("text", "ngrams"))(features, prompts))
    tasks = sorted({row["task"] for row in rows})
    is_task = np.array([[row["task"] == task for task in tasks] for row in rows], float)
    logs = np.log(np.maximum(lengths, 1))
    return np.concatenate([is_task, ((logs - logs.mean()) / max(logs.std(), 1e-9))[:, None]], axis=1)


def grid_of(recorded: Recorded) -> NDArray[np.int64]:
    """Return the token grid of all curves."""
    return token_grid(int(recorded.length_JNS.max()), points=32)


def told(recorded: Recorded) -> tuple[Incidence, ...]:
    """Return what all recorded answers to the other queries teach of each model."""
    shape = recorded.length_JNS.shape
    model_M, query_M, _ = (of.ravel() for of in np.indices(shape))
    ended_M = ~recorded.is_cut_JNS.ravel()
    right_M = np.where(ended_M, recorded.is_right_JNS.ravel().astype(float), np.nan)
    answers = Observed(query_M, recorded.length_JNS.ravel(), ended_M, right_M)
    beliefs = MenuBeliefs(
        x_NP=recorded.x_NP,
        tokens_K=grid_of(recorded),
        stretch_J=stretch_J(calls_of(recorded, np.arange(shape[1]))),
    )
    believed = beliefs.after(Seen(answers, model_M, np.zeros(len(query_M), np.int64)))
    return tuple(incidence_of(curves) for curves in believed.fresh)


def calls_of(recorded: Recorded, row_N: NDArray[np.int64]) -> tuple[CallCosts, ...]:
    """Return what calls of each model take, of the queries at `row_N`."""
    return tuple(
        CallCosts(
            np.full(len(row_N), prices.token_parts),
            np.full(len(row_N), prices.read_parts),
            recorded.prompt_tokens_JN[j][row_N],
        )
        for j, prices in enumerate(recorded.prices())
    )


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch of a recorded set: each query in some copies, with one recorded answer of each model.

    Attributes:
        row_N: Which of the recorded queries each of the batch is.
        length_JN: Tokens of its answer by each model.
        is_right_JN: Whether it is right.
        is_cut_JN: Whether it was itself cut off.
        calls: What calls of each model take.
    """

    row_N: NDArray[np.int64]
    length_JN: NDArray[np.int64]
    is_right_JN: NDArray[np.bool_]
    is_cut_JN: NDArray[np.bool_]
    calls: tuple[CallCosts, ...]

    @classmethod
    def of(cls, recorded: Recorded, copies: int, rng: np.random.Generator) -> Drawn:
        """Draw which answers the copies have."""
        _, queries, samples = recorded.length_JNS.shape
        sample_NC = np.array([rng.permutation(samples)[:copies] for _ in range(queries)])
        row_N, sample_N = np.repeat(np.arange(queries), copies), sample_NC.ravel()
        each = (recorded.length_JNS, recorded.is_right_JNS, recorded.is_cut_JNS)
        return cls(row_N, *(of[:, row_N, sample_N] for of in each), calls_of(recorded, row_N))

    def answered(self, granted: Round, states: QueryStates, ledger: Ledger, cost_N: Array) -> list[Attempts]:
        """Run the grants of a round for which the ledger has money; return what came of them."""
        clearing = granted.clearing
        option_M = np.zeros_like(clearing.index_M) if clearing.option_M is None else clearing.option_M
        before_M = np.where(states.begins_M(clearing), 0, states.answer_tokens_N[clearing.index_M])
        asked = zip(
            clearing.index_M.tolist(), clearing.tokens_M.tolist(), clearing.parts_M(cost_N).tolist(), strict=True
        )
        entries = [ledger.admit(index, tokens, parts) for index, tokens, parts in asked]
        served = [(place, entry.attempt) for place, entry in enumerate(entries) if isinstance(entry, Entry)]
        place_M = np.array([place for place, _ in served], np.int64)
        if not len(place_M):
            return []
        index_M, tokens_M, model_M = clearing.index_M[place_M], clearing.tokens_M[place_M], option_M[place_M]
        before_M = before_M[place_M]
        length_M = self.length_JN[model_M, index_M]
        answer_M = np.minimum(length_M, before_M + tokens_M)
        for (_, attempt), index, model, before, answer in zip(
            served, index_M.tolist(), model_M.tolist(), before_M.tolist(), answer_M.tolist(), strict=True
        ):
            taken = self.calls[model].taken_parts(np.array([index]), np.array([answer - before]), np.array([before]))
            ledger.settle(index, attempt, answer - before, int(taken[0]))
        is_whole_M = (answer_M == length_M) & ~self.is_cut_JN[model_M, index_M]
        at_end_M = (answer_M == length_M) & ~is_whole_M
        score_M = (is_whole_M & self.is_right_JN[model_M, index_M]).astype(float)
        failed_M = np.zeros(len(index_M), bool)
        return [Attempts(index_M, tokens_M, answer_M - before_M, answer_M, is_whole_M, failed_M, at_end_M, score_M)]


def run_menu(
    recorded: Recorded, copies: int, *, budget: int, mode: str, draw: int, given: Sequence[Incidence] = ()
) -> tuple[float, float, int]:
    """Run one batch; return its share of right answers, what it spent of its budget, and its rounds."""
    rng = np.random.default_rng([draw, 17])
    batch = Drawn.of(recorded, copies, rng)
    row_N, (models, queries, _) = batch.row_N, recorded.length_JNS.shape
    count = len(row_N)
    offers = MenuOffers(
        x_NP=recorded.x_NP[row_N],
        tokens_K=grid_of(recorded),
        weight_N=np.ones(count),
        max_tokens_JN=np.full((models, count), int(recorded.length_JNS.max())),
        tie_break_N=rng.permutation(count).astype(np.uint64),
        calls=batch.calls,
        budget_tokens=budget,
        objective="solved" if mode == "solved" else "correct",
        given=tuple(Incidence(*(getattr(of, name)[row_N] for name in INCIDENCE)) for of in given),
        stages=Stages(),
        fold_N=rng.permutation(np.arange(queries) % 4)[row_N],
        seed=draw,
    )
    rounds = Rounds(offers, AllocationConfig(max_rounds=LEARNING_ROUNDS, smallest_grant_tokens=1), rule=offers.rule)
    ledger, states = Ledger(budget, count, cost_N=offers.cost_N), rounds.states
    while (granted := rounds.next(ledger.available_tokens)) is not None:
        rounds.take(granted.number, batch.answered(granted, states, ledger, offers.cost_N))
    ledger.check()
    is_right_N = states.chosen_has_stopped_N & (states.chosen_score_N >= 1.0)
    return float(is_right_N.mean()), ledger.spent_tokens / budget, rounds.number


def measure(folder: Path, name: str, mode: str, draws: int, shares: Sequence[float]) -> dict[str, Any]:
    """Return one row of the benchmark."""
    started = time.process_time()
    recorded, copies = read(folder, name)
    ample = float(recorded.cost_parts_JNS()[-1].mean())
    marks = yardsticks(recorded, np.array(shares) * ample)
    count, known = len(recorded.query_ids) * copies, told(recorded)
    found, used, rounds, bound = [], [], [], []
    for share in shares:
        budget = int(share * ample * count / COST_PARTS)
        runs = [run_menu(recorded, copies, budget=budget, mode=mode, draw=draw) for draw in range(draws)]
        found.append([run[0] for run in runs])
        knowing = [
            run_menu(recorded, copies, budget=budget, mode=mode, draw=draw, given=known)[0] for draw in range(draws)
        ]
        bound.append(float(np.mean(knowing)))
        used.append(float(np.mean([run[1] for run in runs])))
        rounds.append(max(run[2] for run in runs))
    menu = np.mean(found, axis=1)
    room = np.maximum(np.array(marks["oracle"]) - marks["mixture"], 1e-9)
    way = (menu - marks["mixture"]) / room
    return {
        "set": name,
        "mode": mode,
        "models": recorded.models,
        "prices_per_million": {model: PRICES[model] for model in recorded.models},
        "queries": len(recorded.query_ids),
        "copies": copies,
        "draws": draws,
        "ample_dollars_a_query": ample / COST_PARTS / 1e9,
        "shares": list(shares),
        "menu": np.round(menu, 4).tolist(),
        "told": np.round(bound, 4).tolist(),
        "worst_draw": np.round(np.min(found, axis=1), 4).tolist(),
        **{key: np.round(values, 4).tolist() for key, values in marks.items()},
        "way_to_oracle": np.round(way, 3).tolist(),
        "way_told": np.round((np.array(bound) - marks["mixture"]) / room, 3).tolist(),
        "used": np.round(used, 3).tolist(),
        "rounds": rounds,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def draw_figure(path: Path) -> None:
    """Draw the rows of mode `solved`, a panel a set; those of one set at several shares are one line."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["mode"] == "solved":
            for at, share in enumerate(row["shares"]):
                found.setdefault(row["set"], {})[share] = {name: row[name][at] for name in STYLES if name in row}
    with drawn(FIGURE, size=(2.6 * len(found), 3.2), panels=len(found), font_size=10) as (figure, panels):
        for axes, (name, points) in zip(panels, found.items(), strict=True):
            shares = sorted(points)
            for key, (label, colour, dash, width) in STYLES.items():
                right = [points[share][key] for share in shares]
                axes.plot(shares, right, color=colour, linestyle=dash, linewidth=width, label=label)
            axes.set(title=name, xlabel="share of the dearest", xscale="log")
            axes.set_xticks([0.05, 0.2, 1.0], ["5 %", "20 %", "100 %"])
            axes.minorticks_off()
        panels[0].set_ylabel("right answers")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)


def main(arguments: Sequence[str]) -> None:
    """Print one line a set and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--set", default=",".join(SETS))
    parser.add_argument("--mode", default="solved,once")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    given = parser.parse_args(arguments)
    if given.figure is not None:
        draw_figure(given.figure)
        return
    if given.folder is None:
        parser.error("name the folder of recorded answers, or --figure ROWS.json")
    shares = [float(share) for share in given.shares.split(",")]
    for name in given.set.split(","):
        for mode in given.mode.split(","):
            row = measure(given.folder, name, mode, given.draws, shares)
            options = f"--set {name} --mode {mode} --draws {given.draws} --shares {given.shares}"
            told = {"date": date.today().isoformat(), "command": f"python benchmarks/menus.py FOLDER {options}"}
            print(json.dumps(row | told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
