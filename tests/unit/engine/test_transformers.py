"""TransformersEngine with the real embedded model, against transformers' own `generate` of one query at a time.

One engine for the whole module: loading it is most of the cost. Everything is greedy in float32 unless it says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clear_ray.config.engine import TransformersConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine import Generation, Grant, TransformersEngine
from clear_ray.engine.closing import make_closing
from clear_ray.engine.smollm2 import EMBEDDED_MODEL
from clear_ray.engine.streaming import Partial, stream
from clear_ray.errors import SchemaError
from clear_ray.ingest.logprobs import TokenLogprob, of_answer
from tests.unit.engine.conftest import run_grants
from tests.unit.engine.decode_loop import decode
from tests.unit.engine.tiny import answer_for, run_batch, slot_batch

END = frozenset({2})
CONTEXT = 300
CONFIG = TransformersConfig(device="cpu", max_batch=4, max_context_tokens=CONTEXT, threads=1)
ASKED = [
    ("What is the capital of France?", 24),
    ("Say hi.", 3),
    ("Name three primes.", 17),
    (" ".join(["Long prompts are read in one pass or in several."] * 9) + " Summarise.", 8),
    ("2 + 2 =", 1),
    ((("system", "You answer in one word."), ("user", "What colour is the sky?")), 12),
    ("Answer with the word yes.", 20),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(CONFIG, cache_tokens=2000)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def grants() -> list[Grant]:
    return [Grant(f"q{i}", prompt, max_tokens) for i, (prompt, max_tokens) in enumerate(ASKED)]


@pytest.fixture(scope="module")
def expected(engine: TransformersEngine, grants: list[Grant]) -> list[tuple[int, ...]]:
    answers = []
    for grant, ids in zip(grants, inputs_of(engine, grants), strict=True):
        inputs = torch.tensor([ids])
        whole = model_of(engine).generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=grant.max_tokens, do_sample=False
        )
        answers.append(tuple(whole[0, len(ids) :].tolist()))
    return answers


def model_of(engine: TransformersEngine) -> Any:
    return engine._model


def inputs_of(engine: TransformersEngine, grants: list[Grant]) -> list[list[int]]:
    return engine._rendering.token_ids([grant.prompt for grant in grants])


def test_the_card_describes_the_model(engine: TransformersEngine) -> None:
    assert engine.card.name == EMBEDDED_MODEL
    assert (engine.card.context_tokens, engine.card.hidden_width) == (CONTEXT, 576)
    assert len(engine.card.fingerprint) == 64


def test_a_probe_may_run_some_layers_and_answers_run_all(engine: TransformersEngine, grants: list[Grant]) -> None:
    few = TransformersEngine(CONFIG, probe_layers=2)
    try:
        prompts = [grant.prompt for grant in grants[:3]]
        features, whole = few.prefill(["a", "b", "c"], prompts), engine.prefill(["a", "b", "c"], prompts)
        model = model_of(engine)
        for row, ids in enumerate(inputs_of(engine, grants[:3])):
            with torch.inference_mode():
                states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2]
                expected = model.model.norm(states)[0]
            assert np.allclose(features.hidden_last_ND[row], expected[-1].numpy(), atol=1e-3)
            assert np.allclose(features.hidden_mean_ND[row], expected.mean(dim=0).numpy(), atol=1e-3)
        assert np.array_equal(features.prompt_tokens_N, whole.prompt_tokens_N)
        asked = grants[0]
        one, other = (run_grants(each, [asked])[asked.query_id, 0] for each in (few, engine))
        assert (one.cached_tokens, other.cached_tokens) == (0, len(inputs_of(engine, [asked])[0]) - 1)
        assert replace(one, cached_tokens=0) == replace(other, cached_tokens=0), (
            "what some layers read serves no answer"
        )
    finally:
        few.close()


def test_every_answer_is_that_of_generate_alone(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    # Seven answers in four slots: three of them start beside answers that are under way.
    answers = run_grants(engine, grants)
    assert len(answers) == len(grants)
    for grant, tokens in zip(grants, expected, strict=True):
        answer = answers[grant.query_id, 0]
        assert (answer.error, answer.token_ids) == ("", tokens)
        assert answer.finish_reason == ("stop" if tokens[-1] in END else "length")
        assert len(answer.token_ids) <= grant.max_tokens
    assert "Paris" in answers["q0", 0].text
    # Both ends occur, so both branches above were looked at; a stopped answer's text has no end token.
    assert {answer.finish_reason for answer in answers.values()} == {"stop", "length"}
    assert not any("<|" in answer.text for answer in answers.values())


def test_other_neighbours_change_no_answer(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    strangers = [Grant(f"stranger{i}", f"Count from {i} to {3 * i}.", 3 + 4 * i) for i in range(3)]
    answers = run_grants(engine, [strangers[2], *grants[::-1], *strangers[:2]])
    assert [answers[grant.query_id, 0].token_ids for grant in grants] == expected


def test_the_plain_loop_agrees_with_generate(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    short = [0, 1, 5]
    asked = [grants[i] for i in short]
    assert decode(model_of(engine), asked, inputs_of(engine, asked), end_token_ids=END) == [expected[i] for i in short]


def test_log_probabilities_are_the_models_own(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    shaping = {"repetition_penalty": 1.0, "temperature": 0.0}  # neither changes a greedy answer
    asked = [replace(grants[i], sampling=Sampling(logprobs=k, **shaping)) for i, k in ((0, 3), (5, 0))]
    answers = run_grants(engine, [*asked, *grants[1:4]])
    assert answers[grants[1].query_id, 0].logprobs is None
    for place, grant, ids in zip((0, 5), asked, inputs_of(engine, asked), strict=True):
        entries, tokens = answers[grant.query_id, 0].logprobs, expected[place]
        with torch.inference_mode():
            logits = model_of(engine)(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1]
        log_p = logits.float().log_softmax(dim=-1)
        assert entries is not None
        assert b"".join(entry.token for entry in entries).decode() == answers[grant.query_id, 0].text
        for step, entry in enumerate(entries):
            assert entry.logprob == pytest.approx(float(log_p[step, tokens[step]]), abs=1e-3)
            most = 0 if grant.sampling is None else grant.sampling.logprobs or 0
            likeliest = log_p[step].topk(most).values.tolist()
            assert [value for _, value in entry.top] == pytest.approx(likeliest, abs=1e-3)
            assert not entry.top or entry.top[0][0] == entry.token  # greedy


def test_log_probabilities_of_parts_are_those_of_the_whole(engine: TransformersEngine) -> None:
    prompt, sampling = "Draw a cat: 🐱🐱🐱. Draw five cats.", Sampling(logprobs=1, temperature=0.9, stop=("\n\n",))
    whole = run_grants(engine, [Grant("cats", prompt, 24, sampling=sampling)])["cats", 0]
    entries: tuple[TokenLogprob, ...] | None = ()
    spent: tuple[int, ...] = ()
    for size in (1, 2, 5, 16):
        part = Grant("cats", prompt, size, prefix_token_ids=spent, sampling=sampling)
        generation = run_grants(engine, [part])["cats", 0]
        entries, spent = of_answer(generation.text, generation.logprobs, entries), spent + generation.token_ids
        if generation.finish_reason == "stop":
            break
    assert spent == whole.token_ids
    told = of_answer(whole.text, whole.logprobs)
    assert entries is not None
    assert told is not None
    assert [entry.token for entry in entries] == [entry.token for entry in told]
    assert [entry.logprob for entry in entries] == pytest.approx([entry.logprob for entry in told], abs=1e-3)
    assert b"".join(entry.token for entry in told).decode(errors="replace") == whole.text


def test_a_stop_that_is_a_special_token_ends_the_answer(engine: TransformersEngine) -> None:
    """Such a token has no text, so that no text that is looked at would ever hold the stop."""
    for stop, tokens in ((("<|im_start|>",), 1), (("<|im_start",), 4)):
        sampling = Sampling(stop=stop, logit_bias={"1": 100})
        answer = run_grants(engine, [Grant("q", "Say hi.", 4, sampling=sampling)])["q", 0]
        assert (answer.text, answer.finish_reason == "stop") == ("", tokens == 1)
        assert answer.token_ids == (1,) * tokens


def test_an_answer_may_fill_the_context_to_its_last_token(engine: TransformersEngine) -> None:
    # An answer that repeats itself goes on repeating, and does not stop by itself.
    prefix = (28,) * (CONTEXT - 3 - engine.prompt_tokens(["Hi"])[0])
    asked = [
        Grant(name, "Hi", limit, prefix_token_ids=prefix) for name, limit in (("fits", 3), ("last", 1), ("not", 4))
    ]
    answers = run_grants(engine, asked)
    assert len(answers["fits", 0].token_ids) == 3
    assert answers["last", 0].token_ids == answers["fits", 0].token_ids[:1]
    assert f"{CONTEXT + 1} tokens, the context is {CONTEXT}" in answers["not", 0].error


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_continuation_goes_on_exactly(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]], share: float
) -> None:
    # Within the answer, whatever its length: after the first token, in the middle, before the last.
    cut = 1 + round(share * (len(expected[0]) - 2))
    first = Grant("q0", ASKED[0][0], cut)
    head = run_grants(engine, [first, grants[2]])["q0", 0]
    rest = Grant("q0", ASKED[0][0], len(expected[0]) - cut, prefix_token_ids=head.token_ids)
    tail = run_grants(engine, [grants[4], rest])["q0", 0]
    assert head.token_ids + tail.token_ids == expected[0]
    assert tail.text.startswith(head.text)
    assert "Paris" in tail.text


def test_a_sampled_continuation_draws_as_the_uninterrupted_answer(engine: TransformersEngine) -> None:
    prompt_ids = inputs_of(engine, [Grant("", "Tell me a story.", 1)])[0]
    sampled = {"temperature": 1.0, "top_p": 0.95, "end_token_ids": END}
    whole = answer_for(Grant("s", "", 16, seed=11), prompt_ids)
    other = answer_for(Grant("s", "", 16, seed=11, sample=1), prompt_ids)
    run_batch(slot_batch(model_of(engine), **sampled), [whole, other])
    head = tuple(whole.generated[:6])
    tail = answer_for(Grant("s", "", 10, seed=11, prefix_token_ids=head), prompt_ids)
    strangers = [answer_for(Grant(f"stranger{i}", "", 5 + i, seed=11), prompt_ids[: 9 + i]) for i in range(3)]
    run_batch(slot_batch(model_of(engine), **sampled), [strangers[0], tail, *strangers[1:]])
    assert head + tuple(tail.generated) == tuple(whole.generated)
    assert whole.generated != other.generated


def test_a_reserve_makes_an_unfinished_answer_give_its_result(engine: TransformersEngine) -> None:
    closing = make_closing(engine._rendering, TransformersConfig(answer_reserve_tokens=8))
    grants = [Grant("long", "Explain at length how rain is made.", 20), Grant("short", "Say hi.", 8)]
    answers = [answer_for(grant, ids) for grant, ids in zip(grants, inputs_of(engine, grants), strict=True)]
    run_batch(slot_batch(model_of(engine), closing=closing, end_token_ids=END), answers)
    texts = [engine._rendering.text(answer.generated) for answer in answers]
    assert engine._rendering.text(answers[0].generated[12:]).startswith("\nAnswer:")
    assert (texts[0].count("Answer:"), texts[1].count("Answer:")) == (1, 0)
    assert len(answers[0].generated) <= 20


def test_features_are_those_of_a_plain_pass(engine: TransformersEngine, grants: list[Grant]) -> None:
    prompts = [grant.prompt for grant in grants]
    features = engine.prefill([grant.query_id for grant in grants], prompts)
    assert features.prompt_tokens_N.tolist() == engine.prompt_tokens(prompts)
    model = model_of(engine)
    for row, ids in enumerate(inputs_of(engine, grants)):
        with torch.inference_mode():
            states = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
            log_p = torch.log_softmax(model.lm_head(states[0, -1]).double(), dim=-1)
        np.testing.assert_allclose(features.hidden_last_ND[row], states[0, -1].numpy(), atol=1e-3)
        np.testing.assert_allclose(features.hidden_mean_ND[row], states[0].mean(dim=0).numpy(), atol=1e-3)
        assert features.entropy_N[row] == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-3)


def test_the_probe_spares_the_first_answer_its_prompt(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    some = [grants[row] for row in (0, 2, 5)]
    features = engine.prefill([grant.query_id for grant in some], [grant.prompt for grant in some])
    answers = run_grants(engine, some)
    for row, tokens, grant in zip((0, 2, 5), features.prompt_tokens_N.tolist(), some, strict=True):
        answer = answers[grant.query_id, 0]
        assert (answer.token_ids, answer.cached_tokens) == (expected[row], tokens - 1)
    # What an answer goes on from was read for itself: all but its last token, with which decoding begins.
    assert run_grants(engine, [replace(some[0], max_tokens=4)])["q0", 0].finish_reason == "length"
    more = replace(some[0], prefix_token_ids=expected[0][:4], max_tokens=4)
    assert run_grants(engine, [more])["q0", 0].cached_tokens == features.prompt_tokens_N[0] + 3


def test_what_does_not_fit_the_context_fails_alone(engine: TransformersEngine, grants: list[Grant]) -> None:
    long_prompt = "word " * 400
    asked = [
        Grant("prompt", long_prompt, 5),
        Grant("grant", "Hi", CONTEXT),
        Grant("prefix", "Hi", 10, prefix_token_ids=(5,) * CONTEXT),
        Grant("unknown token", "Hi", 3, prefix_token_ids=(10**6,)),
        Grant("nothing", "Hi", 0),
        Grant("less than nothing", "Hi", -3),
        Grant("no token", "Hi", 3, prefix_token_ids=(5, -1)),
        grants[1],
    ]
    answers = run_grants(engine, asked)
    assert len(answers) == len(asked)
    for query_id in ("prompt", "grant", "prefix"):
        assert f"the context is {CONTEXT}" in answers[query_id, 0].error
        assert answers[query_id, 0].token_ids == ()
    for query_id in ("unknown token", "no token"):
        assert "vocabulary" in answers[query_id, 0].error
        assert (answers[query_id, 0].text, answers[query_id, 0].token_ids) == ("", ())
    assert "at least 1 token, not 0" in answers["nothing", 0].error
    assert "at least 1 token, not -3" in answers["less than nothing", 0].error
    assert answers["q1", 0].error == ""
    with pytest.raises(SchemaError, match="query b"):
        engine.prefill(["a", "b"], ["Hi", long_prompt])


def test_concurrent_calls_share_the_batch(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    ended: list[str] = []

    async def call(asked: list[Grant]) -> list[Generation]:
        answers = []
        async for answer in engine.generate(asked):
            ended.append(answer.query_id)
            answers.append(answer)
        return answers

    async def both() -> list[list[Generation]]:
        long_first = [Grant("long", ASKED[2][0], 40), grants[0]]
        return list(await asyncio.gather(call(long_first), call([grants[1], grants[4]])))

    first, second = asyncio.run(both())
    by_id = {answer.query_id: answer.token_ids for answer in [*first, *second]}
    assert (by_id["q0"], by_id["q1"]) == (expected[0], expected[1])
    assert by_id["q4"] == expected[4]
    assert by_id["long"][:17] == expected[2][:17]
    # The second call's short queries end while the first call's long ones still run.
    assert ended.index("q1") < ended.index("q0")
    assert ended.index("q4") < ended.index("q0")


def test_cancelled_answers_are_yielded_with_what_they_spent(engine: TransformersEngine) -> None:
    async def run() -> dict[str, Generation]:
        answers = {}
        asked = [Grant("gone", "Count to a thousand.", 200), Grant("short", "Say hi.", 4), Grant("kept", "Say hi.", 9)]
        async for answer in engine.generate(asked):
            if answer.query_id == "short":
                engine.cancel(["gone", "never asked"])
            answers[answer.query_id] = answer
        return answers

    answers = asyncio.run(run())
    assert {name: answer.finish_reason for name, answer in answers.items()} == {
        "gone": "cancelled",
        "short": "length",
        "kept": "length",
    }
    assert 4 <= len(answers["gone"].token_ids) < 200
    assert answers["gone"].text


def test_a_stream_says_what_has_come_and_ends_where_it_is_told(
    engine: TransformersEngine, grants: list[Grant], expected: list[tuple[int, ...]]
) -> None:
    async def run(grant: Grant, wanted: int) -> list[Partial | Generation]:
        def is_over(text: str) -> bool:
            return len(text) >= wanted

        return [item async for item in stream(engine, grant, every_tokens=3, is_over=is_over)]

    async def both() -> list[list[Partial | Generation]]:
        endless = Grant("endless", "Count to a thousand.", 200)
        return await asyncio.gather(run(grants[0], 10_000), run(endless, 12))

    whole, cut = asyncio.run(both())
    assert isinstance(whole[-1], Generation)
    assert whole[-1].token_ids == expected[0]
    assert len(whole) > 1
    for item in whole:
        assert item.token_ids == expected[0][: len(item.token_ids)]
    assert isinstance(cut[-1], Generation)
    assert cut[-1].finish_reason == "cancelled"
    assert 12 <= len(cut[-1].text) < 120
    assert all(len(item.text) < 12 for item in cut[:-1])


def test_a_caller_that_goes_away_frees_its_slots(engine: TransformersEngine, grants: list[Grant]) -> None:
    async def leave() -> None:
        stream = engine.generate([grants[4], *(Grant(f"left{i}", "Count to a thousand.", 200) for i in range(4))])
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    # All four slots would be taken for 200 steps otherwise, and the next call would have to wait for them.
    assert run_grants(engine, [grants[4]])["q4", 0].error == ""
    assert engine._thread._batch.is_idle
