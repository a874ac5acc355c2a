"""Runs over HTTP, whole: against a server that limits, fails and is asked again after a kill, and against our own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from ray import serve

from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.cli import main
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.serve.app import application
from clear_ray.serve.settings import ServeConfig
from tests.endpoint_server import KEY, MODEL, Endpoint, endpoint
from tests.ray.serving import PRICE, free_port
from tests.ray.test_run import check_account, completions_of
from tests.ray.test_secrets import holders
from tests.ray.test_survival import start, wait_for_answers, write_config
from tests.unit.estimation.encoders import small_encoder
from tests.unit.snippets import snippets
from tests.unit.test_shell_snippets import commands_in

QUERIES = 60


def settings_of(base_url: str, folder: Path, *, budget: int = 700, **engine: Any) -> dict[str, Any]:
    """Return settings of a run over queries that ask for 1 to 30 words, each with a ceiling of its own."""
    rows = [
        {"query_id": f"q{number}", "prompt": f"Case {number}: write {1 + number % 30}", "max_tokens": 15 + number % 7}
        for number in range(QUERIES)
    ]
    queries = folder / "queries.jsonl"
    queries.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "run_dir": str(folder / "run"),
        "input": {"path": str(queries)},
        "budget": budget,
        "engine": {"kind": "openai", "base_url": base_url, "model": MODEL, "key_env": "MY_KEY", **engine},
        "allocation": {"max_tokens": 24, "max_rounds": 5},
    }


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("MY_KEY", KEY)
    with endpoint(key=KEY, seconds=0.05, most_at_once=8, retry_after="seconds", retry_after_seconds=0.2) as serving:
        yield serving


def test_a_run_learns_and_keeps_its_budget_and_its_ceilings(served: Endpoint, tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path / "encoder")
    config = RunConfig.parse(settings_of(served.base_url, tmp_path) | {"estimate": {"encoder": encoder}})
    planned = plan(None, config)
    assert planned.queries == QUERIES
    trials = served.generated_tokens
    served.behaviour.faults = deque([None, None, None, "429", None, "503", "429"])
    result = run(None, config)
    check_account(result)
    report = result.report
    # One engine's trial of going on, as the plan's.
    assert report.spent_tokens == served.generated_tokens - 2 * trials <= 700
    assert report.spent_tokens >= 650
    assert (report.failed, report.head) == (0, "learn")
    assert report.learning is not None
    assert report.learning.answers > 0
    assert report.learning.features == ("text", "ngrams", "encoder")
    for row in completions_of(result):
        assert row["spent_tokens"] <= 15 + row["index"] % 7
        if row["status"] == "completed":
            words = 1 + row["index"] % 30
            said = min(words, row["spent_tokens"] - (row["finish_reason"] == "stop"))
            assert row["text"] == " ".join(f"w{word + 1}" for word in range(said))
    assert not holders(KEY, Path(result.run_dir))


def test_a_budget_of_money_pays_what_the_usage_says(served: Endpoint, tmp_path: Path) -> None:
    prices = {"input": 2, "cached_input": 0.5, "output": 10}
    settings = settings_of(served.base_url, tmp_path, continuation="none") | {"budget": "$0.006", "prices": prices}
    result = run(None, RunConfig.parse(settings))
    report = result.report
    assert (report.unit, report.budget_tokens, report.wasted_tokens) == ("USD", 6_000_000, 0)
    attempts = pq.read_table(tmp_path / "run" / "rounds").to_pylist()
    assert attempts
    bill = sum(
        2_000 * (row["usage_prompt_tokens"] - row["usage_cached_tokens"])
        + 500 * row["usage_cached_tokens"]
        + 10_000 * row["usage_output_tokens"]
        for row in attempts
    )
    assert report.spent_tokens == bill <= 6_000_000
    assert 0 < report.completed < QUERIES


@pytest.fixture
def ray_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's logs of this run alone; a short path, since Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_says_what_its_endpoint_did_not(served: Endpoint, tmp_path: Path) -> None:
    """Nothing says what an answer took, so each is charged its whole grant, and the summary says why so little was bought."""
    served.behaviour.usage = None
    served.behaviour.refuses = ("temperature",)
    settings = settings_of(served.base_url, tmp_path, budget=2_000)
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    said = "\n".join(result.report.notices)
    assert "answers: no usage came with them that can be, so each counts as its whole grant" in said
    assert "answers: the endpoint does not take temperature, so its own holds" in said
    assert all(
        row["spent_tokens"] == row["max_tokens"] for row in completions_of(result) if row["status"] == "completed"
    )


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_charges_what_was_under_way(
    served: Endpoint, tmp_path: Path, ray_logs: Path
) -> None:
    served.behaviour.seconds = 0.4
    settings = settings_of(served.base_url, tmp_path, continuation="none") | {"dispatch": {"rows_per_file": 2}}
    config = write_config(settings, tmp_path)
    process = start(config)
    wait_for_answers(tmp_path / "run", process, at_least=6)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    served.behaviour.faults = deque(["reset", "500"])
    out, err = (again := start(config)).communicate(timeout=200)
    assert again.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert served.generated_tokens <= summary["spent_tokens"] <= 700
    assert summary["wasted_tokens"] > 0
    assert KEY not in out + err
    assert not holders(KEY, tmp_path)
    assert not holders(KEY, ray_logs)


def test_the_commands_of_the_guide(
    served: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings_of(served.base_url, tmp_path)
    guide = [snippet for snippet in snippets() if snippet.place.startswith("docs/endpoints.md")]
    config = next(snippet.text for snippet in guide if snippet.language == "yaml")
    assert config.count("http://127.0.0.1:8000/v1") == config.count("my-model") == 1
    config = config.replace("http://127.0.0.1:8000/v1", served.base_url).replace("my-model", MODEL)
    (tmp_path / "run.yaml").write_text(config)
    text = "\n".join(snippet.text for snippet in guide if snippet.language == "sh")
    commands = [words[1:] for words in commands_in(text) if words[0] == "clear-ray"]
    assert [words[0] for words in commands] == ["validate", "plan", "run", "resume", "status"]
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, words
    printed = capsys.readouterr()
    assert "Valid: 60 queries" in printed.out
    assert "answered     60" in printed.out
    assert KEY not in printed.out + printed.err


@pytest.mark.slow
def test_our_own_server_gives_the_answers_that_the_model_gives_in_process(tmp_path: Path) -> None:
    model = {"kind": "transformers", "model": "smollm2-135m-instruct", "max_batch": 8}
    price = PRICE | {"budget_tokens_per_second": 1_000_000, "carry_over_tokens": 10_000_000}
    door = {"engine": model, "estimate": {"head": "prior"}, "price": price, "model_name": MODEL, "max_tokens": 64}
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(ServeConfig.parse(door)), name="door", route_prefix="/door")
    try:
        rows = [{"query_id": f"q{n}", "prompt": f"Say what {n} + {n + 1} is.", "max_tokens": 6 + n} for n in range(8)]
        (tmp_path / "few.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        over_http = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/door/v1", "model": MODEL}
        answers = []
        for name, engine in (("here", model), ("there", over_http)):
            settings = settings_of("http://unused/v1", tmp_path, budget=8 * 20) | {"engine": engine}
            settings |= {"run_dir": str(tmp_path / name), "estimate": {"head": "prior"}, "scoring": {}}
            settings["input"] = {"path": str(tmp_path / "few.jsonl")}
            result = run(None, RunConfig.parse(settings))
            check_account(result)
            answers.append({row["query_id"]: (row["text"], row["spent_tokens"]) for row in completions_of(result)})
    finally:
        serve.shutdown()
    assert answers[0] == answers[1]
    assert len({text for text, _ in answers[0].values()}) > 4


@pytest.mark.slow
def test_a_head_is_calibrated_over_http_and_serves_a_run(served: Endpoint, tmp_path: Path) -> None:
    """Of the prompts that ask for few words the answers are right, of the others they are not."""
    settings = settings_of(served.base_url, tmp_path, budget=4_000, temperature=0.7)
    settings |= {"scoring": {"scorer": "exact"}, "run_dir": str(tmp_path / "calibration")}
    rows = [json.loads(line) for line in (tmp_path / "queries.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["gold"] = " ".join(f"w{word + 1}" for word in range(1 + number % 30)) if number % 30 < 12 else "none"
    (tmp_path / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "calibrate.yaml").write_text(yaml.safe_dump(settings))
    head_dir = str(tmp_path / "head")
    command = ["calibrate", "--config", str(tmp_path / "calibrate.yaml"), "--head-dir", head_dir, "--samples", "2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    settings |= {"run_dir": str(tmp_path / "run"), "budget": 400, "estimate": {"head": head_dir}}
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    assert result.report.head == "competing_risks"
    assert result.report.correct is not None
    assert result.report.correct >= 0.5 * result.report.funded
    other = settings["engine"] | {"model": "another"}
    with pytest.raises(ConfigError):
        run(None, RunConfig.parse(settings | {"engine": other, "run_dir": str(tmp_path / "other")}))


@pytest.mark.slow
def test_first_tokens_that_a_killed_run_asked_for_are_charged_as_often_as_they_were_asked_for(
    served: Endpoint, tmp_path: Path
) -> None:
    served.behaviour.seconds, served.behaviour.most_at_once = 0.4, None
    settings = settings_of(served.base_url, tmp_path, budget=1_200, continuation="none")
    config = write_config(settings | {"estimate": {"features": ["text", "logprobs"], "batch_rows": 4}}, tmp_path)

    def asked() -> int:
        return sum(body["max_tokens"] == 1 and bool(body.get("logprobs")) for body in served.bodies)

    process = start(config)
    while asked() < 10:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = -1
    while before < (now := asked()):  # actors outlive their driver for a moment
        before = now
        time.sleep(2.0)
    assert before < QUERIES
    out, err = (again := start(config)).communicate(timeout=200)
    assert again.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert QUERIES < asked() <= summary["probe_tokens"] <= QUERIES + before + 8, (
        "calls under way may be charged and not made"
    )
    assert served.generated_tokens <= summary["spent_tokens"] <= 1_200


@pytest.mark.slow
def test_first_tokens_are_asked_for_once_and_charged(served: Endpoint, tmp_path: Path) -> None:
    estimate = {"estimate": {"features": ["text", "logprobs"]}}
    config = RunConfig.parse(settings_of(served.base_url, tmp_path, budget=900) | estimate)
    before = len(served.bodies)
    assert plan(None, config).probe_tokens == QUERIES
    assert not [body for body in served.bodies[before:] if body["max_tokens"] == 1 and body.get("logprobs")]
    result = run(None, config)
    asked = [body for body in served.bodies[before:] if body["max_tokens"] == 1 and body.get("logprobs")]
    assert len({str(body["messages"]) for body in asked}) == QUERIES, "some more than once where it answered 429"
    report = result.report
    assert report.probe_tokens == QUERIES
    assert report.spent_tokens <= report.budget_tokens
    assert report.learning is not None
    assert set(report.learning.nats_of_sets) == {"text", "logprobs"}
