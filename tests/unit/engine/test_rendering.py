"""Prompts as the model's own chat template writes them, and what it refuses in its own words."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.base import conversation_of
from clear_ray.engine.rendering import Rendering, rendering_of
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.stages.generate import asked_directly
from tests.unit.engine.model_folders import ALTERNATING, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), template=ALTERNATING)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


def text_of(rendering: Rendering, *turns: tuple[str, str]) -> str:
    return rendering.text(rendering.token_ids([turns])[0])


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ((("system", "One word."), ("user", "Name a bird.")), "System role not supported"),
        ((("user", "hello"), ("user", "Name a fish.")), "Conversation roles must alternate user/assistant"),
    ],
)
def test_what_the_template_refuses_is_told_in_its_words(
    folder: Path, turns: tuple[tuple[str, str], ...], words: str
) -> None:
    with pytest.raises(SchemaError) as refused:
        Rendering(folder).token_ids([turns])
    # `what` is what a failed row keeps.
    assert refused.value.what.startswith(f"the chat template refuses the conversation: {words}")


def test_settings_of_the_template_are_handed_to_it(folder: Path) -> None:
    plain = rendering_of(TransformersConfig(model=str(folder)))
    direct = rendering_of(TransformersConfig(model=str(folder), chat_template_kwargs={"enable_thinking": False}))
    assert text_of(plain, ("user", "Hi.")) == "<u>Hi.|<a>"
    assert text_of(direct, ("user", "Hi.")) == "<u>Hi.|<a>[]"


@pytest.mark.parametrize(
    ("name", "words"),
    [("enable_thoughts", "knows no such setting"), ("add_generation_prompt", "not a setting of the template's own")],
)
def test_settings_that_would_do_nothing_are_refused(folder: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine.chat_template_kwargs.{name}: .*{words}"):
        Rendering(folder, template_settings={name: True})


def test_a_model_without_a_template_has_no_settings_and_reads_no_conversation(base: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no chat template"):
        Rendering(base, template_settings={"enable_thinking": True})
    rendering = Rendering(base)
    assert not rendering.has_template
    assert rendering.text(rendering.token_ids(["Name a bird."])[0]) == "Name a bird."
    with pytest.raises(SchemaError, match="no chat template, so it cannot read a conversation"):
        rendering.token_ids([(("user", "Hi."),)])


def test_a_system_prompt_that_the_template_does_not_take_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine.system_prompt: .*System role not supported"):
        Rendering(folder, system_prompt="Be brief.")
    deaf = save_model(
        tmp_path, template="{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}|{% endfor %}"
    )
    with pytest.raises(ConfigError, match="it leaves it out"):
        Rendering(deaf, system_prompt="Be brief.")


def test_speakers_have_names_where_the_template_writes_them(folder: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}<{{ message.name or message.role }}>{{ message.content }}{% endfor %}"
    named, deaf = Rendering(save_model(tmp_path / "m", template=template)), Rendering(folder)
    assert (named.reads_names(), deaf.reads_names()) == (True, False)
    messages = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "user", "content": "Ho"}]
    prompt = copy.deepcopy(conversation_of(messages, None))  # as between processes
    assert named.text(named.token_ids([prompt])[0]) == "<Ann>Hi<user>Ho"
    asked = asked_directly(prompt, "Be brief.")
    assert named.text(named.token_ids([asked])[0]) == "<Ann>Hi<user>HoBe brief."  # the tokenizer drops line ends
    single = conversation_of(messages[:1], None)
    assert deaf.text(deaf.token_ids([single])[0]) == "<u>Hi|<a>"


def test_the_assistants_words_are_gone_on_with_where_that_is_set(folder: Path) -> None:
    turns = (("user", "Count."), ("assistant", "One, two,"))
    goes_on = rendering_of(TransformersConfig(model=str(folder), continue_final_message=True))
    assert text_of(goes_on, *turns) == "<u>Count.|<a>One, two,"
    assert text_of(goes_on, turns[0]) == "<u>Count.|<a>"
    assert text_of(Rendering(folder), *turns) == "<u>Count.|<a>One, two,|<a>"


@pytest.mark.parametrize("is_base", [True, False])
def test_a_text_that_the_tokenizer_cannot_read_is_its_querys_error(folder: Path, base: Path, is_base: bool) -> None:
    rendering = Rendering(base if is_base else folder)
    with pytest.raises(SchemaError, match="cannot read the text"):
        rendering.token_ids(["half a pair \ud83d"])
    assert rendering.token_ids(["whole \U0001f600"])
