"""What rows ask of their logits, beside transformers' own processors and its `generate`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clear_ray.config.sampling import Sampling
from clear_ray.engine import Grant
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.choice import Stops, TokenChoice
from clear_ray.engine.logits import LogitsShaper
from clear_ray.engine.sampling import keep_likely
from tests.unit.engine.tiny import END, VOCABULARY, answer_for, run_batch, slot_batch, tiny_model

token = st.integers(0, VOCABULARY - 1)
biases = st.dictionaries(token, st.floats(-20, 20, width=32), max_size=4)
choices = st.builds(
    Sampling,
    temperature=st.sampled_from([None, 0.0, 0.7, 1.3]),
    top_k=st.sampled_from([None, 1, 5, 40, 1000]),
    top_p=st.sampled_from([None, 0.2, 0.9, 1.0]),
    min_p=st.sampled_from([None, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([None, 0.7, 1.3, 2.0]),
    presence_penalty=st.sampled_from([None, -1.0, 1.5]),
    frequency_penalty=st.sampled_from([None, 0.5]),
    logit_bias=st.one_of(st.just({}), biases),
    min_tokens=st.sampled_from([0, 5, 20]),
    stop_token_ids=st.sampled_from([(), (7, 8)]),
    seed=st.sampled_from([None, 3]),
)
prompts = st.lists(token, min_size=1, max_size=12)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def exact_model() -> Any:
    return tiny_model()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 3, 59, 60, 200]),
    top_p=st.floats(0.01, 1),
    min_p=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    torch.manual_seed(seed)
    logits_NV = torch.randn(4, VOCABULARY) * 4
    logits_NV[1, :10] = logits_NV[1, 10]  # ties
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    theirs_NV = warpers(torch.zeros(4, 1, dtype=torch.long), logits_NV.clone())
    # Every second row asks for nothing: each row has its own filters.
    ours_NV = keep_likely(
        logits_NV.repeat_interleave(2, dim=0),
        temperature_M=[temperature, 1.0] * 4,
        top_k_M=[top_k, 0] * 4,
        top_p_M=[top_p, 1.0] * 4,
        min_p_M=[min_p, 0.0] * 4,
    )
    assert torch.equal(ours_NV[::2], theirs_NV)
    assert torch.equal(ours_NV[1::2], logits_NV)


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 0.9999])
def test_a_nucleus_of_a_large_vocabulary_is_that_of_transformers(top_p: float) -> None:
    torch.manual_seed(2)
    logits_NV = torch.randn(4, 5_000) * torch.tensor([[0.01], [1.0], [4.0], [9.0]])  # the widest must be sorted whole
    logits_NV[2, 100:200] = logits_NV[2].max()  # and so must equal ones, some of which are left out
    theirs_NV = TopPLogitsWarper(top_p)(torch.zeros(4, 1, dtype=torch.long), logits_NV.clone())
    for rows in ([0, 1, 2, 3], [2, 3]):
        count = len(rows)
        ours_NV = keep_likely(
            logits_NV[rows],
            temperature_M=[1.0] * count,
            top_k_M=[0] * count,
            top_p_M=[top_p] * count,
            min_p_M=[0.0] * count,
        )
        differs_NV = (ours_NV > -torch.inf) != (theirs_NV[rows] > -torch.inf)
        share_N = logits_NV[rows].softmax(dim=-1).masked_fill(~differs_NV, 0.0).sum(dim=-1)
        assert share_N.max() < 2e-4  # theirs are sums of thousands in float32
        assert differs_NV.sum() <= 0.001 * logits_NV[rows].numel()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    prompt=prompts,
    prefix=st.lists(token, max_size=6),
    generated=st.lists(token, max_size=6),
    penalty=st.floats(0.5, 2),
    bias=biases,
)
def test_biases_and_penalties_are_those_of_transformers(
    seed: int, prompt: list[int], prefix: list[int], generated: list[int], penalty: float, bias: dict[int, float]
) -> None:
    torch.manual_seed(seed)
    logits_NV = torch.randn(2, VOCABULARY) * 4
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    if bias:
        processors.insert(0, SequenceBiasLogitsProcessor([[[token_id], value] for token_id, value in bias.items()]))
    ids = torch.tensor([[*prompt, *prefix, *generated]])
    theirs_V = processors(ids, logits_NV[:1].clone())[0]
    answer = answer_for(Grant("q", "", 9, prefix_token_ids=tuple(prefix)), prompt)
    answer.choice = TokenChoice(repetition_penalty=penalty, logit_bias=tuple(sorted(bias.items())))
    other = answer_for(Grant("r", "", 9), [1])
    shaper = LogitsShaper(END)
    for count in range(len(generated) + 1):  # token by token, as a batch does
        answer.generated = generated[:count]
        ours_NV = shaper.shape(logits_NV, [answer, other])
    assert torch.equal(ours_NV[0], theirs_V)
    assert torch.equal(ours_NV[1], logits_NV[1])


def test_presence_is_taken_once_and_frequency_each_time() -> None:
    answer = answer_for(Grant("q", "", 9, prefix_token_ids=(5,)), [4])
    answer.choice, answer.generated = TokenChoice(presence_penalty=0.5, frequency_penalty=0.25), [5, 6]
    shaped_V = LogitsShaper(END).shape(torch.zeros(1, VOCABULARY), [answer])[0]
    # The prompt does not count, an earlier grant does.
    assert shaped_V[4:8].tolist() == [0.0, -1.0, -0.75, 0.0]


@settings(deadline=None, max_examples=25)
@given(
    asked=st.lists(st.tuples(prompts, st.integers(1, 20)), min_size=1, max_size=4),
    penalty=st.sampled_from([0.8, 1.2, 1.8]),
    bias=biases,
    min_tokens=st.integers(0, 15),
)
def test_greedy_answers_are_those_of_generate(
    model: Any, asked: list[tuple[list[int], int]], penalty: float, bias: dict[int, float], min_tokens: int
) -> None:
    sampling = Sampling(repetition_penalty=penalty, logit_bias=bias, min_tokens=min_tokens)
    grants = [Grant(f"q{i}", "", most, sampling=sampling) for i, (_, most) in enumerate(asked)]
    answers = [answer_for(grant, ids) for grant, (ids, _) in zip(grants, asked, strict=True)]
    # A neighbour that asks for something else, and one that asks for nothing.
    neighbours = [
        answer_for(Grant("n0", "", 12, sampling=Sampling(repetition_penalty=3.0, temperature=1.0)), [9, 9]),
        answer_for(Grant("n1", "", 12), [8]),
    ]
    run_batch(slot_batch(model, max_batch=4), [neighbours[0], *answers, neighbours[1]])
    for answer, (ids, most) in zip(answers, asked, strict=True):
        expected = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=most,
            min_new_tokens=min(min_tokens, most),
            repetition_penalty=penalty,
            sequence_bias=[[[token_id], value] for token_id, value in bias.items()] or None,
            eos_token_id=sorted(END),
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        assert answer.generated == expected


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(st.tuples(prompts, choices, st.integers(4, 24)), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 9), max_size=3),
    max_batch=st.integers(1, 4),
)
def test_an_answer_is_its_own_whatever_runs_beside_it_and_however_it_is_cut(
    exact_model: Any, asked: list[tuple[list[int], Sampling, int]], cuts: list[int], max_batch: int
) -> None:
    whole = []
    for i, (ids, sampling, most) in enumerate(asked):
        alone = answer_for(Grant(f"q{i}", "", most, seed=sampling.seed or i, sampling=sampling), ids)
        whole.append(run_batch(slot_batch(exact_model), [alone])[0])
    parts: dict[int, tuple[int, ...]] = dict.fromkeys(range(len(asked)), ())
    ended: dict[int, RunningGrant] = {}
    for cut in [*cuts, 1_000]:
        answers = {}
        for i, (ids, sampling, most) in enumerate(asked):
            left = min(cut, most - len(parts[i]))
            if (i in ended and ended[i].finish_reason == "stop") or left < 1:
                continue
            grant = Grant(f"q{i}", "", left, seed=sampling.seed or i, prefix_token_ids=parts[i], sampling=sampling)
            answers[i] = answer_for(grant, ids)
        run_batch(slot_batch(exact_model, max_batch=max_batch), list(answers.values()))
        for i, answer in answers.items():
            ended[i], parts[i] = answer, parts[i] + tuple(answer.generated)
    for i, answer in enumerate(whole):
        assert parts[i] == tuple(answer.generated)
        assert ended[i].finish_reason == answer.finish_reason


def test_the_runs_settings_hold_where_a_row_says_nothing(model: Any) -> None:
    def tokens(sampling: Sampling | None, **run: Any) -> list[int]:
        answer = answer_for(Grant("q", "", 30, sampling=sampling), [5, 6])
        return run_batch(slot_batch(model, end_token_ids=frozenset(), **run), [answer])[0].generated

    assert tokens(None, repetition_penalty=1.5) == tokens(Sampling(repetition_penalty=1.5)) != tokens(None)
    assert tokens(None, temperature=1.0, top_k=3) == tokens(Sampling(temperature=1.0, top_k=3))
    assert tokens(Sampling(temperature=0.0), temperature=1.0) == tokens(None)
    assert tokens(Sampling(stop_token_ids=(tokens(None)[3],)))[-1] == tokens(None)[3]


def spelled(token_ids: Any) -> str:
    return "".join(chr(97 + token_id % 26) for token_id in token_ids)


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(token, min_size=1, max_size=30),
    stops=st.lists(st.text("abcdz", min_size=1, max_size=3), min_size=1, max_size=3),
    min_tokens=st.integers(0, 10),
)
def test_an_answer_ends_with_the_token_that_completes_a_stop(ids: list[int], stops: list[str], min_tokens: int) -> None:
    rule = Stops(tuple(stops), spelled, min_tokens)
    text = spelled(ids)
    ends = [place + len(stop) for stop in stops for place in range(len(text)) if text.startswith(stop, place)]
    first = min((end for end in ends if end > min_tokens), default=None)
    came = next((count for count in range(1, len(ids) + 1) if rule.has_come(ids[:count])), None)
    assert came == first  # a letter a token
    if first is not None:
        cut = rule.cut(ids[:first])
        assert cut is not None
        assert any(text[len(cut) : first].startswith(stop) for stop in stops)
    else:
        assert rule.cut(ids) is None


def test_a_stop_is_found_across_the_border_of_two_grants(model: Any) -> None:
    whole = run_batch(slot_batch(model, end_token_ids=frozenset()), [answer_for(Grant("q", "", 20), [5])])[0].generated
    stop = spelled(whole[3:6])
    first = next(k for k in range(3, 21) if stop in spelled(whole[:k]))
    grant = Grant("q", "", 20 - first + 1, prefix_token_ids=tuple(whole[: first - 1]))
    answer = answer_for(grant, [5])
    answer.stops = Stops((stop,), spelled)
    run_batch(slot_batch(model, end_token_ids=frozenset()), [answer])
    assert answer.generated == whole[first - 1 : first]
    assert answer.finish_reason == "stop"


def test_a_sampling_is_one_text_and_comes_back_from_it() -> None:
    sampling = Sampling(temperature=0.5, stop=("a", "é"), logit_bias={"7": 1, "3": -2.5})
    assert sampling.logit_bias == ((3, -2.5), (7, 1.0))
    assert Sampling.load(sampling.dump()) == sampling
    assert json.loads(sampling.dump()).keys() == {"temperature", "stop", "logit_bias"}
    assert Sampling.load(None) is None
    assert hash(sampling) == hash(replace_like(sampling))


def replace_like(sampling: Sampling) -> Sampling:
    return sampling.model_copy()
