"""The choice of tokens inside vLLM's workers, without vLLM: answers cut into grants are the uncut ones of `slots`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clear_ray.config.engine import TransformersConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine import Grant, resolve_model
from clear_ray.engine.base import FinishReason
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.choice import Stops, choice_of
from clear_ray.engine.closing import Closing
from clear_ray.engine.vllm_choice import ModelFacts, TokenChooser, told_of
from clear_ray.engine.vllm_sampling import has_stop, kept_to_structure, may_span
from tests.unit.engine.tiny import answer_for, run_batch, slot_batch, tiny_config

ENDS = (0, 2)
MOST_TOKENS = 16
FEW = {str(token_id): 60.0 for token_id in range(100, 106)}  # which then come again and again
ASKED = {
    "presence": Sampling(presence_penalty=1.5, logit_bias=FEW),
    "frequency": Sampling(frequency_penalty=0.8, logit_bias=FEW),
    "presence and repetition": Sampling(presence_penalty=1.5, repetition_penalty=1.02, logit_bias=FEW),
    "drawn": Sampling(temperature=1.0),
    "filtered": Sampling(temperature=1.7, top_k=50, top_p=0.8, min_p=0.05),
    "all": Sampling(temperature=0.8, min_p=0.02, presence_penalty=-1.0, repetition_penalty=1.2, min_tokens=9),
    "json": Sampling(structure=Structure(kind="json_schema", value='{"type": "array", "items": {"type": "boolean"}}')),
    "drawn expression": Sampling(temperature=1.0, structure=Structure(kind="regex", value="[a-f]{3}(-[0-9]{2}){2,9}")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random model with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    torch.manual_seed(3)
    config = tiny_config(vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def chooser(folder: Path, model: Any) -> TokenChooser:
    return TokenChooser(ModelFacts(str(folder), model.config.vocab_size, ENDS))


@torch.inference_mode()
def generate(
    model: Any,
    chooser: TokenChooser,
    answers: list[RunningGrant],
    *,
    closing: Closing | None = None,
    again_at: int = -1,
) -> list[list[int]]:
    """Generate as vLLM does, by the likeliest token after the choice; at `again_at` all requests are begun again."""
    told = [told_of(answer, choice_of(TransformersConfig(), answer.grant.sampling), closing) for answer in answers]
    rows: list[Any] = [
        None if one is None else chooser.begin(one, answer.input_ids, answer.generated)
        for one, answer in zip(told, answers, strict=True)
    ]
    running = set(range(len(answers)))
    step = 0
    while running:
        places = sorted(running)
        ids = [[*answers[row].input_ids, *answers[row].generated] for row in places]
        logits_NV = torch.stack([model(torch.tensor([row_ids])).logits[0, -1].float() for row_ids in ids])
        asking = [(place, rows[row]) for place, row in enumerate(places) if rows[row] is not None]
        if asking:
            chooser.force(logits_NV, asking)
        for row, token_id in zip(places, logits_NV.argmax(dim=-1).tolist(), strict=True):
            answers[row].generated.append(token_id)
            if token_id in ENDS or len(answers[row].generated) == answers[row].grant.max_tokens:
                running.discard(row)
        step += 1
        if step == again_at:
            for row in running:
                begun = told[row]
                if begun is not None:
                    rows[row] = chooser.begin(begun, answers[row].input_ids, answers[row].generated)
    return [answer.generated for answer in answers]


def expected_of(
    model: Any, chooser: TokenChooser, grants: list[Grant], ids: list[int], **settings: Any
) -> list[list[int]]:
    """Return what one uninterrupted answer of `slots` is to each grant."""
    answers = [answer_for(grant, ids) for grant in grants]
    for answer in answers:
        sampling = answer.grant.sampling
        if sampling is not None and sampling.structure is not None:
            answer.matcher = chooser._structures.matcher(sampling.structure, ())
    run_batch(slot_batch(model, max_batch=8, end_token_ids=frozenset(ENDS), **settings), answers)
    return [answer.generated for answer in answers]


def test_answers_cut_into_grants_are_the_uncut_ones_of_slots(model: Any, chooser: TokenChooser) -> None:
    ids = [11, 45, 7, 45, 300, 9]
    grants = [Grant(name, "", MOST_TOKENS, seed=5, sampling=sampling) for name, sampling in ASKED.items()]
    expected = expected_of(model, chooser, grants, ids)
    have: list[list[int]] = [[] for _ in grants]
    is_over = [False] * len(grants)
    for begin, end in ((0, 1), (1, 9), (9, MOST_TOKENS)):
        open_ = [row for row, over in enumerate(is_over) if not over]
        parts = [replace(grants[row], max_tokens=end - begin, prefix_token_ids=tuple(have[row])) for row in open_]
        for row, new in zip(open_, generate(model, chooser, [answer_for(part, ids) for part in parts]), strict=True):
            have[row] += new
            is_over[row] = have[row][-1] in ENDS
    for name, mine, theirs in zip(ASKED, have, expected, strict=True):
        # What a structure leaves nothing to is over in `slots`; vLLM has to be given its end.
        assert mine == theirs or (mine[:-1] == theirs and mine[-1] in ENDS), name
    assert len({tuple(tokens) for tokens in have}) == len(have)
    assert max(map(len, have)) == MOST_TOKENS


def test_a_request_that_had_to_make_room_goes_on(model: Any, chooser: TokenChooser) -> None:
    ids = [11, 45, 7]
    grants = [Grant(name, "", MOST_TOKENS, seed=5, sampling=sampling) for name, sampling in ASKED.items()]
    answers = [[answer_for(grant, ids) for grant in grants] for _ in range(2)]
    whole = generate(model, chooser, answers[0])
    assert generate(model, chooser, answers[1], again_at=6) == whole


@pytest.mark.parametrize("again_at", [-1, 10])
def test_answers_are_closed_as_in_slots(model: Any, chooser: TokenChooser, again_at: int) -> None:
    ids, grant = [11, 45, 7], Grant("closed", "", MOST_TOKENS)
    closing = Closing(8, (700, 701, 702, 703), chooser._rendering.text, "no such text")
    expected = expected_of(model, chooser, [grant], ids, closing=closing)
    answers = [answer_for(grant, ids)]
    assert generate(model, chooser, answers, closing=closing, again_at=again_at) == expected
    assert expected[0][8:12] == [700, 701, 702, 703]


def test_a_plain_greedy_request_tells_nothing() -> None:
    assert told_of(answer_for(Grant("q", "", 5), [1]), choice_of(TransformersConfig(), None), None) is None


def test_a_stop_may_go_on_where_a_grant_begins() -> None:
    stops = Stops(("END", "\n\n"), lambda ids: "".join(chr(token_id) for token_id in ids))

    def holds(text: str, new_tokens: int) -> bool:
        answer = answer_for(Grant("q", "", 9, prefix_token_ids=tuple(map(ord, text[:-new_tokens]))), [1])
        answer.generated, answer.stops = list(map(ord, text[-new_tokens:])), stops
        return has_stop(answer, new_tokens)

    assert [may_span(stops, list(map(ord, text))) for text in ("an E", "an EN", "line\n", "an END", "", "a b")] == [
        *([True] * 3),
        *([False] * 3),
    ]
    assert holds("an END", 1)
    assert holds("an ENDING of it all", 14)
    assert not holds("an ENTRY", 3)


@pytest.mark.parametrize(
    ("text", "end", "reason", "expected"),
    [
        ("aa-1", True, "stop", "stop"),
        ("aa-1", False, "length", "stop"),  # it can but end
        ("aa-", False, "length", "length"),
        ("aa-", False, "cancelled", "cancelled"),
        ("aa", True, "stop", ""),
        ("b", False, "length", ""),
    ],
)
def test_an_answer_that_has_ended_keeps_to_its_structure_or_fails(
    chooser: TokenChooser, text: str, end: bool, reason: FinishReason, expected: str
) -> None:
    rendering, structures = chooser._rendering, chooser._structures
    answer = answer_for(Grant("q", "", 9), [1])
    answer.matcher = structures.matcher(Structure(kind="regex", value="aa-[0-9]"), ())
    answer.generated = [*rendering.plain_token_ids(text), *([2] if end else [])]
    ended = kept_to_structure(answer, reason, frozenset(ENDS))
    assert ended.finish_reason == (expected or "cancelled")
    assert ("its structure" in ended.error) is not bool(expected)
