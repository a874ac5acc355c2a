"""Prompts to token ids and back, with the tokenizer and chat template of a model.

Needs no weights, so that prompts can be counted and refused before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clear_ray.config.engine import ModelConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Chat, Prompt, RawText, TokenIds, messages_of
from clear_ray.engine.plain_files import has_plain_tokenizer
from clear_ray.engine.smollm2 import resolve_model
from clear_ray.errors import ConfigError, EngineError, SchemaError

_OURS = frozenset(
    ("messages", "conversation", "tokenize", "add_generation_prompt", "continue_final_message", "chat_template")
)


class _TemplateError(Exception):
    """A chat template refused a conversation."""


class Rendering:
    """Tokenizer of one model, and the way in which prompts are put to it.

    Args:
        model: Name as for `resolve_model`.
        chat_template: Wrap a plain prompt as one user message, where the model has a chat template.
        system_prompt: System message put before every prompt that has none of its own.
        template_settings: Handed to the chat template, such as `enable_thinking`.
        continue_final_message: Let a conversation that ends with the assistant's words go on after them.
        for_templates: Only texts of conversations are wanted: the tokenizer may be read without what belongs to its model.

    Raises:
        ConfigError: There is no such model, or its chat template does not know one of the settings, or no system message.
        EngineError: Its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        chat_template: bool = True,
        system_prompt: str | None = None,
        template_settings: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        for_templates: bool = False,
    ) -> None:
        source = resolve_model(str(model))
        try:
            self._tokenizer = _tokenizer_of(source, for_templates=for_templates)
        except Exception as error:  # of as many kinds as there are tokenizers
            raise EngineError(
                "the tokenizer cannot be loaded",
                f"model {model}",
                str(error),
                remedy="Save the tokenizer beside the model's weights.",
            ) from error
        self.has_template = bool(getattr(self._tokenizer, "chat_template", None))
        self._wraps_text = chat_template and self.has_template
        self._system_prompt, self._continues = system_prompt, continue_final_message
        self._template_settings = dict(template_settings or {})
        self._refuse_unknown_settings()
        if self._wraps_text and system_prompt is not None:
            self._refuse_system_prompt(system_prompt)

    @property
    def end_token_id(self) -> int | None:
        """Token with which the tokenizer says that an answer ends, if it names one."""
        end_token_id: int | None = self._tokenizer.eos_token_id
        return end_token_id

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers loads it."""
        return self._tokenizer

    def token_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt as the model is to read it, the opening of its answer included.

        Raises:
            SchemaError: A prompt has no tokens, or is a conversation that the model has no template for.
        """
        rendered: list[list[int] | None] = [None] * len(prompts)
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, TokenIds):
                rendered[i] = self._checked(prompt)
        with_template = [i for i, prompt in enumerate(prompts) if rendered[i] is None and self._takes_template(prompt)]
        # The template writes the special tokens itself; the tokenizer must not add a second set.
        chats = [self._apply_template(prompts[i]) for i in with_template]
        for i, ids in zip(with_template, self._encode(chats, add_special_tokens=False), strict=True):
            rendered[i] = ids
        plain = [i for i in range(len(prompts)) if rendered[i] is None]
        texts = [
            str(prompt) if isinstance(prompt := prompts[i], RawText) else self._with_system_prompt(str(prompt))
            for i in plain
        ]
        for i, ids in zip(plain, self._encode(texts, add_special_tokens=True), strict=True):
            rendered[i] = ids
        whole = [ids for ids in rendered if ids]
        if len(whole) < len(prompts):
            raise SchemaError("a prompt has no tokens", "prompt", remedy="Remove the empty prompt.")
        return whole

    def plain_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text as it stands: no template, no special tokens."""
        return self._encode([text], add_special_tokens=False)[0]

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens dropped."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _takes_template(self, prompt: Prompt) -> bool:
        return not isinstance(prompt, RawText) and (self._wraps_text or not isinstance(prompt, str))

    def _checked(self, token_ids: TokenIds) -> list[int]:
        most = max(token_ids, default=0)
        if most >= len(self._tokenizer):
            what, remedy = "a token id is none of this model's", "Give the text, or the ids of this model's tokenizer."
            raise SchemaError(what, "prompt", f"{most} of a vocabulary of {len(self._tokenizer)}", remedy)
        return list(token_ids)

    def _apply_template(self, prompt: Prompt) -> str:
        """Return a conversation as the text of the model's chat template."""
        if not self.has_template:
            raise SchemaError(
                "the model has no chat template, so it cannot read a conversation",
                "prompt",
                str(prompt),
                "Give the prompt as plain text, or use an instruction-tuned model.",
            )
        messages = messages_of(prompt)
        if self._system_prompt is not None and not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        try:
            return self._chat(messages, prompt.sampling if isinstance(prompt, Chat) else None)
        except _TemplateError as error:
            raise SchemaError(
                f"the chat template refuses the conversation: {error}",
                "prompt",
                str(prompt),
                "Give it the roles and the order that the model knows.",
            ) from error

    def _chat(self, messages: list[dict[str, str]], own: Sampling | None = None) -> str:
        """Return messages as the text of the model's chat template; what a conversation says itself goes before the run.

        Raises:
            _TemplateError: It refuses them; the words are its own.
        """
        settings = self._template_settings | (json.loads(own.template) if own and own.template else {})
        goes_on = self._continues and messages[-1]["role"] == "assistant"
        if own is not None and own.continue_final_message is not None:
            goes_on = own.continue_final_message
            if goes_on and messages[-1]["role"] != "assistant":
                raise _TemplateError("only what the assistant has begun is gone on with")
        opens = own is None or own.add_generation_prompt is not False
        ending = {"continue_final_message": True} if goes_on else {"add_generation_prompt": opens}
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **ending, **settings)
        # Templates are programs of the model's author: what they raise (unknown role, turns out of order) is theirs.
        except Exception as error:
            raise _TemplateError(" ".join(str(error).split()) or type(error).__name__) from error
        return text

    def _refuse_system_prompt(self, system_prompt: str) -> None:
        """Refuse a system prompt that would fail every query, or that the template would leave out without a word."""
        reason = "it leaves it out"
        try:
            messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": "Hello."}]
            if system_prompt.strip() in self._chat(messages):
                return
        except _TemplateError as error:
            reason = str(error)
        raise ConfigError(
            f"the model's chat template takes no system message: {reason}",
            "engine.system_prompt",
            system_prompt,
            "Put it into the prompts, or use another model.",
        )

    def _refuse_unknown_settings(self) -> None:
        """Refuse settings that the template does not look at: nothing would come of them, without a word."""
        unknown = self.unknown_settings(self._template_settings)
        for name in self._template_settings:
            if name in _OURS:
                raise ConfigError(
                    "this is not a setting of the template's own",
                    f"engine.chat_template_kwargs.{name}",
                    remedy="Remove it.",
                )
            if name in unknown:
                raise ConfigError(
                    "the model's chat template knows no such setting"
                    if self.has_template
                    else "the model has no chat template",
                    f"engine.chat_template_kwargs.{name}",
                    remedy="Remove it, or look into the template for what it is called there.",
                )

    def unknown_settings(self, names: Iterable[str]) -> list[str]:
        """Return which of these the model's chat template does not look at."""
        template = getattr(self._tokenizer, "chat_template", None)
        texts = list(template.values()) if isinstance(template, dict) else [template or ""]
        return [name for name in names if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts)]

    def reads_names(self) -> bool:
        """Whether the model's chat template writes what a speaker is called."""
        name = "Xanthippe"
        try:
            text = self._chat(
                [{"role": role, "content": "Hello.", "name": name} for role in ("user", "assistant", "user")]
            )
        except _TemplateError:
            return False
        return name in text

    def _with_system_prompt(self, text: str) -> str:
        return text if self._system_prompt is None else f"{self._system_prompt}\n\n{text}"

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        except Exception as error:  # of as many kinds as there are tokenizers; the text's defect, not the engine's
            what, remedy = "the tokenizer cannot read the text", "Write valid Unicode."
            raise SchemaError(what, "prompt", type(error).__name__, remedy) from error
        return ids


def _tokenizer_of(source: Path | str, *, for_templates: bool) -> Any:
    if for_templates and isinstance(source, Path) and has_plain_tokenizer(source):
        from transformers import TokenizersBackend

        return TokenizersBackend.from_pretrained(source)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def rendering_of(config: ModelConfig, folder: str | Path | None = None, *, for_templates: bool = False) -> Rendering:
    """Return how a run puts its prompts to its model.

    Args:
        config: The model and how it is prompted.
        folder: Where the model is, if that is known already.
        for_templates: See `Rendering`.

    Raises:
        ConfigError: There is no such model, or its chat template does not take what is set.
        EngineError: Its tokenizer cannot be loaded.
    """
    return Rendering(
        folder or config.model,
        chat_template=config.chat_template,
        system_prompt=config.system_prompt,
        template_settings=config.chat_template_kwargs,
        continue_final_message=config.continue_final_message,
        for_templates=for_templates,
    )
