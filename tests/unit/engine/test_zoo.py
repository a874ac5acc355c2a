"""Every causal architecture of transformers runs as `architectures.json` and docs/models.md say, token for token.

Tiny random models in float32 beside transformers' own `generate` and hidden states: prompts below, at and past the window,
fresh, continued, in slots that others have left, in mixed batches. The fast half has the families that people run most.
"""

from __future__ import annotations

import json
import sys

import pytest
import transformers
from transformers import CONFIG_MAPPING

from clear_ray.engine.architectures import TABLE, known_architectures, refuse_unfit
from clear_ray.errors import ConfigError
from tests.unit.engine.zoo import VARIANTS, causal_architectures, tiny_config, tiny_model
from tests.unit.engine.zoo_table import DOCUMENT, document, tried
from tests.unit.engine.zoo_trial import assert_same_tokens, generated, prompts

# fmt: off
FAMILIES = (
    "bert", "bloom", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "jamba", "lfm2",
    "llama", "llama4_text", "mamba", "mistral", "mixtral", "mpt", "opt", "phi3", "qwen2", "qwen3",
    "recurrent_gemma", "starcoder2",
)
# fmt: on


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_as_the_table_says(name: str) -> None:
    assert tried(name) == known_architectures()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in causal_architectures() if name not in FAMILIES])
def test_an_architecture_runs_as_the_table_says(name: str) -> None:
    known = known_architectures()[name]
    try:
        assert tried(name) == known
    except AssertionError:
        # One that is refused although it runs gives other tokens further on: that is why.
        assert known.way == "refused"
        assert "other tokens" in known.reason


@pytest.mark.slow
@pytest.mark.parametrize("label", VARIANTS)
def test_a_variant_gives_the_tokens_of_transformers(label: str) -> None:
    name, changes = VARIANTS[label]
    assert tried(name, **changes).way in ("slots", "own_caches")


def test_a_window_that_is_not_kept_is_found_out() -> None:
    # What the trial is worth: with a mask that forgets the window, as this engine once had, it does not pass.
    model = tiny_model(tiny_config("mistral"))
    asked = prompts()
    expected = [generated(model, ids) for ids in asked]
    model.config.sliding_window = None
    with pytest.raises(AssertionError, match="tokens read"):
        assert_same_tokens(model, "slots", asked, expected)


def test_a_model_for_want_of_a_package_is_refused_from_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    needing = {name: row.package for name, row in known_architectures().items() if row.package}
    assert needing == {"gemma3n": "timm"}
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="needs the package timm, which is not installed") as caught:
        refuse_unfit(CONFIG_MAPPING["gemma3n"]())
    assert "pip install timm" in caught.value.remedy


def test_the_document_is_what_the_zoo_found() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rewrite = "run `python -m tests.unit.engine.zoo_table`"
    assert document(text, known_architectures()) == text, rewrite


def test_the_table_has_every_architecture_of_the_transformers_it_was_made_with() -> None:
    if json.loads(TABLE.read_text(encoding="utf-8"))["transformers"] == transformers.__version__:
        assert list(known_architectures()) == causal_architectures()
    ways = [row.way for row in known_architectures().values()]
    assert ways.count("slots") + ways.count("own_caches") >= 60
