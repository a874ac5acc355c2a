"""Lessons of runs in a store: what is kept, what the next run makes of it, and what is passed over by name."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.engine.base import Features, ModelCard
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import Observed
from clear_ray.estimation.feature_sets import read_for
from clear_ray.estimation.head_store import MOST_FILES, HeadStore, KeptLesson, fit_stored_head
from clear_ray.storage import open_folder

MODEL = ModelCard("small", "f" * 64, 512, 0)
SETS = ("text", "ngrams")
KINDS = ("What is the capital of country {}?", "Multiply {} by 37 and add 12, step by step.")


def features_of(texts: list[str]) -> Features:
    none = np.zeros((len(texts), 0), np.float32)
    return Features(
        np.array([len(text.split()) for text in texts]), np.full(len(texts), np.nan, np.float32), none, none
    )


def lesson(*, queries: int = 40, seed: int = 0, sets: tuple[str, ...] = SETS, is_swapped: bool = False) -> KeptLesson:
    """Return answers to two kinds of query: one ends soon and right, the other late and wrong."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, queries)
    texts = [KINDS[k].format(n) for k, n in zip(kind.tolist(), rng.integers(10, 99, queries).tolist(), strict=True)]
    is_easy = (kind == 0) != is_swapped
    tokens = np.where(is_easy, rng.integers(5, 12, queries), rng.integers(80, 120, queries))
    tasks = [str(k) for k in kind] if "task" in sets else None
    observed = Observed(np.arange(queries), tokens, np.ones(queries, bool), is_easy.astype(float))
    return KeptLesson(read_for(sets, features_of(texts), texts, tasks), observed)


def store_at(path: Path, **changes: object) -> HeadStore:
    return replace(HeadStore(open_folder(str(path)), MODEL, SETS), **changes)  # type: ignore[arg-type]


def keep(store: HeadStore, name: str, seconds: float = 0.0, **kinds: object) -> None:
    store.keep(name, lesson(sets=store.sets, **kinds), ended_seconds=seconds, evidence_nats=1.0)  # type: ignore[arg-type]


def believed_right_by(store: HeadStore, tokens: int) -> list[float]:
    """Return the believed chance of a right answer within some tokens, of a new query of each kind."""
    grid = token_grid(128)
    head = fit_stored_head(store.read(), store, tokens_K=grid, label="verdict", seed=0)
    texts = [kind.format(55) for kind in KINDS]
    found = head.incidence_of(read_for(store.sets, features_of(texts), texts, None))
    return [float(row[np.searchsorted(grid, tokens)]) for row in found.right_NK]


@pytest.mark.parametrize("sets", [SETS, ("text",), ("ngrams", "length", "task")])
def test_what_is_read_back_is_what_was_kept(tmp_path: Path, sets: tuple[str, ...]) -> None:
    store, kept = store_at(tmp_path, sets=sets), lesson(sets=sets)
    kept = replace(kept, observed=replace(kept.observed, right_M=np.where(np.arange(40) % 3, 1.0, np.nan)))
    card = store.keep("a", kept, ended_seconds=5.0, evidence_nats=2.5)
    found = store.read()
    assert (found.cards, found.passed_over) == ((card,), ())
    (read,) = found.lessons
    assert np.array_equal(read.readings.prompt_tokens_N, kept.readings.prompt_tokens_N)
    assert np.array_equal(read.readings.text_NT, kept.readings.text_NT, equal_nan=True)
    assert read.readings.terms_ND.shape == kept.readings.terms_ND.shape
    assert not (read.readings.terms_ND != kept.readings.terms_ND).nnz
    assert read.readings.tasks == kept.readings.tasks
    for name in ("query_M", "tokens_M", "is_ended_M", "right_M"):
        assert np.array_equal(getattr(read.observed, name), getattr(kept.observed, name), equal_nan=True), name


def test_no_word_of_a_prompt_is_kept(tmp_path: Path) -> None:
    keep(store_at(tmp_path), "a")
    (path,) = tmp_path.rglob("*.parquet")
    table = pq.read_table(path)
    assert not {"prompt", "question"} & set(table.column_names)
    said = json.dumps(table.to_pydict()) + path.read_bytes().decode("latin-1")
    assert not any(word in said.lower() for word in ("capital", "multiply", "country"))


def test_a_head_of_the_store_tells_kinds_apart_and_lessons_add_up(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    keep(store, "a", 1.0)
    easy, hard = believed_right_by(store, 16)
    assert easy > 0.6 > 0.3 > hard
    keep(store, "b", 2.0, seed=1)
    found = store.read()
    assert [card.run_id for card in found.cards] == ["b", "a"]
    head = fit_stored_head(found, store, tokens_K=token_grid(64), label="verdict", seed=0)
    assert head.card.diagnostics["answers"] == 80
    assert head.card.model_fingerprint == MODEL.fingerprint
    of_endings = fit_stored_head(found, store, tokens_K=token_grid(64), label="ended", seed=0)
    assert (head.card.label, of_endings.card.label) == ("verdict", "ended")
    alone = fit_stored_head(store.read(most_answers=1), store, tokens_K=token_grid(64), label="verdict", seed=0)
    assert alone.card.diagnostics["answers"] == 40
    assert alone.card.data_digest != head.card.data_digest
    better_easy, better_hard = believed_right_by(store, 16)
    assert better_easy - better_hard > easy - hard


def test_queries_unlike_all_that_was_seen_get_the_uninformed_law(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    keep(store, "a")
    head = fit_stored_head(store.read(), store, tokens_K=token_grid(64), label="verdict", seed=0)
    texts = ["def f(x):\n    return [y ** 2 for y in x if (y + 1) % 2]\n# What does f do? (((" * 9] * 2
    one, other = head.incidence_of(read_for(SETS, features_of(texts), texts, None)).right_NK
    assert np.array_equal(one, other)
    known = [KINDS[0].format(11)]
    assert abs(head.incidence_of(read_for(SETS, features_of(known), known, None)).right_NK[0] - one).max() > 0.1


def test_other_models_and_features_have_entries_of_their_own(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    keep(store, "a")
    for other in (store_at(tmp_path, model=replace(MODEL, fingerprint="e" * 64)), store_at(tmp_path, sets=("text",))):
        assert other.entry != store.entry
        assert (other.read().lessons, other.read().passed_over) == ((), ())
    assert store_at(tmp_path, sets=("ngrams", "text")).entry == store.entry


def test_what_is_damaged_or_foreign_is_passed_over_by_name(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for name in ("good", "torn", "edited", "newer"):
        keep(store, name)
    folder = Path(store.entry.path)
    for name, place in (
        ("foreign", {"model": replace(MODEL, name="big", fingerprint="e" * 64)}),
        ("narrow", {"sets": ("text",)}),
    ):
        other = store_at(tmp_path, **place)
        keep(other, name)
        (Path(other.entry.path) / f"{name}.parquet").rename(folder / f"{name}.parquet")
    torn = folder / "torn.parquet"
    torn.write_bytes(torn.read_bytes()[:-100])
    table = pq.read_table(folder / "edited.parquet")
    right = pa.array(1.0 - table["right"].to_numpy())
    pq.write_table(table.set_column(table.schema.get_field_index("right"), "right", right), folder / "edited.parquet")
    table = pq.read_table(folder / "newer.parquet")
    card = json.loads(table.schema.metadata[b"clear_ray.lesson"]) | {"format": 2}
    pq.write_table(table.replace_schema_metadata({b"clear_ray.lesson": json.dumps(card)}), folder / "newer.parquet")
    pq.write_table(pa.table({"x": [1]}), folder / "plain.parquet")
    found = store.read()
    assert [card.run_id for card in found.cards] == ["good"]
    said = dict(line.split(".parquet: ") for line in found.passed_over)
    assert said.keys() == {"torn", "edited", "newer", "foreign", "narrow", "plain"}
    assert "another model, big" in said["foreign"]
    assert "other features" in said["narrow"]
    assert "format 2" in said["newer"]
    assert "not those that its card names" in said["edited"]


def test_runs_that_end_at_once_tear_nothing_and_one_that_ends_twice_counts_once(tmp_path: Path) -> None:
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            failures.extend(store_at(tmp_path).read().passed_over)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [
        threading.Thread(
            target=lambda number=number: [keep(store_at(tmp_path), f"run{number}", seed=number) for _ in range(3)]
        )
        for number in range(4)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert failures == []
    assert sorted(card.run_id for card in store_at(tmp_path).read().cards) == ["run0", "run1", "run2", "run3"]


def test_the_oldest_of_many_lessons_are_removed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for number in range(MOST_FILES + 3):
        keep(store, f"run{number}", float(number), queries=2)
    assert len(list(Path(store.entry.path).iterdir())) == MOST_FILES
    assert store.read().cards[-1].run_id == "run3"
