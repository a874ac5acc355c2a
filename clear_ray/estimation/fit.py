"""Fit a head on rollouts and probe features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError
from clear_ray.estimation.competing_risks import fit_competing_risks
from clear_ray.estimation.cross_fitted import CrossFittedHead
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.diagnostics import diagnose
from clear_ray.estimation.encoder import encoded_features, with_encoder
from clear_ray.estimation.factorised import fit_factorised
from clear_ray.estimation.factors import Label
from clear_ray.estimation.head import Head, HeadCard
from clear_ray.estimation.observations import (
    Rollouts,
    data_digest,
    features_from_table,
    rollouts_from_table,
    take_features,
)
from clear_ray.estimation.parametric import fit_regressed_threshold, fit_shifted_erlang

FITS: Mapping[str, Callable[..., Head]] = {
    "competing_risks": fit_competing_risks,
    "factorised": fit_factorised,
    "regressed_threshold": fit_regressed_threshold,
    "shifted_erlang": fit_shifted_erlang,
}
_MIN_QUERIES = 10


def fit_head(
    rollouts: pa.Table,
    features: pa.Table | Features,
    *,
    kind: str = "competing_risks",
    seed: int = 0,
    folds: Mapping[str, int] | None = None,
    model_name: str = "",
    model_fingerprint: str = "",
    cap_tokens: int | None = None,
    created_by: str = "",
    diagnostic_folds: int = 5,
    encoder: str | None = None,
    probe_layers: int | None = None,
    label: Label = "verdict",
) -> Head:
    """Fit a head on rollouts of queries with known answers, or of which it is known which ended by themselves.

    Args:
        rollouts: Columns query_id, output_tokens, finish_reason, correct, prompt; optionally task, max_tokens and
            tok_entropy. A rollout is right at ceiling b if correct, finish_reason is stop and output_tokens <= b.
        features: Features of the same queries: a table with query_id, prompt_tokens, hidden_last, hidden_mean (entropy is
            taken from `tok_entropy` if there is no such column), or `Features` in order of first appearance in `rollouts`.
        kind: Which model of curves: a key of `FITS`.
        seed: Seed of folds and fit.
        folds: Query id to fold. If given, the result is a `CrossFittedHead`.
        model_name: Model whose features these are.
        model_fingerprint: Its fingerprint; the head is refused for another. Empty: for any.
        cap_tokens: Last point of the token grid; None: the largest `max_tokens`, or else the longest rollout.
        created_by: Command to name in the card.
        diagnostic_folds: Folds of the held-out diagnostics in the card of a plain head; 0: none.
        encoder: Local folder of an encoder whose states to fit on, in place of the hidden states in `features`.
        probe_layers: Layers of the model that `features` were read from; None for all.
        label: What `correct` says of a rollout, for the card: that it is right, or only that it ended by itself.

    Raises:
        SchemaError: A column or a query's features are missing.
        ConfigError: Unknown kind, or too few queries.
    """
    observed = rollouts_from_table(rollouts)
    _check(kind, observed)
    if not isinstance(features, Features):
        features = features_from_table(features, query_ids=observed.query_ids, rollouts=rollouts)
    longest = _longest(rollouts, observed) if cap_tokens is None else cap_tokens
    card = HeadCard(
        kind=kind,
        model_name=model_name,
        model_fingerprint=model_fingerprint,
        data_digest=data_digest(observed, features),
        seeds=(seed,),
        tokens_K=tuple(token_grid(longest).tolist()),
        created_by=created_by,
        probe_layers=probe_layers,
        label=label,
    )
    if encoder is not None:
        features = encoded_features(features, observed.prompts, encoder=encoder)
    head = _fit_and_diagnose(card, observed, features, folds=folds, seed=seed, diagnostic_folds=diagnostic_folds)
    return head if encoder is None else with_encoder(head, encoder=encoder)


def _check(kind: str, observed: Rollouts) -> None:
    if kind not in FITS:
        raise ConfigError("no such kind of head can be fitted", "kind", kind, f"Use one of {', '.join(sorted(FITS))}.")
    if len(observed) < _MIN_QUERIES:
        what = f"a head needs at least {_MIN_QUERIES} queries"
        raise ConfigError(what, "rollouts", str(len(observed)), "Sample a few hundred.")


def _longest(rollouts: pa.Table, observed: Rollouts) -> int:
    has_cap = "max_tokens" in rollouts.column_names
    return int(max(rollouts["max_tokens"].to_pylist()) if has_cap else observed.tokens_R.max())


def _fit_and_diagnose(
    card: HeadCard,
    observed: Rollouts,
    features: Features,
    *,
    folds: Mapping[str, int] | None,
    seed: int,
    diagnostic_folds: int,
) -> Head:
    if folds is not None:
        return _cross_fit(card, observed, features, folds=folds, seed=seed)
    head = _fit(card, observed, features, seed=seed)
    if not diagnostic_folds:
        return head
    drawn = np.random.default_rng(seed).permutation(np.arange(len(observed)) % diagnostic_folds)
    held_out = dict(zip(observed.query_ids, drawn.tolist(), strict=True))
    checked = _cross_fit(card, observed, features, folds=held_out, seed=seed, whole_head=head)
    figures = {**head.card.diagnostics, **checked.card.diagnostics}
    return type(head).restore(replace(head.card, diagnostics=figures), head.arrays(), head.settings())


def _fit(card: HeadCard, observed: Rollouts, features: Features, *, seed: int) -> Head:
    head = FITS[card.kind](card, observed, features, seed=seed)
    # Numbers are stored in single precision: hand out the head that a reader of the file would get.
    return type(head).restore(head.card, head.arrays(), head.settings())


def _cross_fit(
    card: HeadCard,
    observed: Rollouts,
    features: Features,
    *,
    folds: Mapping[str, int],
    seed: int,
    whole_head: Head | None = None,
) -> CrossFittedHead:
    fold_N = np.array([folds.get(query_id, -1) for query_id in observed.query_ids])
    heads = []
    for fold in range(fold_N.max(initial=-1) + 1):
        seen = np.flatnonzero(fold_N != fold)
        heads.append(_fit(card, observed.take(seen), take_features(features, seen), seed=seed))
    whole_head = whole_head or _fit(card, observed, features, seed=seed)
    head = CrossFittedHead(replace(card, kind="cross_fitted"), fold_heads=heads, whole_head=whole_head, folds=folds)
    held = np.flatnonzero(fold_N >= 0)
    kept = observed.take(held)
    curves = head.curves(take_features(features, held), kept.prompts, kept.query_ids)
    figures = diagnose(curves, kept, fold_N=fold_N[held]).figures()
    return CrossFittedHead(
        replace(head.card, diagnostics=figures), fold_heads=heads, whole_head=whole_head, folds=folds
    )
