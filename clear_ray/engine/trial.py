"""Which way of running a model gives the tokens that transformers' own passes give: the model itself is asked.

Architectures differ in what they do with positions, masks and caches. Instead of a list of names, a short text is read in
one plain pass and in the pieces in which a batch would read it; the way that comes to the same logits is taken. What comes of
that for each architecture that transformers has, `architectures.py` knows before weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from clear_ray.engine.architectures import refuse_unfit, unfit
from clear_ray.engine.context import moving_positions
from clear_ray.engine.graphs import GraphRunner
from clear_ray.engine.own_caches import OwnCacheRunner, OwnCaches
from clear_ray.engine.slot_cache import SlotCache, SlotRunner

Way = Literal["slots", "own_caches"]
"""All running answers in one pass over slots, or one after the other, each with a cache of the model's own class."""

OWN_CACHE_ANSWERS = 4
"""Answers that run at the same time where they share no pass: more would only take memory."""

_TRIAL_TOKENS = 7
_MOST_TRIAL_TOKENS = 300
_WINDOWS = ("window_size", "sliding_window", "attention_chunk_size")
# Half formats differ by their own rounding, recurrent layers by the order of their sums; a wrong mask or position differs by
# whole logits.
_MOST_APART = {"slots": (1e-3, 0.25), "own_caches": (0.05, 0.5)}
TRIAL_FAILURES = (TypeError, ValueError, LookupError, RuntimeError, AttributeError, AssertionError)


@torch.inference_mode()
def find_way(model: Any, *, context_tokens: int | None = None) -> Way:
    """Return how the model's answers are to be run.

    Args:
        model: A causal language model of transformers.
        context_tokens: The longest row that there will be; None for the longest that the model reads.

    Raises:
        ConfigError: Neither way gives the logits of a plain pass, or the architecture is known to go wrong further on.
    """
    refuse_unfit(model.config)
    way, reason = try_ways(model, context_tokens)
    if way is None:
        raise unfit(model.config, reason)
    return way


@torch.inference_mode()
def try_ways(model: Any, context_tokens: int | None = None) -> tuple[Way | None, str]:
    """Return the first way that gives the logits of a plain pass, and why the one before it does not; None if none does."""
    ids = _trial_ids(model)
    reason = moving_positions(model.config, context_tokens)
    ways: tuple[Way, ...] = ("own_caches",) if reason else ("slots", "own_caches")
    for way in ways:
        try:
            apart = _logits_apart(model, ids, way)
        except NotImplementedError as error:
            reason = str(error)
            continue
        except TRIAL_FAILURES as error:
            reason = _BY_WAY[way].format(f"{type(error).__name__}: {_first_line(error)}")
            continue
        if apart < _MOST_APART[way][model.dtype != torch.float32]:
            return way, reason
        reason = _BY_WAY[way].format(f"logits differ by {apart:.2g} standard deviations")
    return None, reason


_BY_WAY = {
    "slots": "its layers make masks or positions of their own",
    "own_caches": "read in pieces, it does not give the tokens of a whole pass ({})",
}


def _trial_ids(model: Any) -> list[int]:
    """Return some tokens, past the model's window where that is short."""
    vocabulary = model.get_input_embeddings().num_embeddings
    text_config = model.config.get_text_config()
    windows = [getattr(text_config, name, None) for name in _WINDOWS]
    longest = max((window + 4 for window in windows if isinstance(window, int)), default=_TRIAL_TOKENS)
    tokens = max(_TRIAL_TOKENS, longest) if longest <= _MOST_TRIAL_TOKENS else _TRIAL_TOKENS
    return [(7 * i * i + 3 * i + 3) % vocabulary for i in range(tokens)]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the cache of one answer takes: so much however long it is, and so much for each of its positions."""

    answer_bytes: int
    position_bytes: int


@torch.inference_mode()
def measure_footprint(model: Any, way: Way) -> Footprint:
    """Return what an answer's cache takes, as a pass leaves it: layers differ in what they keep.

    Args:
        model: A causal language model of transformers.
        way: As `find_way` found it.
    """
    cache: Any = make_cache(way)
    runner: Any = make_runner(model, way)
    cache.reserve(2, _TRIAL_TOKENS, kept_rows=0)
    runner.prefill(cache, 0, [[0] * (_TRIAL_TOKENS - 1), []], chunk=_TRIAL_TOKENS)
    runner.decode(cache, [0, 0], [_TRIAL_TOKENS - 1, 0])
    if way == "slots":
        return Footprint(0, cache.bytes_per_position)
    long, short = cache.row_bytes(0), cache.row_bytes(1)
    per_position = max(0, long - short) // (_TRIAL_TOKENS - 1)
    return Footprint(max(0, short - per_position), per_position)


def make_runner(model: Any, way: Way, *, graphs: bool = False) -> SlotRunner | OwnCacheRunner:
    """Return what runs the model over the caches of `make_cache`.

    Args:
        model: A causal language model of transformers.
        way: As `find_way` found it.
        graphs: Whether passes of one shape share a CUDA graph, where answers share passes.
    """
    if way == "own_caches":
        return OwnCacheRunner(model)
    return GraphRunner(model) if graphs else SlotRunner(model)


def make_cache(way: Way) -> Any:
    """Return an empty cache of a way: `SlotCache` or `OwnCaches`."""
    return OwnCaches() if way == "own_caches" else SlotCache()


def _logits_apart(model: Any, ids: list[int], way: Way) -> float:
    """Return how far the logits of a pass in pieces are from those of a whole one, in their standard deviations."""
    whole_V = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float()
    cache: Any = make_cache(way)
    runner: Any = make_runner(model, way)
    cache.reserve(2, len(ids) + 64, kept_rows=0)
    runner.prefill(cache, 0, [ids[:3], ids[:-2]], chunk=max(4, len(ids) // 2))
    runner.decode(cache, [ids[3], ids[-2]], [3, len(ids) - 2])
    pieces_V = runner.decode(cache, [ids[4], ids[-1]], [4, len(ids) - 1]).logits[1, -1].float()
    apart = float((whole_V - pieces_V).abs().max()) / (float(whole_V.std()) or 1.0)
    return apart if apart == apart else float("inf")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or repr(error)
