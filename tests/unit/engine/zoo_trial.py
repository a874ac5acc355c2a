"""One tiny model of the zoo beside transformers' own `generate` and hidden states: fresh, continued, refilled, mixed."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from clear_ray.config.engine import WorkersConfig
from clear_ray.engine import Grant
from clear_ray.engine.admission import empty_features, hidden_width
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.own_caches import forget_longest
from clear_ray.engine.packed import pack_linears
from clear_ray.engine.reading import read_prompts
from clear_ray.engine.shallow import decoder_of
from clear_ray.engine.slots import SlotBatch
from clear_ray.engine.trial import Way, make_runner
from tests.unit.engine.tiny import answer_for, run_batch
from tests.unit.engine.zoo import VOCABULARY, WINDOW

# Below, at and past the window, and past it by several.
PROMPT_TOKENS = (1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 4 * WINDOW + 1)
ANSWER_TOKENS = 2 * WINDOW - 3
# Of float32 hidden states, in their standard deviations; transformers' own chunked scans differ by this from their steps.
_MOST_APART = {"slots": 2e-3, "own_caches": 1e-2}


def prompts() -> list[list[int]]:
    """Return prompts of several lengths, the last two with a beginning in common that is longer than the window."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in PROMPT_TOKENS]
    return [*found, [*found[-1][: WINDOW + 4], 5, 6, 7]]


def generated(model: Any, ids: list[int]) -> list[int]:
    """Return what transformers generates greedily after a prompt, alone."""
    inputs = torch.tensor([ids])
    forget_longest(model)  # as in a process that has generated nothing else
    with torch.inference_mode(), quiet():
        whole = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    tokens: list[int] = whole[0, len(ids) :].tolist()
    return tokens


def assert_as_transformers(model: Any, way: Way) -> None:
    """Assert that the model gives, with packed weights, what transformers gives, in every way in which a batch may run it."""
    asked = prompts()
    expected = [generated(model, ids) for ids in asked]
    pack_linears(model, free_bytes=1 << 40)
    assert_same_tokens(model, way, asked, expected)
    assert_same_features(model, way, asked)


def assert_same_tokens(model: Any, way: Way, asked: list[list[int]], expected: list[list[int]]) -> None:
    """Eight answers in three slots: fresh ones, refilled ones, and the rest of answers that were cut before."""
    config = WorkersConfig(max_batch=3)
    batch = SlotBatch(model, config, cache_tokens=10_000, prefill_tokens=WINDOW + 5, end_token_ids=frozenset(), way=way)
    # Unequal ceilings, so that slots are given up while others run.
    limits = [ANSWER_TOKENS - row % 4 for row in range(len(asked))]
    fresh = [
        answer_for(Grant(f"q{i}", "", limit), ids) for i, (ids, limit) in enumerate(zip(asked, limits, strict=True))
    ]
    with quiet():
        run_batch(batch, fresh)
    for answer, tokens in zip(fresh, expected, strict=True):
        assert_is_beginning(answer, tokens)
    cuts = [1 + 2 * row % (ANSWER_TOKENS - 2) for row in range(len(asked))]
    continued = [
        answer_for(Grant(f"q{i}", "", ANSWER_TOKENS - cut, prefix_token_ids=tuple(tokens[:cut])), ids)
        for i, (ids, tokens, cut) in enumerate(zip(asked, expected, cuts, strict=True))
    ]
    with quiet():
        run_batch(batch, continued[::-1])
    for answer, tokens, cut in zip(continued, expected, cuts, strict=True):
        # What goes on from a state is rounded otherwise than what is read anew; transformers says what that comes to.
        goes_on = tokens[cut:] if way == "slots" else generated(model, answer.input_ids)
        assert_is_beginning(answer, goes_on)


def assert_is_beginning(answer: RunningGrant, tokens: list[int]) -> None:
    assert answer.error == ""
    assert len(answer.generated) == answer.grant.max_tokens
    assert answer.generated == tokens[: len(answer.generated)], f"{len(answer.input_ids)} tokens read"


def assert_same_features(model: Any, way: Way, asked: list[list[int]]) -> None:
    features = empty_features(len(asked), hidden_width(model.config))
    with quiet():
        runner = make_runner(model, way)
        for rows in ([0, 2, 5, 7], [1, 3, 4], [6]):
            read_prompts(runner, way, features, rows, asked, pass_tokens=4 * WINDOW)
    decoder = decoder_of(model)
    for row, ids in enumerate(asked):
        with torch.inference_mode(), quiet():
            forget_longest(model)
            states = decoder(input_ids=torch.tensor([ids]), use_cache=False)[0][0].double()
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        log_p = torch.log_softmax(logits, dim=-1)
        spread = float(states.std())
        for name, seen, plain in (
            ("last", features.hidden_last_ND[row], states[-1]),
            ("mean", features.hidden_mean_ND[row], states.mean(dim=0)),
        ):
            apart = float(np.abs(seen - plain.numpy()).max()) / spread
            assert apart < _MOST_APART[way], f"hidden state {name} of {len(ids)} tokens: {apart:.2g} deviations apart"
        assert abs(features.entropy_N[row] - float(-(log_p.exp() * log_p).sum())) < 2e-3


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what architectures say: what is missing for their fast paths, what will be gone in a later version."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
