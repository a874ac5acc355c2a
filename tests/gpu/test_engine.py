"""TransformersEngine on a CUDA device: `make test-gpu`. Everything here is skipped where there is none.

Answers are compared with transformers' own `generate` of one query at a time. float32 runs without TF32, whose rounding
tips a token now and then.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine import Grant, TransformersEngine
from clear_ray.engine.loading import cache_capacity_tokens, load_model
from clear_ray.engine.smollm2 import EMBEDDED_MODEL
from tests.unit.engine.conftest import run_grants
from tests.unit.engine.tiny import answer_for, run_batch, slot_batch, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
ASKED = [
    ("What is the capital of France?", 24),
    ("Say hi.", 3),
    ("Name three primes.", 17),
    (" ".join(["Long prompts are read in one pass or in several."] * 9) + " Summarise.", 8),
    ("2 + 2 =", 1),
    ("Write a story about a river and a stone.", 120),
    ("Answer with the word yes.", 20),
]
GRANTS = [Grant(f"q{i}", prompt, max_tokens, seed=3) for i, (prompt, max_tokens) in enumerate(ASKED)]


@pytest.fixture(scope="module", autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(TransformersConfig(device="cuda", dtype="float32", max_batch=4))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(engine: TransformersEngine) -> list[tuple[int, ...]]:
    answers = []
    for grant, ids in zip(GRANTS, engine._rendering.token_ids([grant.prompt for grant in GRANTS]), strict=True):
        inputs = torch.tensor([ids], device="cuda")
        whole = engine._model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=grant.max_tokens, do_sample=False
        )
        answers.append(tuple(whole[0, len(ids) :].tolist()))
    return answers


def test_every_answer_is_that_of_generate_alone(engine: TransformersEngine, expected: list[tuple[int, ...]]) -> None:
    for order in (GRANTS, GRANTS[::-1]):
        answers = run_grants(engine, order)
        assert [answers[grant.query_id, 0].token_ids for grant in GRANTS] == expected


def test_a_continuation_goes_on_exactly(engine: TransformersEngine, expected: list[tuple[int, ...]]) -> None:
    prompt, tokens = ASKED[5][0], expected[5]
    cut = len(tokens) // 2
    grant = Grant("q5", prompt, len(tokens) - cut, prefix_token_ids=tokens[:cut])
    assert run_grants(engine, [GRANTS[0], grant])["q5", 0].token_ids == tokens[cut:]


def test_the_features_are_those_of_the_cpu(engine: TransformersEngine) -> None:
    names, prompts = [grant.query_id for grant in GRANTS], [grant.prompt for grant in GRANTS]
    on_cpu = TransformersEngine(TransformersConfig(device="cpu", dtype="float32"))
    here, there = engine.prefill(names, prompts), on_cpu.prefill(names, prompts)
    on_cpu.close()
    assert here.prompt_tokens_N.tolist() == there.prompt_tokens_N.tolist()
    np.testing.assert_allclose(here.hidden_last_ND, there.hidden_last_ND, atol=1e-2)
    np.testing.assert_allclose(here.hidden_mean_ND, there.hidden_mean_ND, atol=1e-2)
    np.testing.assert_allclose(here.entropy_N, there.entropy_N, atol=1e-2)


def test_a_token_that_the_model_does_not_know_leaves_the_device_working(engine: TransformersEngine) -> None:
    answers = run_grants(engine, [Grant("bad", "Hi", 3, prefix_token_ids=(10**6,)), GRANTS[0]])
    assert "vocabulary" in answers["bad", 0].error
    assert "Paris" in answers["q0", 0].text


def test_bfloat16_is_the_default_and_answers() -> None:
    engine = TransformersEngine(TransformersConfig(device="cuda", max_batch=8))
    answers = run_grants(engine, GRANTS)
    engine.close()
    assert engine.card.hidden_width == 576
    assert [answer.error for answer in answers.values()] == [""] * len(GRANTS)
    assert all(1 <= len(answers[grant.query_id, 0].token_ids) <= grant.max_tokens for grant in GRANTS)
    assert "Paris" in answers["q0", 0].text


def test_the_cache_is_bounded_by_what_the_device_has_free() -> None:
    model = tiny_model(dtype=torch.float32, device="cuda")
    bytes_per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    free, total = torch.cuda.mem_get_info()
    room = cache_capacity_tokens(model) * bytes_per_token
    assert 0 < room <= total
    assert room == pytest.approx(0.75 * free, rel=0.2)
    taken = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    less = cache_capacity_tokens(model) * bytes_per_token
    del taken
    torch.cuda.empty_cache()
    assert less == pytest.approx(room / 2, rel=0.2)


def test_a_closed_engine_gives_its_memory_back() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = TransformersEngine(TransformersConfig(device="cuda", dtype="float32", max_batch=4))
    run_grants(engine, GRANTS[:2])
    weights = 100_000_000 * 4
    assert torch.cuda.memory_allocated() - before > weights
    engine.close()
    gc.collect()
    assert torch.cuda.memory_allocated() - before < weights / 10


def test_more_queries_than_slots_all_keep_their_grants() -> None:
    engine = TransformersEngine(TransformersConfig(device="cuda", max_batch=64))
    grants = [Grant(f"q{i}", f"Count from {i} to a thousand.", 1 + (37 * i) % 96) for i in range(256)]
    answers = run_grants(engine, grants)
    engine.close()
    assert len(answers) == len(grants)
    for grant in grants:
        answer = answers[grant.query_id, 0]
        assert answer.error == ""
        assert len(answer.token_ids) == grant.max_tokens or answer.finish_reason == "stop"


def test_graphs_give_the_tokens_of_single_kernels_also_after_the_cache_has_grown() -> None:
    model = tiny_model(device="cuda")
    grants = [Grant(f"q{i}", "", 1 + (11 * i) % 60, seed=2) for i in range(24)]
    prompts = [[5 + i % 50] * (1 + (7 * i) % 90) for i in range(24)]
    tokens = []
    for graphs in (False, True):
        batch = slot_batch(model, max_batch=5, prefill_tokens=512, temperature=0.8, graphs=graphs, refill_rows=2)
        answers = [answer_for(grant, ids) for grant, ids in zip(grants, prompts, strict=True)]
        run_batch(batch, answers[:8])
        run_batch(batch, answers[8:])
        tokens.append([answer.generated for answer in answers])
        if graphs:
            captured = batch._runner._captured  # type: ignore[attr-defined]
            assert {key[0] for key, one in captured.items() if one.graph is not None} == {"decode", "read", "copy"}
    assert tokens[0] == tokens[1]


def test_an_eager_engine_answers_alike(engine: TransformersEngine, expected: list[tuple[int, ...]]) -> None:
    eager = TransformersEngine(TransformersConfig(device="cuda", dtype="float32", max_batch=4, enforce_eager=True))
    answers = run_grants(eager, GRANTS)
    eager.close()
    assert [answers[grant.query_id, 0].token_ids for grant in GRANTS] == expected


def test_a_device_name_is_heeded() -> None:
    assert load_model(EMBEDDED_MODEL, device=torch.device("cuda:0"), dtype=None).device.index == 0
