"""VllmEngine for real, on vLLM's CPU build and the embedded model in float32: `make test-vllm`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from clear_ray.config.engine import VllmConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine import Generation, Grant, TransformersEngine, VllmEngine
from clear_ray.engine.batch import OpenAnswers
from clear_ray.engine.closing import make_closing
from clear_ray.engine.streaming import Partial
from clear_ray.errors import ConfigError, EngineError, SchemaError
from tests.unit.engine.conftest import run_grants
from tests.unit.engine.tiny import answer_for, run_batch, slot_batch
from tests.vllm.conftest import CONTEXT, THINKING, decoding

pytestmark = pytest.mark.vllm

END = frozenset({2})
BLOCK_TOKENS = 128  # of vLLM's cache on CPU; only whole blocks are found again
LONG = " ".join(["Long prompts are read in one pass or in several, and kept for later."] * 16)
ASKED = [
    ("What is the capital of France?", 24),
    ("Say hi.", 3),
    ("Name three primes.", 17),
    (LONG + " Summarise.", 8),
    ("2 + 2 =", 1),
    ((("system", "You answer in one word."), ("user", "What colour is the sky?")), 12),
    ("Answer with the word yes.", 20),
]
GRANTS = [Grant(f"q{i}", prompt, max_tokens) for i, (prompt, max_tokens) in enumerate(ASKED)]


def test_the_card_is_that_of_transformers(engine: VllmEngine, reference: TransformersEngine) -> None:
    assert engine.card == reference.card
    assert engine.card.hidden_width == 576


def test_greedy_answers_are_those_of_transformers(engine: VllmEngine, reference: TransformersEngine) -> None:
    here, there = run_grants(engine, GRANTS), run_grants(reference, GRANTS)
    assert {name: replace(answer, cached_tokens=0) for name, answer in here.items()} == {
        name: replace(answer, cached_tokens=0) for name, answer in there.items()
    }
    assert {answer.finish_reason for answer in here.values()} == {"stop", "length"}
    assert engine.prompt_tokens([grant.prompt for grant in GRANTS]) == reference.prompt_tokens(
        [grant.prompt for grant in GRANTS]
    )


def test_heavy_tailed_caps_are_exact(engine: VllmEngine) -> None:
    rng = np.random.default_rng(5)
    caps = sorted((int(min(60, 1 + rng.pareto(1.1) * 6)) for _ in range(20)), reverse=True)
    grants = [Grant(f"t{i}", f"Write a long story about {i} rivers.", cap, seed=i) for i, cap in enumerate(caps)]
    answers = run_grants(engine, grants)
    assert len(answers) == len(grants)
    for grant in grants:
        answer = answers[grant.query_id, 0]
        assert answer.error == ""
        if answer.finish_reason == "length":
            assert len(answer.token_ids) == grant.max_tokens
        else:
            assert answer.token_ids[-1] in END
            assert len(answer.token_ids) <= grant.max_tokens
    assert sum(answer.finish_reason == "length" for answer in answers.values()) > len(grants) / 2


@pytest.mark.parametrize("cut", [1, 6, 12])
def test_a_continuation_goes_on_exactly(engine: VllmEngine, cut: int) -> None:
    prompt = "Explain in three sentences how rain is made."
    whole = run_grants(engine, [Grant("w", prompt, 18)])["w", 0]
    head = run_grants(engine, [Grant("w", prompt, cut), GRANTS[2]])["w", 0]
    rest = Grant("w", prompt, 18 - cut, prefix_token_ids=head.token_ids)
    tail = run_grants(engine, [GRANTS[0], rest])["w", 0]
    assert head.token_ids + tail.token_ids == whole.token_ids
    assert tail.text == whole.text


def test_a_continued_query_does_not_pay_for_its_prefix_again(engine: VllmEngine) -> None:
    prompt = LONG.replace("kept", "stored")  # asked by no other test
    grant = Grant("p", prompt, 4)
    engine.prefill(["p"], [prompt])
    before = engine.cached_tokens
    head = run_grants(engine, [grant])["p", 0]
    prompt_tokens = engine.prompt_tokens([prompt])[0]
    read = prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS
    assert prompt_tokens > BLOCK_TOKENS
    # What the probe had read was not computed again, nor what the first grant had.
    assert engine.cached_tokens - before == read
    run_grants(engine, [Grant("p", prompt, 4, prefix_token_ids=head.token_ids)])
    assert engine.cached_tokens - before == 2 * read


def test_a_seed_fixes_a_text_whatever_else_is_in_the_batch(engine: VllmEngine) -> None:
    grant = Grant("s", "Tell me a story.", 24, seed=11)
    others = [Grant(f"o{i}", f"Count from {i} to {3 * i}.", 3 + 4 * i, seed=i) for i in range(6)]
    with decoding(engine, config=VllmConfig(temperature=1.0, top_p=0.95)):
        alone = run_grants(engine, [grant])["s", 0].token_ids
        for crowd in ([*others, grant], [others[5], grant, *others[:3]]):
            assert run_grants(engine, crowd)["s", 0].token_ids == alone
        changed = [replace(grant, sample=1), replace(grant, seed=12, query_id="s12")]
        answers = [answer.token_ids for answer in run_grants(engine, changed).values()]
        tails = [
            run_grants(
                engine, [Grant("s", "Tell me a story.", 24 - cut, seed=11, prefix_token_ids=alone[:cut]), *others[:2]]
            )
            for cut in (1, 16)
        ]
    assert len({alone, *answers}) == 3
    # However it is cut into grants, the text is the same.
    assert [tail["s", 0].token_ids for tail in tails] == [alone[1:], alone[16:]]


def test_a_reserve_forces_the_answer_that_our_own_batch_forces(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    grants = [
        Grant("long", "Explain at length how rain is made.", 20),
        Grant("short", "Say hi.", 8),
        Grant("ends", "What is the capital of France?", 40),
        Grant("given", "Say hi.", 14, prefix_token_ids=tuple(engine._rendering.plain_token_ids("So\nAnswer: 3"))),
    ]
    closing = make_closing(reference._rendering, VllmConfig(answer_reserve_tokens=8))
    ids_N = reference._rendering.token_ids([grant.prompt for grant in grants])
    expected = [answer_for(grant, ids) for grant, ids in zip(grants, ids_N, strict=True)]
    run_batch(slot_batch(reference._model, closing=closing, end_token_ids=END), expected)
    with decoding(engine, closing=closing):
        answers = run_grants(engine, grants)
        read = run_grants(engine, [replace(grants[0], sampling=Sampling(logprobs=0))])["long", 0].logprobs
    assert read is not None
    assert len(read) == len(answers["long", 0].token_ids)  # those of the closing text too
    for wanted in expected:
        answer = answers[wanted.grant.query_id, 0]
        assert (answer.error, list(answer.token_ids)) == ("", wanted.generated)
        assert answer.finish_reason == wanted.finish_reason
    forced = engine._rendering.text(answers["long", 0].token_ids[12:])
    assert forced.startswith("\nAnswer:")
    assert len(answers["long", 0].token_ids) <= 20


def test_thinking_ends_with_its_budget_over_all_grants(engine: VllmEngine) -> None:
    start, end = (engine._rendering.plain_token_ids(text)[0] for text in THINKING)
    with decoding(engine, thinking_tokens=6, end_token_ids=()):  # which the model would reach before its budget
        whole = run_grants(engine, [Grant("t", "Count to a hundred.", 16, prefix_token_ids=(start,))])["t", 0]
        head = run_grants(engine, [Grant("t", "Count to a hundred.", 4, prefix_token_ids=(start,))])["t", 0]
        rest = Grant("t", "Count to a hundred.", 12, prefix_token_ids=(start, *head.token_ids))
        tail = run_grants(engine, [rest])["t", 0]
    assert whole.token_ids[6] == end
    assert end not in whole.token_ids[:6]
    assert len(whole.token_ids) <= 16
    assert head.token_ids + tail.token_ids == whole.token_ids


def test_a_model_that_does_not_think_has_no_thinking_budget() -> None:
    with pytest.raises(ConfigError, match=r"does not think.*<think>"):
        VllmEngine(VllmConfig(thinking_tokens=100))


def test_the_probe_sees_what_transformers_sees(engine: VllmEngine, reference: TransformersEngine) -> None:
    # More tokens than one pass takes, so that some prompts are cut; the first two begin alike.
    prompts = [*(grant.prompt for grant in GRANTS), *(f"{LONG} {LONG} In {i} words." for i in range(6))]
    names = [f"q{i}" for i in range(len(prompts))]
    here, there = engine.prefill(names, prompts), reference.prefill(names, prompts)
    assert here.prompt_tokens_N.tolist() == there.prompt_tokens_N.tolist()
    np.testing.assert_allclose(here.hidden_last_ND, there.hidden_last_ND, atol=5e-3)
    np.testing.assert_allclose(here.hidden_mean_ND, there.hidden_mean_ND, atol=5e-3)
    np.testing.assert_allclose(here.entropy_N, there.entropy_N, atol=2e-3)
    again = engine.prefill(names, prompts)  # from a warm cache
    np.testing.assert_allclose(again.hidden_mean_ND, here.hidden_mean_ND, atol=5e-3)


def test_a_probe_beside_generation_sees_the_same(engine: VllmEngine) -> None:
    names, prompts = [grant.query_id for grant in GRANTS], [grant.prompt for grant in GRANTS]
    quiet = engine.prefill(names, prompts)

    async def both() -> tuple[list[Generation], object]:
        async def generate() -> list[Generation]:
            return [answer async for answer in engine.generate([Grant(f"g{i}", p, 12) for i, p in enumerate(prompts)])]

        answers, features = await asyncio.gather(generate(), asyncio.to_thread(engine.prefill, names, prompts))
        return answers, features

    answers, features = asyncio.run(both())
    assert len(answers) == len(prompts)
    np.testing.assert_allclose(features.hidden_mean_ND, quiet.hidden_mean_ND, atol=5e-3)  # type: ignore[attr-defined]


def test_without_states_the_entropy_is_bounded_from_above(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    names, prompts = [grant.query_id for grant in GRANTS], [grant.prompt for grant in GRANTS]
    exact = engine.prefill(names, prompts)
    monkeypatch.setattr(engine, "_has_states", False)
    monkeypatch.setattr(engine, "_card", replace(engine.card, hidden_width=0))
    features = engine.prefill(names, prompts)
    assert features.hidden_last_ND.shape == features.hidden_mean_ND.shape == (len(prompts), 0)
    assert (features.entropy_N >= exact.entropy_N - 1e-3).all()
    assert (features.entropy_N <= exact.entropy_N + 0.75).all()  # 0.09 to 0.52 nats were seen


def test_concurrent_calls_share_the_batch(engine: VllmEngine) -> None:
    ended: list[str] = []

    async def call(asked: list[Grant]) -> None:
        async for answer in engine.generate(asked):
            ended.append(answer.query_id)
            assert answer.error == ""

    async def both() -> None:
        long = [Grant("long", "Write a long story about a river.", 40)]
        await asyncio.gather(call(long), call([Grant("short", "Say hi.", 2), Grant("other", "2 + 2 =", 1)]))

    asyncio.run(both())
    assert sorted(ended) == ["long", "other", "short"]
    assert ended[-1] == "long"


def test_a_cancelled_answer_is_yielded_with_what_it_spent(engine: VllmEngine) -> None:
    async def collect() -> dict[str, Generation]:
        answers, asked = (
            {},
            [Grant("gone", "Write a long story about a stone.", 400), Grant("kept", "Name a prime.", 40)],
        )
        before = engine.progress

        async def cancel() -> None:
            while engine.progress < before + 4:
                await asyncio.sleep(0.01)
            engine.cancel(["gone", "unheard of"])

        canceller = asyncio.ensure_future(cancel())
        async for answer in engine.generate(asked):
            answers[answer.query_id] = answer
        await canceller
        return answers

    answers = asyncio.run(collect())
    gone, kept = answers["gone"], answers["kept"]
    assert (gone.finish_reason, gone.error) == ("cancelled", "")
    assert 0 < len(gone.token_ids) < 400
    assert gone.text
    assert kept.finish_reason in ("stop", "length")


def test_an_answer_is_shown_while_it_is_written(engine: VllmEngine) -> None:
    grant = Grant("s", "Name three primes.", 17, sampling=Sampling(stop=("zebra",), logprobs=2))
    whole = run_grants(engine, [grant])["s", 0]

    async def collect() -> list[Partial | Generation]:
        return [item async for item in engine.stream(grant, 5)]

    *parts, last = asyncio.run(collect())
    assert replace(last, cached_tokens=0) == replace(whole, cached_tokens=0)
    assert len(parts) > 1
    for part in parts:
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]
        assert part.logprobs == (whole.logprobs or ())[: len(part.logprobs or ())]


def test_a_caller_that_goes_away_leaves_the_engine_working(engine: VllmEngine) -> None:
    async def first_only() -> str:
        stream = engine.generate([Grant("slow", "Write a long story.", 400), Grant("fast", "Say hi.", 1)])
        async for answer in stream:
            await stream.aclose()  # type: ignore[attr-defined]
            return answer.query_id
        return ""

    assert asyncio.run(first_only()) == "fast"
    assert run_grants(engine, [GRANTS[1]])["q1", 0].error == ""


def test_what_cannot_run_fails_alone(engine: VllmEngine) -> None:
    asked = [
        Grant("prompt", "word " * 900, 5),
        Grant("grant", "Hi", CONTEXT),
        Grant("unknown token", "Hi", 3, prefix_token_ids=(10**6,)),
        Grant("nothing", "Hi", 0),
        GRANTS[1],
    ]
    answers = run_grants(engine, asked)
    assert len(answers) == len(asked)
    for query_id in ("prompt", "grant"):
        assert f"the context is {CONTEXT}" in answers[query_id, 0].error
    assert "vocabulary" in answers["unknown token", 0].error
    assert "at least 1 token, not 0" in answers["nothing", 0].error
    assert [answers[grant.query_id, 0].token_ids for grant in asked[:4]] == [()] * 4
    assert (answers["q1", 0].error, len(answers["q1", 0].token_ids)) == ("", 3)
    with pytest.raises(SchemaError, match="query b"):
        engine.prefill(["a", "b"], ["Hi", "word " * 900])


def test_what_vllm_refuses_fails_its_query_alone(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = engine._thread._parameters

    def refused(answer: object, max_tokens: int) -> object:
        made = parameters(answer, max_tokens)  # type: ignore[arg-type]
        if answer.grant.query_id == "bad":  # type: ignore[attr-defined]
            made.logprobs = 100_000
        return made

    monkeypatch.setattr(engine._thread, "_parameters", refused)
    answers = run_grants(engine, [Grant("bad", "Hi", 3), GRANTS[1]])
    assert "vLLM could not generate it" in answers["bad", 0].error
    assert (answers["q1", 0].error, len(answers["q1", 0].token_ids)) == ("", 3)


def test_no_generation_longer_than_its_grant_comes_out(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = engine._thread._parameters
    monkeypatch.setattr(engine._thread, "_parameters", lambda answer, tokens: parameters(answer, tokens + 2))
    monkeypatch.setattr(engine._thread, "_open", OpenAnswers())  # it remembers the failure
    with pytest.raises(EngineError, match=r"where 5 were allowed.*cap"):
        run_grants(engine, [Grant("w", "Write a long story.", 5)])
    closing = make_closing(engine._rendering, VllmConfig(answer_reserve_tokens=8))
    monkeypatch.setattr(engine._thread, "_open", OpenAnswers())
    with decoding(engine, closing=closing), pytest.raises(EngineError, match="where 20 were allowed"):
        run_grants(engine, [Grant("w", "Write a long story.", 20)])
