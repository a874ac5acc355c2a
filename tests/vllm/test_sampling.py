"""A row's own sampling on vLLM's CPU build: answers are those of `slots`, drawn or not, cut into grants or not."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest

from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine import Engine, Generation, Grant, TransformersEngine, VllmEngine
from clear_ray.errors import EngineError
from tests.unit.engine.conftest import run_grants
from tests.unit.engine.test_structured import SCHEMAS

pytestmark = pytest.mark.vllm

ASKED = {
    "plain": None,
    "repetition": Sampling(repetition_penalty=1.3),
    "presence": Sampling(presence_penalty=1.5),
    "frequency": Sampling(frequency_penalty=0.8),
    "bias": Sampling(logit_bias={"28": -100, "30": 2.5}),
    "least": Sampling(min_tokens=25),
    "stop": Sampling(stop=(" of", "zebra")),
    "special stop": Sampling(stop=("<|im_start|>",), logit_bias={"1": 100}),
    "stop token": Sampling(stop_token_ids=(28,)),
    "all": Sampling(repetition_penalty=1.1, frequency_penalty=0.4, logit_bias={"30": -5}, min_tokens=4, stop=(".",)),
    "late stop": Sampling(stop=(" is", " the"), min_tokens=11),
    "late end of a structure": Sampling(structure=Structure(kind="regex", value="[a-c]{2}"), min_tokens=9),
    "stop in a structure": Sampling(structure=Structure(kind="json_object"), stop=("}", ":"), temperature=1.0, seed=2),
    "hot": Sampling(temperature=5.0, top_k=3, frequency_penalty=-1.0, seed=3),
    "drawn": Sampling(temperature=1.0, seed=3),
    "filtered": Sampling(temperature=1.6, top_k=60, top_p=0.7, min_p=0.1, seed=3),
    "barely drawn": Sampling(temperature=0.005, seed=3),
    "drawn and penalised": Sampling(temperature=0.9, min_p=0.05, presence_penalty=1.2, repetition_penalty=1.2, seed=3),
}
# A stop may be seen a token later than it came, and a structure that is over is given an end; both are spent.
LATE = {name for name, sampling in ASKED.items() if sampling is not None and (sampling.stop or sampling.structure)}
GRANTS = [
    Grant(name, "What is the capital of France?", 30, seed=3, sampling=sampling) for name, sampling in ASKED.items()
]
STRUCTURES = {name: Structure(kind="json_schema", value=json.dumps(schema)) for name, schema in SCHEMAS.items()} | {
    "object": Structure(kind="json_object"),
    "choice": Structure(kind="choice", value='["tea", "milk and tea"]'),
    "regex": Structure(kind="regex", value="[a-c]{2}-[0-9]{3}"),
    "grammar": Structure(kind="grammar", value='start: "<" /[a-z]{1,4}/ ">"'),
}


def test_a_rows_own_sampling_gives_the_tokens_of_slots(engine: VllmEngine, reference: TransformersEngine) -> None:
    here, there = run_grants(engine, GRANTS), run_grants(reference, GRANTS)
    for name in ASKED:
        assert here[name, 0].text == there[name, 0].text, name
        assert here[name, 0].finish_reason == there[name, 0].finish_reason, name
    for name in ASKED.keys() - LATE:  # what was read before is each engine's own affair
        assert replace(here[name, 0], cached_tokens=0) == replace(there[name, 0], cached_tokens=0), name
    assert all(len(here[name, 0].token_ids) - len(there[name, 0].token_ids) in (0, 1) for name in LATE)
    assert len({answer.text for answer in here.values()}) > 3


@pytest.mark.parametrize("cuts", [(2,), (7,), (1, 3, 12)])
def test_it_is_kept_across_grants(engine: VllmEngine, reference: TransformersEngine, cuts: tuple[int, ...]) -> None:
    whole = run_grants(reference, GRANTS)
    for name, answer in cut_answers(engine, GRANTS, cuts).items():
        assert (answer.text, answer.finish_reason) == (whole[name, 0].text, whole[name, 0].finish_reason), name
        if name not in LATE:
            assert answer.token_ids == whole[name, 0].token_ids, name


def cut_answers(engine: Engine, grants: list[Grant], cuts: tuple[int, ...]) -> dict[str, Generation]:
    """Return answers that were granted their tokens in parts, with the tokens of all of them."""
    have: dict[str, Generation] = {}
    for begin, end in zip((0, *cuts), (*cuts, grants[0].max_tokens), strict=True):
        part = [
            replace(grant, max_tokens=end - begin, prefix_token_ids=have[grant.query_id].token_ids if begin else ())
            for grant in grants
            if not begin or have[grant.query_id].finish_reason == "length"
        ]
        for (name, _), answer in run_grants(engine, part).items():
            assert answer.error == "", name
            before = have[name].token_ids if begin else ()
            have[name] = replace(answer, token_ids=before + answer.token_ids)
    return have


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_structures_are_those_of_slots_cut_or_not(
    engine: VllmEngine, reference: TransformersEngine, temperature: float
) -> None:
    asked = [
        Grant(name, "Say it.", 60, seed=4, sampling=Sampling(structure=structure, temperature=temperature))
        for name, structure in STRUCTURES.items()
    ]
    there, whole = run_grants(reference, asked), run_grants(engine, asked)
    ended = [name for name in SCHEMAS if whole[name, 0].finish_reason == "stop"]
    assert len(ended) >= len(SCHEMAS) - 2
    for answers in ({name: answer for (name, _), answer in whole.items()}, cut_answers(engine, asked, (1, 4, 9))):
        for name, answer in answers.items():
            assert answer.error == "", name
            assert (answer.text, answer.finish_reason) == (there[name, 0].text, there[name, 0].finish_reason), name
            # What a structure leaves nothing to has ended in `slots`; vLLM is given an end for it.
            assert len(answer.token_ids) - len(there[name, 0].token_ids) in (0, 1), name
        for name in ended:
            jsonschema.validate(json.loads(answers[name].text), SCHEMAS[name])
        assert answers["choice"].text in ("tea", "milk and tea")


def test_a_structure_that_is_over_with_its_grant_has_ended(engine: VllmEngine) -> None:
    sampling = Sampling(structure=Structure(kind="choice", value='["tea"]'))
    tokens = len(engine._rendering.plain_token_ids("tea"))
    answer = run_grants(engine, [Grant("q", "Say it.", tokens, sampling=sampling)])["q", 0]
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("tea", "stop", tokens)


def test_what_cannot_be_kept_fails_its_query_alone(engine: VllmEngine) -> None:
    wrong = Sampling(structure=Structure(kind="regex", value="[a-c"))
    other = Sampling(structure=Structure(kind="choice", value='["tea"]'))
    asked = [
        Grant("wrong", "Say it.", 5, sampling=wrong),
        Grant("prefix", "Say it.", 5, sampling=other, prefix_token_ids=(28, 30)),
        Grant("plain", "Say hi.", 3),
    ]
    answers = run_grants(engine, asked)
    assert "structure" in answers["wrong", 0].error
    assert "structure" in answers["prefix", 0].error
    assert (answers["plain", 0].error, len(answers["plain", 0].token_ids)) == ("", 3)


def test_a_stop_over_two_grants_is_seen_when_it_is_whole(engine: VllmEngine, reference: TransformersEngine) -> None:
    prompt = "Count from one to twenty in words."
    ids = run_grants(reference, [Grant("c", prompt, 60)])["c", 0].token_ids
    for cut in (20, 30):
        stop = engine._rendering.text(ids[cut - 2 : cut + 2]).strip()
        asked = Grant("c", prompt, 60, sampling=Sampling(stop=(stop, "zebra")))
        whole = run_grants(reference, [asked])["c", 0]
        rest = replace(asked, max_tokens=60 - cut, prefix_token_ids=ids[:cut])
        answer = run_grants(engine, [rest])["c", 0]
        assert (answer.text, answer.finish_reason) == (whole.text, "stop")
        assert len(answer.token_ids) <= len(whole.token_ids) - cut + 2


def test_log_probabilities_are_those_of_slots(engine: VllmEngine, reference: TransformersEngine) -> None:
    asked = [
        Grant("greedy", "What is the capital of France?", 12, sampling=Sampling(logprobs=5)),
        Grant("shaped", "Name a river.", 12, sampling=Sampling(logprobs=0, repetition_penalty=1.4, stop=(" the",))),
        Grant("plain", "Say hi.", 4),
    ]
    here, there = run_grants(engine, asked), run_grants(reference, asked)
    assert here["plain", 0].logprobs is None
    for name in ("greedy", "shaped"):
        ours, theirs = here[name, 0].logprobs, there[name, 0].logprobs
        assert ours
        assert theirs
        for mine, other in zip(ours, theirs, strict=False):  # a stop may be seen a token later
            assert mine.token == other.token
            assert mine.logprob == pytest.approx(other.logprob, abs=2e-3)
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in other.top], abs=2e-3)
        assert {len(entry.top) for entry in ours} == {5 if name == "greedy" else 0}


def test_a_vllm_that_does_not_take_the_tokens_is_refused(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine._try_choice()
    monkeypatch.setattr("clear_ray.engine.vllm_thread.told_of", lambda *_: None)
    with pytest.raises(EngineError, match=r"does not take the tokens.*in place of"):
        engine._try_choice()
