"""A completion's prompt reaches the model as it stands; a chat's through its template."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.base import Grant, RawText, TokenIds, read_prompt, words_of
from clear_ray.engine.build import build_engine, prompt_limit
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.smollm2 import EMBEDDED_MODEL, embedded_model_folder
from clear_ray.errors import SchemaError
from clear_ray.stages.generate import asked_directly

SHOTS = "Capital of Spain: Madrid\nCapital of Italy: Rome\nCapital of Japan: Tokyo\nCapital of"


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded_model_folder()


def test_raw_text_and_tokens_have_no_template_and_no_system_prompt(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendering = Rendering(folder, system_prompt="Be brief.")
    text = f"{SHOTS} France:"
    raw, tokens = (
        read_prompt(text, is_conversation=False, form="raw"),
        read_prompt("[5, 7]", is_conversation=False, form="tokens"),
    )
    plain = read_prompt(text, is_conversation=False)
    found = rendering.token_ids([raw, plain, tokens])
    assert found[0] == tokenizer(text)["input_ids"]
    assert len(found[0]) == 22
    assert len(found[1]) > 22 + 10, "a plain prompt is put into the template"
    assert found[2] == [5, 7]
    with pytest.raises(SchemaError, match="a token id is none of this model's"):
        rendering.token_ids([TokenIds((1, 10**6))])


def test_the_length_of_a_raw_prompt_is_counted_without_a_template(folder: Path) -> None:
    limit = prompt_limit(TransformersConfig(model=EMBEDDED_MODEL))
    assert limit is not None
    text = f"{SHOTS} France:"
    counts = limit.count_tokens([text, text, "[1, 2, 3]"], ["raw", "text", "tokens"])
    assert (counts[0], counts[2]) == (22, 3)
    assert counts[1] > 32


def test_what_asks_for_a_direct_answer_keeps_the_form() -> None:
    assert asked_directly(RawText("a"), "b") == "a\n\nb"
    assert isinstance(asked_directly(RawText("a"), "b"), RawText)
    assert not isinstance(asked_directly("a", "b"), RawText)
    assert asked_directly(TokenIds((1, 2)), "b") == (1, 2)
    assert words_of(TokenIds((1, 2))) == ""
    assert words_of((("user", "a"), ("assistant", "b"))) == "a\nb"


@pytest.mark.slow
def test_few_shot_prompts_are_answered_as_by_the_model_itself(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    engine = build_engine(TransformersConfig(model=EMBEDDED_MODEL, max_batch=4, threads=1, dtype="float32"))
    capitals = {"France": "Paris", "Egypt": "Cairo", "Peru": "Lima", "Norway": "Oslo"}
    prompts = {country: f"{SHOTS} {country}:" for country in capitals}
    tokens = tokenizer(prompts["Peru"])["input_ids"]
    grants = [Grant(country, RawText(prompt), 8) for country, prompt in prompts.items()]
    grants.append(Grant("tokens", TokenIds(tokens), 8))

    async def answers() -> dict[str, str]:
        return {generation.query_id: generation.text async for generation in engine.generate(grants)}

    found = asyncio.run(answers())
    engine.close()
    for country, capital in capitals.items():
        ids = tokenizer(prompts[country], return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        assert found[country] == tokenizer.decode(whole[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert found[country].startswith(f" {capital}")
    assert found["tokens"] == found["Peru"]
