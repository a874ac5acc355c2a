"""A row's own sampling on vLLM's CPU build: greedy answers are those of `slots`, and structures are kept."""

from __future__ import annotations

import json

import jsonschema
import pytest

from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine import Grant, TransformersEngine, VllmEngine
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
    "stop token": Sampling(stop_token_ids=(28,)),
    "all": Sampling(repetition_penalty=1.1, frequency_penalty=0.4, logit_bias={"30": -5}, min_tokens=4, stop=(".",)),
}
GRANTS = [Grant(name, "What is the capital of France?", 30, sampling=sampling) for name, sampling in ASKED.items()]


def test_a_rows_own_sampling_gives_the_tokens_of_slots(engine: VllmEngine, reference: TransformersEngine) -> None:
    here, there = run_grants(engine, GRANTS), run_grants(reference, GRANTS)
    for name in ASKED:
        assert here[name, 0].text == there[name, 0].text, name
        assert here[name, 0].finish_reason == there[name, 0].finish_reason, name
    # A stop may be seen a token later than it came, which is spent.
    assert all(here[name, 0] == there[name, 0] for name, sampling in ASKED.items() if not (sampling and sampling.stop))
    assert len({answer.text for answer in here.values()}) > 3


@pytest.mark.parametrize("name", ["repetition", "frequency", "least", "stop", "all"])
@pytest.mark.parametrize("cut", [2, 7])
def test_it_is_kept_across_grants(engine: VllmEngine, reference: TransformersEngine, name: str, cut: int) -> None:
    grant = next(grant for grant in GRANTS if grant.query_id == name)
    whole = run_grants(reference, [grant])[name, 0]
    head = run_grants(engine, [Grant(name, grant.prompt, cut, sampling=grant.sampling)])[name, 0]
    if head.finish_reason == "stop":
        assert (head.text, whole.finish_reason) == (whole.text, "stop")
        return
    assert head.finish_reason == "length"
    rest = Grant(name, grant.prompt, 30 - cut, prefix_token_ids=head.token_ids, sampling=grant.sampling)
    tail = run_grants(engine, [rest])[name, 0]
    assert (tail.text, tail.finish_reason) == (whole.text, whole.finish_reason)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_stop_that_begins_in_an_earlier_grant_ends_the_answer_where_it_comes(
    engine: VllmEngine, reference: TransformersEngine, cut: int
) -> None:
    prompt, sampling = "What is the capital of France?", Sampling(stop=("capital of France", "is Paris"))
    spent: tuple[int, ...] = ()
    while True:
        grant = Grant("stop", prompt, cut, prefix_token_ids=spent, sampling=sampling)
        answer = run_grants(engine, [grant])["stop", 0]
        spent += answer.token_ids
        if answer.finish_reason == "stop":
            break
    whole = run_grants(reference, [Grant("stop", prompt, 30, sampling=sampling)])["stop", 0]
    assert (answer.text, spent) == (whole.text, whole.token_ids)


def test_structures_are_kept_and_a_cut_answer_is_not_gone_on_with(engine: VllmEngine) -> None:
    structures = {name: Structure(kind="json_schema", value=json.dumps(schema)) for name, schema in SCHEMAS.items()}
    structures |= {
        "choice": Structure(kind="choice", value='["tea", "milk"]'),
        "regex": Structure(kind="regex", value="[a-c]{2}-[0-9]"),
        "grammar": Structure(kind="grammar", value='start: "<" /[a-z]{1,4}/ ">"'),
    }
    asked = [Grant(name, "Say it.", 60, sampling=Sampling(structure=kept)) for name, kept in structures.items()]
    answers = run_grants(engine, asked)
    assert all(answer.error == "" for answer in answers.values())
    ended = [name for name in SCHEMAS if answers[name, 0].finish_reason == "stop"]
    assert len(ended) >= len(SCHEMAS) - 2
    for name in ended:
        jsonschema.validate(json.loads(answers[name, 0].text), SCHEMAS[name])
    assert answers["choice", 0].text in ("tea", "milk")
    cut = run_grants(engine, [Grant("flat", "Say it.", 2, sampling=asked[0].sampling)])["flat", 0]
    assert cut.finish_reason == "length"
    rest = Grant("flat", "Say it.", 9, prefix_token_ids=cut.token_ids, sampling=asked[0].sampling)
    again = run_grants(engine, [rest])["flat", 0]
    assert (again.token_ids, again.finish_reason) == ((), "length")


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
