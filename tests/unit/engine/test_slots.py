"""SlotBatch against the plain decode loop, on a tiny model in float64, where equality is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.engine import Grant
from clear_ray.engine.admission import empty_features
from clear_ray.engine.grouping import reading_groups, shared_tokens
from clear_ray.engine.kept_prompts import KeptPrompts
from clear_ray.engine.prefix_cache import PrefixCache
from clear_ray.engine.reading import read_prompts
from clear_ray.engine.slot_cache import SlotCache, SlotRunner
from clear_ray.engine.trial import find_way
from clear_ray.errors import ConfigError
from tests.unit.engine.decode_loop import decode
from tests.unit.engine.tiny import END, VOCABULARY, answer_for, run_batch, slot_batch, tiny_model

OPENINGS = [[], [7, 8, 9, 10] * 3, [7, 8, 9, 10] * 3 + [11] * 9]
prompts = st.builds(
    lambda opening, own: [*opening, *own],
    st.sampled_from(OPENINGS),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
)
temperatures = st.sampled_from([(0.0, 1.0), (0.7, 1.0), (1.5, 0.8)])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.tuples(prompts, st.integers(1, 30)), min_size=1, max_size=8),
    max_batch=st.integers(1, 5),
    cache_tokens=st.integers(80, 400),
    prefill_tokens=st.integers(1, 40),
    sampling=temperatures,
    graphs=st.booleans(),
    refill_rows=st.integers(1, 3),
    prefix_tokens=st.sampled_from([0, 60, 300]),
)
def test_any_batch_gives_each_query_what_it_gets_alone(
    model: Any,
    asked: list[tuple[list[int], int]],
    max_batch: int,
    cache_tokens: int,
    prefill_tokens: int,
    sampling: tuple[float, float],
    graphs: bool,
    refill_rows: int,
    prefix_tokens: int,
) -> None:
    temperature, top_p = sampling
    grants = [Grant(f"q{i}", "", max_tokens, seed=5) for i, (_, max_tokens) in enumerate(asked)]
    batch = slot_batch(
        model,
        max_batch=max_batch,
        cache_tokens=cache_tokens,
        prefill_tokens=prefill_tokens,
        temperature=temperature,
        top_p=top_p,
        graphs=graphs,
        refill_rows=refill_rows,
        prefixes=PrefixCache(prefix_tokens, 3),
    )
    answers = [answer_for(grant, ids) for grant, (ids, _) in zip(grants, asked, strict=True)]
    ended = run_batch(batch, answers)
    assert sorted(id(answer) for answer in ended) == sorted(id(answer) for answer in answers)
    expected = decode(model, grants, [ids for ids, _ in asked], end_token_ids=END, temperature=temperature, top_p=top_p)
    for answer, tokens in zip(answers, expected, strict=True):
        assert answer.error == ""
        assert tuple(answer.generated) == tokens
        assert len(tokens) <= answer.grant.max_tokens
        assert answer.finish_reason == ("stop" if tokens[-1] in END else "length")


@settings(deadline=None, max_examples=30)
@given(
    ids=prompts,
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    sampling=temperatures,
    seed=st.integers(0, 2**63),
    sample=st.integers(0, 3),
)
def test_a_continued_answer_goes_on_as_the_uninterrupted_one(
    model: Any, ids: list[int], cuts: list[int], sampling: tuple[float, float], seed: int, sample: int
) -> None:
    temperature, top_p = sampling
    batch = slot_batch(model, temperature=temperature, top_p=top_p, prefixes=PrefixCache(200, 4))
    whole = answer_for(Grant("q", "", sum(cuts), seed=seed, sample=sample), ids)
    run_batch(batch, [whole])
    pieces: tuple[int, ...] = ()
    for cut in cuts:
        grant = Grant("q", "", cut, seed=seed, sample=sample, prefix_token_ids=pieces)
        piece = answer_for(grant, ids)
        # Beside others, which must make no difference.
        run_batch(batch, [answer_for(Grant("other", "", 7, seed=1), [4, 5, 6]), piece])
        pieces += tuple(piece.generated)
        if piece.finish_reason == "stop":
            break
    assert pieces == tuple(whole.generated)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_answers_may_come_and_be_cancelled_at_any_step(model: Any, data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.tuples(prompts, st.integers(1, 25)), min_size=1, max_size=7))
    answers = [answer_for(Grant(f"q{i}", "", limit), ids) for i, (ids, limit) in enumerate(asked)]
    arrival = [data.draw(st.integers(0, 10)) for _ in answers]
    cancelled_at = [data.draw(st.none() | st.integers(0, 20)) for _ in answers]
    batch = slot_batch(model, max_batch=2)
    ended = []
    for step in range(400):
        for answer, arrives, cancels in zip(answers, arrival, cancelled_at, strict=True):
            if step == arrives:
                batch.add(answer)
            answer.is_cancelled = cancels is not None and step >= cancels
        ended += batch.step()
        if batch.is_idle and step >= max(arrival):
            break
    assert batch.is_idle
    assert sorted(id(answer) for answer in ended) == sorted(id(answer) for answer in answers)
    expected = decode(model, [answer.grant for answer in answers], [ids for ids, _ in asked], end_token_ids=END)
    for answer, tokens in zip(answers, expected, strict=True):
        assert tuple(answer.generated) == tokens[: len(answer.generated)]
        assert (answer.finish_reason == "cancelled") == (len(answer.generated) < len(tokens))


def test_a_free_slot_is_taken_before_the_longest_answer_ends(model: Any) -> None:
    batch = slot_batch(model, max_batch=2, end_token_ids=frozenset())
    answers = [answer_for(Grant(str(limit), "", limit), [5, 6]) for limit in (20, 3, 4, 5)]
    ended = run_batch(batch, answers)
    assert [answer.grant.max_tokens for answer in ended] == [3, 4, 5, 20]


def test_an_answer_that_memory_cannot_hold_fails_alone(model: Any) -> None:
    batch = slot_batch(model, cache_tokens=40)
    answers = [answer_for(Grant(str(limit), "", limit), [5] * 10) for limit in (8, 200, 9)]
    run_batch(batch, answers)
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    assert "memory for 40" in answers[1].error
    assert answers[1].generated == []


def test_a_prompt_that_breaks_the_model_fails_alone(model: Any) -> None:
    batch = slot_batch(model, max_batch=4, prefill_tokens=100)
    # A token that the embedding does not have: what torch raises is a real failure of one prompt.
    answers = [answer_for(Grant(str(i), "", 4), ids) for i, ids in enumerate([[5, 6], [5, VOCABULARY, 6], [7, 8, 9]])]
    with_bad = run_batch(batch, answers)
    assert len(with_bad) == 3
    assert [bool(answer.error) for answer in answers] == [False, True, False]


@pytest.mark.parametrize("prompt_length", [1, 2, 15, 16, 17, 40])
def test_prompts_of_any_length_are_read_in_chunks(model: Any, prompt_length: int) -> None:
    ids = [(3 * i + 5) % VOCABULARY for i in range(prompt_length)]
    grant = Grant("q", "", 12)
    answer = answer_for(grant, ids)
    run_batch(slot_batch(model, prefill_tokens=16), [answer])
    assert tuple(answer.generated) == decode(model, [grant], [ids], end_token_ids=END)[0]


def tokens_read(model: Any, action: Callable[[], object]) -> int:
    """Count the positions that pass through the model while `action` runs."""
    read = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    try:
        action()
    finally:
        hook.remove()
    return sum(read)


def test_what_prompts_begin_with_is_read_once(model: Any) -> None:
    opening = [(5 * i + 4) % VOCABULARY for i in range(30)]
    grants = [Grant(f"q{i}", "", 1 + 2 * i) for i in range(4)]
    inputs = [[*opening, 20 + i, 40 + i] for i in range(4)]
    answers = [answer_for(grant, ids) for grant, ids in zip(grants, inputs, strict=True)]
    # Three slots: the fourth starts beside others that have read the opening.
    batch = slot_batch(model, end_token_ids=frozenset(), prefill_tokens=64)
    read = tokens_read(model, lambda: run_batch(batch, answers))
    # One token of each prompt beside the opening; its last one is read by the pass that gives the first token.
    assert read == len(opening) + 4 + sum(len(answer.generated) for answer in answers)
    expected = decode(model, grants, inputs, end_token_ids=frozenset())
    assert [tuple(answer.generated) for answer in answers] == expected


def test_an_answer_that_goes_on_reads_nothing_again(model: Any) -> None:
    """And one that begins as an earlier one did reads its own part alone, until memory is wanted by those that run."""
    prefixes = PrefixCache(100, 4)
    batch = slot_batch(model, prefixes=prefixes, end_token_ids=frozenset())
    first = answer_for(Grant("q", "", 5), OPENINGS[2] + [30, 31, 32])
    assert tokens_read(model, lambda: run_batch(batch, [first])) == len(first.input_ids) - 1 + 5
    on = answer_for(Grant("q", "", 3, prefix_token_ids=tuple(first.generated)), OPENINGS[2] + [30, 31, 32])
    assert tokens_read(model, lambda: run_batch(batch, [on])) == 3
    assert on.cached_tokens == len(on.input_ids) - 1
    other = answer_for(Grant("r", "", 1), OPENINGS[2] + [40, 41, 42])
    assert tokens_read(model, lambda: run_batch(batch, [other])) == 3
    assert other.cached_tokens == len(OPENINGS[2])
    assert prefixes.tokens == len(on.input_ids) + 2 + len(other.input_ids)
    whole = answer_for(Grant("q", "", 8), OPENINGS[2] + [30, 31, 32])
    run_batch(slot_batch(model, end_token_ids=frozenset()), [whole])
    assert [*first.generated, *on.generated] == whole.generated
    prefixes.leave(54)
    assert prefixes.longest(on.input_ids)[1] == len(OPENINGS[2]), "what was used longest ago has gone"


def test_prompts_that_have_nothing_in_common_are_soon_not_kept(model: Any) -> None:
    prefixes, cache = PrefixCache(10_000, 64), SlotCache()
    cache.reserve(1, 10, kept_rows=0)
    prompts = [[4 + number, 5, *[(number + 7 * place) % 50 for place in range(8)]] for number in range(40)]
    SlotRunner(model).prefill(cache, 0, prompts[:1], 16)
    for ids in prompts:
        prefixes.keep(ids, cache, 0, may_go_on=False)
    assert prefixes.tokens == 32 * 10
    batch = slot_batch(model, prefixes=prefixes, end_token_ids=frozenset())
    run_batch(batch, [answer_for(Grant("q", "", 1), [*prompts[0], 14])])  # one of them was of use
    held = prefixes.tokens
    prefixes.keep(prompts[-1], cache, 0, may_go_on=False)
    assert prefixes.tokens == held + 10


def test_prefixes_give_way_to_answers_that_run(model: Any) -> None:
    prefixes = PrefixCache(60, 4)
    batch = slot_batch(model, prefixes=prefixes, cache_tokens=120, max_batch=2, prefill_tokens=64)
    run_batch(batch, [answer_for(Grant("q", "", 2), [7] * 40)])
    assert prefixes.tokens == 40 + 1
    run_batch(batch, [answer_for(Grant(str(i), "", 20), [8 + i] * 40) for i in range(2)])
    assert prefixes.tokens <= 120 - 2 * 59


def probed(model: Any, inputs: list[list[int]], *, most_tokens: int, pass_tokens: int = 64) -> KeptPrompts:
    """Read prompts as a probe does, in groups, and keep what there is room for."""
    kept, features = KeptPrompts(most_tokens), empty_features(len(inputs), 32)
    for rows in reading_groups(inputs, pass_tokens=pass_tokens, pass_cost=8):
        read_prompts(SlotRunner(model), "slots", features, rows, inputs, pass_tokens=pass_tokens, kept=kept)
    return kept


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.lists(prompts, min_size=1, max_size=8),
    max_tokens=st.integers(1, 20),
    most_tokens=st.integers(0, 300),
    cache_tokens=st.integers(80, 400),
    pass_tokens=st.integers(1, 80),
)
def test_what_the_probe_has_read_is_not_read_again_and_changes_no_token(
    model: Any, inputs: list[list[int]], max_tokens: int, most_tokens: int, cache_tokens: int, pass_tokens: int
) -> None:
    kept = probed(model, inputs, most_tokens=most_tokens, pass_tokens=pass_tokens)
    assert kept.tokens <= most_tokens
    grants = [Grant(f"q{i}", "", max_tokens) for i in range(len(inputs))]
    answers = [answer_for(grant, ids) for grant, ids in zip(grants, inputs, strict=True)]
    batch = slot_batch(model, cache_tokens=cache_tokens, kept=kept)
    read = tokens_read(model, lambda: run_batch(batch, answers))
    assert [tuple(answer.generated) for answer in answers] == decode(model, grants, inputs, end_token_ids=END)
    assert all(answer.cached_tokens in (0, len(answer.input_ids) - 1) for answer in answers)
    if all(answer.cached_tokens == len(answer.input_ids) - 1 for answer in answers):
        assert read == sum(len(answer.generated) for answer in answers)


def test_the_prompts_that_were_read_last_are_kept_and_give_way_to_running_answers(model: Any) -> None:
    inputs = [[10 + i] * 20 for i in range(5)]
    kept = probed(model, inputs, most_tokens=60, pass_tokens=20)
    assert [kept.has(ids) for ids in inputs] == [False, False, True, True, True]
    answer = answer_for(Grant("q", "", 10), inputs[2])
    batch = slot_batch(model, cache_tokens=90, max_batch=1, kept=kept)
    batch.add(answer)
    batch.step()
    # The answer needs 30 positions, which are rounded up to 64; what is left of 90 holds one prompt.
    assert (kept.has(inputs[2]), kept.has(inputs[3]), kept.tokens) == (False, False, 20)
    batch.close()
    assert kept.tokens == 0


def test_a_long_prompt_that_was_read_starts_at_once(model: Any) -> None:
    long, short = [(3 * i + 5) % VOCABULARY for i in range(100)], [4, 5, 6]
    kept = probed(model, [long], most_tokens=200)
    batch = slot_batch(model, end_token_ids=frozenset(), kept=kept)
    first, second = answer_for(Grant("long", "", 4), long), answer_for(Grant("short", "", 4), short)
    batch.add(first)
    batch.add(second)
    batch.step()
    assert (len(first.generated), len(second.generated), first.cached_tokens) == (1, 1, 99)


@settings(deadline=None)
@given(
    ids_N=st.lists(prompts, min_size=1, max_size=12),
    pass_tokens=st.integers(1, 80),
    pass_cost=st.sampled_from([0, 64, 2048]),
)
def test_prompts_are_read_once_each_in_groups_of_one_pass(
    ids_N: list[list[int]], pass_tokens: int, pass_cost: int
) -> None:
    groups = reading_groups(ids_N, pass_tokens=pass_tokens, pass_cost=pass_cost)
    assert sorted(row for group in groups for row in group) == list(range(len(ids_N)))
    for group in groups:
        rows = [ids_N[row] for row in group]
        shared = shared_tokens(rows)
        assert all(ids[:shared] == rows[0][:shared] for ids in rows)
        assert len({tuple(ids[: shared + 1]) for ids in rows}) > 1 or shared == min(map(len, rows))
        assert len(group) == 1 or len(group) * (max(map(len, rows)) - shared) <= pass_tokens


def test_the_oracle_agrees_with_transformers_generate(model: Any) -> None:
    prompt_ids = [[5, 9, 11, 30], [8, 44]]
    ours = decode(model, [Grant("a", "", 15), Grant("b", "", 9)], prompt_ids, end_token_ids=END)
    for ids, limit, tokens in zip(prompt_ids, [15, 9], ours, strict=True):
        inputs = torch.tensor([ids])
        theirs = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(END),
            pad_token_id=0,
        )
        assert tuple(theirs[0, len(ids) :].tolist()) == tokens


def test_the_way_that_fits_a_model_is_found() -> None:
    from transformers import AutoModelForCausalLM, BloomConfig, MistralConfig

    torch.manual_seed(0)
    narrow = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=3,
        initializer_range=0.4,
    )
    biased = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    ways = [find_way(AutoModelForCausalLM.from_config(config).eval()) for config in (narrow, biased)]
    assert ways == ["slots", "own_caches"]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert find_way(tiny_model(dtype=dtype)) == "slots"


def test_a_model_whose_layers_look_ahead_is_refused_by_name() -> None:
    ahead = tiny_model()

    def without_mask(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: forward(*args, **(options | {"attention_mask": None}))

    for layer in ahead.model.layers:
        layer.self_attn.forward, layer.self_attn.is_causal = without_mask(layer.self_attn.forward), False
    with pytest.raises(
        ConfigError, match=r"architecture llama cannot be run by this engine: .* Set engine.kind to vllm"
    ):
        find_way(ahead)


def test_dear_passes_bring_prompts_together_that_share_nothing() -> None:
    ids_N = [[kind, *range(length)] for kind, length in ((1, 20), (2, 90), (3, 150), (4, 30))]
    assert len(reading_groups(ids_N, pass_tokens=8192, pass_cost=0)) == 4
    assert len(reading_groups(ids_N, pass_tokens=8192, pass_cost=2048)) == 1


def test_a_rounded_pass_that_finds_no_memory_is_tried_once_more(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grants = [Grant(f"q{i}", "", 9, seed=1) for i in range(3)]
    inputs = [[7, 8, 20 + i] for i in range(3)]
    batch = slot_batch(model, graphs=True)
    forward, calls = batch._runner.forward, []

    def tight(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) in (1, 4):
            raise torch.OutOfMemoryError("no room")
        return forward(*arguments, **options)

    monkeypatch.setattr(batch._runner, "forward", tight)
    answers = [answer_for(grant, ids) for grant, ids in zip(grants, inputs, strict=True)]
    run_batch(batch, answers)
    expected = decode(model, grants, inputs, end_token_ids=END)
    assert [tuple(answer.generated) for answer in answers] == expected


def test_no_prompt_waits_long_for_others_to_be_read_with(model: Any) -> None:
    batch = slot_batch(model, max_batch=4, end_token_ids=frozenset(), refill_rows=3)
    running = [answer_for(Grant(f"long{i}", "", 60), [5, 6]) for i in range(2)]
    waiting = [answer_for(Grant(f"new{i}", "", 5), [5, 7 + i]) for i in range(3)]
    for answer in running:
        batch.add(answer)
    batch.step()
    for answer in waiting:
        batch.add(answer)
    for _ in range(15):
        batch.step()
    assert not any(answer.generated for answer in waiting), "two slots are free, and three are worth a pass"
    batch.step()
    assert [len(answer.generated) for answer in waiting] == [1, 1, 0]


def test_a_long_prompt_is_read_between_the_steps_of_others(model: Any) -> None:
    """It comes first, when nothing runs; short queries that come after it are answered long before it is read."""
    long_ids = [(7 * i + 3) % VOCABULARY for i in range(60)]
    asked = [(long_ids, 5), ([5, 6], 6), ([7, 8, 9], 6)]
    answers = [answer_for(Grant(f"q{i}", "", limit), ids) for i, (ids, limit) in enumerate(asked)]
    batch = slot_batch(model, max_batch=4, prefill_tokens=4, cache_tokens=1_000, end_token_ids=frozenset())
    ended = run_batch(batch, answers)
    assert [answer.grant.query_id for answer in ended[:2]] != ["q0"]
    assert ended[-1].grant.query_id == "q0"
    expected = decode(model, [one.grant for one in answers], [ids for ids, _ in asked], end_token_ids=frozenset())
    assert [tuple(answer.generated) for answer in answers] == expected


def test_a_long_prompt_may_be_cancelled_while_it_is_read(model: Any) -> None:
    batch = slot_batch(model, max_batch=2, prefill_tokens=4, cache_tokens=1_000)
    answer = answer_for(Grant("q", "", 5), [5] * 60)
    batch.add(answer)
    assert batch.step() == []
    assert not batch.is_idle
    answer.is_cancelled = True
    assert batch.step() == [answer]
    assert batch.is_idle
