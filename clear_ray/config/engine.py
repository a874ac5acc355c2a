"""Settings of the engines: which model runs, where, and how it samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_ROWS, MOST_TOKENS, checked_json


class WorkersConfig(Settings):
    """What every engine has in common."""

    workers: int = Field(default=1, ge=1, le=100_000)
    """Engine actors; one model is loaded in each."""
    num_gpus: float | None = Field(default=None, ge=0, le=1_000)
    """GPUs of one engine actor; if not given, 1 where the cluster has GPUs and the engine can use one, else 0."""
    max_batch: int = Field(default=32, ge=1, le=MOST_ROWS)
    """Queries that one engine runs at the same time, if memory allows."""
    stall_seconds: float = Field(default=900.0, gt=0, le=10_000_000)
    """An engine that has work and brings nothing forward for this long is killed and started again."""
    temperature: float = Field(default=0.0, ge=0, le=1_000)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""

    @field_validator("num_gpus")
    @classmethod
    def _gpus_can_be_had(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("Ray gives an actor a part of one GPU, or whole ones: above 1 name a whole number")
        return value


class ModelConfig(WorkersConfig):
    """What every engine that loads a model has in common."""

    model: str = "smollm2-135m-instruct"
    """A local folder of safetensors weights, a hub name, or `smollm2-135m-instruct` for the embedded model."""
    top_k: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """Only so many of the likeliest tokens are drawn; 0 for all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Only tokens are drawn that are at least so likely as this share of the likeliest."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Divides the positive logits of tokens that stand in prompt or answer, and multiplies the negative ones."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the logits of tokens that stand in the answer."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from a token's logit as many times as it stands in the answer."""
    fingerprint: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Refuse any other model: SHA-256 over architecture, weights and tokenizer, as `manifest.json` names it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations; `auto` is float32 on CPU. On CUDA it is bfloat16 (float16 where the device
    has none) of a transformers engine, and what the model was saved in of vLLM."""
    chat_template: bool = True
    """Wrap a plain prompt as one user message, where the model has a chat template."""
    system_prompt: str | None = None
    """System message put before every prompt that has none of its own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's chat template, such as `enable_thinking: false`; one that it does not know is refused."""
    continue_final_message: bool = False
    """Let a conversation that ends with the assistant's words go on after them, instead of beginning a new turn."""
    max_context_tokens: int | None = Field(default=None, gt=0, le=MOST_TOKENS)
    """Prompt and answer together; the model's own limit if not given."""
    answer_reserve_tokens: int | None = Field(default=None, ge=2, le=MOST_TOKENS)
    """Tokens at the end of each grant in which an unfinished answer is made to give its result; off if not given."""
    closing_text: str = Field(default="\nAnswer:", min_length=1)
    """What closes such an answer."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: starts sooner and decodes more slowly."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_settings_are_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_json(value, "template settings")


class TransformersConfig(ModelConfig):
    """A model run by transformers' continuous batching, on CPU or CUDA."""

    kind: Literal["transformers"] = "transformers"
    """Chooses this engine."""
    device: str | None = None
    """`cpu`, `cuda`, …; derived from the machine if not given."""
    threads: int | None = Field(default=None, gt=0, le=100_000)
    """Threads of one engine on CPU, for its whole process; as many as pay, which is timed while it works, if not given."""


class VllmConfig(ModelConfig):
    """A model run by vLLM, on CUDA or, with its CPU build, on CPU; needs the `vllm` extra."""

    kind: Literal["vllm"] = "vllm"
    """Chooses this engine."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that one engine takes, weights included."""
    tensor_parallel: int = Field(default=1, ge=1, le=1_000)
    """GPUs over which one model is split, all of one node; `num_gpus`, where given, must be the same."""
    cpu_cache_gib: float = Field(default=2.0, gt=0, le=1_000_000)
    """Memory of the key-value cache on CPU, GiB; on a GPU it is what the weights leave."""
    thinking_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Most tokens that an answer may think for, over all its grants; unlimited if not given."""
    thinking_start: str = Field(default="<think>", min_length=1)
    """What begins the model's thinking: one token of its tokenizer."""
    thinking_end: str = Field(default="</think>", min_length=1)
    """What ends it, and is put into an answer whose thinking budget is used up: one token."""

    @model_validator(mode="after")
    def _actor_has_its_gpus(self) -> VllmConfig:
        if self.tensor_parallel > 1 and self.num_gpus not in (None, self.tensor_parallel):
            raise ValueError(f"a model split over {self.tensor_parallel} GPUs needs num_gpus: {self.tensor_parallel}")
        return self


class ReplayConfig(WorkersConfig):
    """Recorded rollouts played back by token count: no model is needed."""

    kind: Literal["replay"] = "replay"
    """Chooses this engine."""
    rollouts: str
    """Parquet of recorded rollouts."""
    features: str | None = None
    """Parquet of recorded probe features; without it there are no hidden states, and a head fitted on some is refused."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Decode rate of one sequence to imitate; as fast as possible if not given."""


class OpenAIConfig(WorkersConfig):
    """A model behind an OpenAI-compatible endpoint; needs the `endpoint` extra. docs/endpoints.md tells what holds for it."""

    kind: Literal["openai"] = "openai"
    """Chooses this engine."""
    base_url: str
    """Where the endpoint is, up to what stands before `/chat/completions`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api: Literal["chat", "completions"] = "chat"
    """Where plain prompts go: as one user's message to the chat API, or as they are to legacy completions."""
    key_env: str | None = Field(default=None, min_length=1)
    """Environment variable that holds the key; OPENAI_API_KEY for api.openai.com if neither this nor a file is given."""
    key_file: str | None = Field(default=None, min_length=1)
    """File that holds the key and nothing else."""
    key_header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$")
    """Header that carries the key, such as `api-key`; in `Authorization` it comes after the word Bearer."""
    max_batch: int = Field(default=100, ge=1, le=1_000)
    """Most calls that one engine has under way at the same time."""
    first_calls: int = Field(default=20, ge=1, le=1_000)
    """Calls under way to begin with; how many there are later follows what the endpoint takes."""
    requests_per_minute: float | None = Field(default=None, gt=0, le=1e9)
    """Most calls a minute, of all engines together; unlimited if not given."""
    tokens_per_minute: float | None = Field(default=None, gt=0, le=1e12)
    """Most tokens a minute, of prompts and answers, of all engines together; unlimited if not given."""
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    """A call that has brought nothing for this long is given up, and charged its whole grant."""
    patience_seconds: float = Field(default=900.0, gt=0, le=604_800)
    """A run ends, to be gone on with, if the endpoint takes no call for this long, or asks to be left alone for longer."""
    charge_server_errors: bool = True
    """Whether a try that ends in an error such as 500, 502 or 504 is charged its whole grant, as if it had been generated."""
    stream: bool = False
    """Have answers streamed, for gateways that cut silent connections; `timeout_seconds` is then from piece to piece."""
    continuation: Literal["auto", "final_message", "none"] = "auto"
    """How the chat API goes on with a cut answer: by `continue_final_message`, as vLLM's does, or not at all; two calls of a
    token each tell if not given."""
    system_prompt: str | None = None
    """System message put before every conversation that has none of its own."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every call, as they are, such as `reasoning_effort: low`; those of a row come before them."""
    max_context_tokens: int | None = Field(default=None, gt=0, le=MOST_TOKENS)
    """Prompt and answer together; what the endpoint says of its model if not given, else unlimited."""
    _key: SecretStr | None = PrivateAttr(default=None)

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        value = value.strip()
        parts = urlsplit(value)
        try:
            is_reachable = parts.port is None or parts.port > 0
        except ValueError:
            is_reachable = False
        if not is_reachable:
            raise ValueError("the port of an address is a number from 1 to 65535")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address begins with http:// or https://, as in http://127.0.0.1:8000/v1")
        if "api-version" in parts.query:
            raise ValueError(
                "an address has no query: Azure's that needs none ends in /openai/v1, with key_header: api-key"
            )
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "an address has no user, key, query or fragment in it: a key goes into key_env or key_file"
            )
        value = value.rstrip("/")
        if value.endswith(_PATHS_OF_CALLS):
            raise ValueError("an address ends before the path of a call, such as /chat/completions")
        return value

    @field_validator("extra_body")
    @classmethod
    def _fields_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OWN_FIELDS & value.keys()):
            raise ValueError(f"these fields are the run's own: {', '.join(taken)}")
        return checked_json(value, "fields of a call")

    def carrying(self, key: SecretStr | None) -> OpenAIConfig:
        """Return these settings with a key that `dump`, `repr` and files do not show."""
        carrying = self.model_copy()
        carrying._key = key
        return carrying

    @property
    def carried_key(self) -> SecretStr | None:
        """The key that was put in by `carrying`."""
        return self._key


_PATHS_OF_CALLS = ("/chat/completions", "/completions", "/responses", "/embeddings")
_OWN_FIELDS = frozenset(
    (
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "echo",
    )
)


def _with_kind(engine: Any) -> Any:
    """Return the settings with the kind that they have if they name none."""
    return {"kind": "transformers", **engine} if isinstance(engine, dict) else engine


EngineConfig = Annotated[
    TransformersConfig | VllmConfig | ReplayConfig | OpenAIConfig,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]
