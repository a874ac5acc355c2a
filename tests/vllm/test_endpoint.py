"""The engine over HTTP against vLLM's own server: the same greedy answers as in process, cut and gone on with or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.cli import main
from clear_ray.config.engine import OpenAIConfig, TransformersConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine import TransformersEngine
from clear_ray.engine.base import Grant, RawText
from clear_ray.engine.endpoint.engine import OpenAIEngine
from clear_ray.engine.smollm2 import embedded_model_folder
from clear_ray.errors import ClearRayError
from tests.ray.serving import free_port
from tests.unit.engine.endpoint_engines import answers, ask
from tests.vllm.test_bodies import accepted_chats, check, grants_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
NAME = "embedded"
PROMPTS = [f"Say in one sentence what {number} + {number + 1} is, and why." for number in range(6)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    # What `vllm serve` runs; that command itself looks for a package that the CPU build does not bring.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded_model_folder())]
    command += ["--served-model-name", NAME, "--port", str(port), "--dtype", "float32", "--max-model-len", "640"]
    command += ["--enforce-eager", "--max-num-seqs", "8", "--generation-config", "vllm"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as said, subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process:
        base_url = f"http://127.0.0.1:{port}/v1"
        try:
            _wait_until_up(base_url, process, log)
            yield base_url
        finally:
            process.terminate()


def _wait_until_up(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        try:
            OpenAIEngine(config_of(base_url, continuation="none")).close()
        except ClearRayError:  # it is not up yet
            time.sleep(2.0)
        else:
            return
    raise AssertionError(f"vLLM's server did not come up: {log.read_text()[-2_000:]}")


def config_of(base_url: str, **settings: Any) -> OpenAIConfig:
    return OpenAIConfig.model_validate({"base_url": base_url, "model": NAME} | settings)


def test_greedy_answers_are_those_of_the_model_in_process(server: str, reference: TransformersEngine) -> None:
    engine = OpenAIEngine(config_of(server))
    assert engine.card.context_tokens == 640
    grants = [Grant(f"q{place}", prompt, 12 + 8 * place) for place, prompt in enumerate(PROMPTS)]
    there, here = answers(engine, grants), answers(reference, grants)  # type: ignore[arg-type]
    for name, generation in there.items():
        assert generation.text == here[name].text
        assert len(generation.token_ids) == len(here[name].token_ids)
        assert generation.finish_reason == here[name].finish_reason
        assert generation.usage is not None
        assert generation.usage.prompt_tokens == reference.prompt_tokens([grants[int(name[1:])].prompt])[0]


def test_a_cut_chat_is_gone_on_with(server: str) -> None:
    engine = OpenAIEngine(config_of(server))
    whole = ask(engine, PROMPTS[0], 40)
    first = ask(engine, PROMPTS[0], 16)
    assert not first.is_at_end
    rest = ask(engine, PROMPTS[0], 24, prefix_token_ids=first.token_ids, prefix_text=first.text)
    assert rest.text == whole.text


def test_raw_text_is_gone_on_with(server: str) -> None:
    engine = OpenAIEngine(config_of(server, continuation="none", stream=True))
    raw = RawText("The capital of France is")
    whole, first = ask(engine, raw, 24), ask(engine, raw, 10)
    rest = ask(engine, raw, 14, prefix_token_ids=first.token_ids, prefix_text=first.text)
    assert (rest.text, len(first.token_ids)) == (whole.text, 10)


def test_chat_bodies_pass_through(server: str, reference: TransformersEngine, tmp_path: Path) -> None:
    lines = accepted_chats()
    grants = grants_of(lines, tmp_path / "there", config_of(server))
    engine = OpenAIEngine(config_of(server))
    there, again = (answers(engine, list(grants.values())) for _ in range(2))
    here = answers(reference, list(grants_of(lines, tmp_path / "here", TransformersConfig()).values()))  # type: ignore[arg-type]
    for line in lines:
        name, body = line["custom_id"], line["body"]
        assert there[name].error == "", name
        check(body, there[name])
        if not body.get("temperature"):  # the run's is 0
            assert there[name].text == here[name].text, name
        elif "seed" in body:
            assert there[name].text == again[name].text, name
    drawn = [Grant(f"q{seed}", "Name a river.", 24, seed=seed, sampling=Sampling(temperature=1.0)) for seed in range(6)]
    assert len({answer.text for answer in answers(engine, drawn).values()}) > 3


def test_a_run_gives_the_answers_that_the_model_gives_in_process(server: str, tmp_path: Path, cluster: None) -> None:
    rows = [
        {"query_id": f"q{place}", "prompt": prompt, "max_tokens": 12 + 8 * place}
        for place, prompt in enumerate(PROMPTS)
    ]
    (tmp_path / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    over_http = {"kind": "openai", "base_url": server, "model": NAME}
    in_process = {"kind": "transformers", "max_context_tokens": 640}
    texts, attempts = [], []
    for name, engine in (("there", over_http), ("here", in_process)):
        settings = {
            "run_dir": str(tmp_path / name),
            "input": {"path": str(tmp_path / "queries.jsonl")},
            "budget": 6 * 20,
            "engine": engine,
            "estimate": {"head": "prior"},
            # All are cut at the same length, and what the short ones leave lets the long ones go on.
            "allocation": {"max_tokens": 52, "max_rounds": 6, "policy": "uniform"},
        }
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings))
        with pytest.raises(SystemExit) as ended:
            main(["run", "--config", str(config)])
        assert ended.value.code == 0
        completions = pq.read_table(tmp_path / name / "completions").to_pylist()
        texts.append({row["query_id"]: (row["text"], row["spent_tokens"]) for row in completions})
        attempts.append(max(row["rounds"] for row in completions))
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(PROMPTS)
    assert attempts[0] > 1  # some were cut and gone on with
