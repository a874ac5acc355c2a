"""The engine over HTTP against a real server that limits, fails and lies."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine.base import UNKNOWN_TOKEN, Chat, Generation, Grant, RawText, TokenIds, Usage
from clear_ray.engine.build import build_engine, with_key
from clear_ray.engine.checking import check_engine, engine_notes
from clear_ray.engine.endpoint.engine import LOST_BY_ENDPOINT, REFUSED_BY_ENDPOINT, prompt_tokens_of
from clear_ray.engine.endpoint.faults import retry_after
from clear_ray.errors import ClearRayError, ConfigError, EngineError
from clear_ray.estimation.fit import fit_head
from clear_ray.ingest.logprobs import of_answer
from clear_ray.stages import causes
from tests.endpoint_server import KEY, MODEL, Endpoint, endpoint
from tests.unit.engine.endpoint_engines import LOOP, answers, ask, config_of, engine_of


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as serving:
        yield serving


def written(words: int) -> str:
    return " ".join(f"w{place + 1}" for place in range(words))


# What is sent, and what comes back.


def test_an_answer_with_what_it_took(served: Endpoint) -> None:
    generation = ask(engine_of(served), "write 5")
    assert (generation.text, generation.finish_reason, generation.error) == (written(5), "stop", "")
    assert generation.token_ids == (UNKNOWN_TOKEN,) * 6
    assert generation.usage == Usage(prompt_tokens=8, cached_tokens=1, output_tokens=6, reasoning_tokens=0)
    (body,) = served.bodies
    assert body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "write 5"}],
        "max_tokens": 20,
        "temperature": 0.0,
    }


def test_prompts_go_where_they_can_be_read(served: Endpoint) -> None:
    engine = engine_of(served, system_prompt="Be brief.", extra_body={"reasoning_effort": "low"}, temperature=0.5)
    turns = (("system", "Be long."), ("user", "write 3"))
    grants = [
        Grant("plain", "write 2", 9, seed=4),
        Grant("chat", turns, 9),
        Grant("raw", RawText("write 4"), 9),
        Grant("ids", TokenIds((5, 6)), 9),
        Grant("nothing", "write 2", 0),
    ]
    found = answers(engine, grants)
    assert [found[name].text.strip() for name in ("plain", "chat", "raw")] == [written(2), written(3), written(4)]
    assert found["ids"].finish_reason == "stop"
    assert "at least 1 token" in found["nothing"].error
    of_prompt = {json.dumps(body.get("messages") or body["prompt"]): body for body in served.bodies}
    system = {"role": "system", "content": "Be brief."}
    assert json.dumps([system, {"role": "user", "content": "write 2"}]) in of_prompt
    assert json.dumps([{"role": role, "content": content} for role, content in turns]) in of_prompt
    assert '"write 4"' in of_prompt
    assert "[5, 6]" in of_prompt
    assert all(body["reasoning_effort"] == "low" and body["temperature"] == 0.5 for body in served.bodies)
    assert of_prompt[json.dumps([system, {"role": "user", "content": "write 2"}])]["seed"] == 4


def test_plain_prompts_go_to_completions_if_that_is_asked(served: Endpoint) -> None:
    assert ask(engine_of(served, api="completions"), "write 3").text == f" {written(3)}"
    assert served.bodies[0]["prompt"] == "write 3"


def test_what_a_row_asks_for_itself_is_passed_on(served: Endpoint) -> None:
    schema = {"type": "object"}
    asked = Sampling(
        temperature=0.3,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=11,
        stop=("END",),
        stop_token_ids=(7,),
        min_tokens=2,
        logit_bias=((3, 1.5),),
        structure=Structure(kind="json_schema", value=json.dumps(schema)),
        template='{"reasoning_effort": "high", "enable_thinking": false}',
    )
    ask(engine_of(served, temperature=1.0, extra_body={"reasoning_effort": "low"}), sampling=asked, seed=11)
    (body,) = served.bodies
    assert body | {"messages": 0} == {
        "model": MODEL,
        "messages": 0,
        "max_tokens": 20,
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 11,
        "stop": ["END"],
        "stop_token_ids": [7],
        "min_tokens": 2,
        "logit_bias": {"3": 1.5},
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("structure", "sent"),
    [
        (Structure(kind="json_object"), {"response_format": {"type": "json_object"}}),
        (Structure(kind="regex", value="a+"), {"structured_outputs": {"regex": "a+"}}),
        (Structure(kind="choice", value='["yes", "no"]'), {"structured_outputs": {"choice": ["yes", "no"]}}),
        (Structure(kind="grammar", value="start: x"), {"structured_outputs": {"grammar": "start: x"}}),
    ],
)
def test_structures_are_passed_on(served: Endpoint, structure: Structure, sent: dict[str, Any]) -> None:
    ask(engine_of(served), sampling=Sampling(structure=structure))
    assert served.bodies[0].items() >= sent.items()


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_cut_answer_with_a_structure_is_at_its_end_as_each_call_begins_one(api: str) -> None:
    with endpoint(goes_on=True) as served:
        engine = engine_of(served, api=api, continuation="final_message")
        structured = ask(engine, "write 9", 4, sampling=Sampling(structure=Structure(kind="json_object")))
        plain = ask(engine, "write 9", 4)
        everywhere = {"response_format": {"type": "json_object"}}
        also = ask(engine_of(served, api=api, continuation="final_message", extra_body=everywhere), "write 9", 4)
    assert (structured.finish_reason, structured.is_at_end) == (also.finish_reason, also.is_at_end) == ("length", True)
    assert (plain.finish_reason, plain.is_at_end) == ("length", False)


def test_the_least_tokens_are_those_of_the_whole_answer_and_no_more_than_a_call_may_have() -> None:
    with endpoint(goes_on=True) as served:
        engine, sampling = engine_of(served, continuation="final_message"), Sampling(min_tokens=6)
        for tokens, before in ((4, 0), (9, 4), (9, 6)):
            spent = {"prefix_token_ids": (UNKNOWN_TOKEN,) * before, "prefix_text": written(before)} if before else {}
            ask(engine, "write 9", tokens, sampling=sampling, **spent)
    assert [body.get("min_tokens") for body in served.bodies] == [4, 2, None]


def test_samples_have_seeds_of_their_own(served: Endpoint) -> None:
    engine = engine_of(served, temperature=1.0)
    for sample in (0, 1, 2):
        ask(engine, seed=3, sample=sample)
    seeds = [body["seed"] for body in served.bodies]
    assert seeds[0] == 3
    assert len(set(seeds)) == 3


def test_fields_that_the_endpoint_refuses_are_named_otherwise_or_left_out() -> None:
    with endpoint(ceiling_field="max_completion_tokens", refuses=("temperature",)) as served:
        engine = engine_of(served)
        assert ask(engine, "write 5").text == written(5)
        tried = len(served.bodies)
        assert ask(engine, "write 6").text == written(6)
        assert len(served.bodies) == tried + 1  # it has learned
        refused = ask(engine, sampling=Sampling(temperature=0.2))  # a query's own are not left out
        assert refused.error.startswith(REFUSED_BY_ENDPOINT)
        assert "temperature" in refused.error


# Going on.


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({}, "write 9"),
        ({}, Chat([("user", "write 9")], Sampling())),
        ({"api": "completions"}, "write 9"),
        ({"continuation": "none"}, RawText("write 9")),
    ],
)
def test_a_cut_answer_is_gone_on_with(served: Endpoint, settings: dict[str, Any], prompt: Any) -> None:
    engine = engine_of(served, **{"continuation": "auto"} | settings)
    text, spent, cuts = "", (), 0
    while True:
        generation = ask(engine, prompt, 4, prefix_token_ids=spent, prefix_text=text)
        text, spent = generation.text, (*spent, *generation.token_ids)
        if generation.finish_reason == "stop":
            break
        assert not generation.is_at_end
        cuts += 1
    assert (text.strip(), len(spent), cuts) == (written(9), 10, 2)


@pytest.mark.parametrize(("prompt", "stream"), [("write 9", False), ("write 9", True), (RawText("write 9"), False)])
def test_log_probabilities_come_with_every_part_of_an_answer(served: Endpoint, prompt: Any, stream: bool) -> None:
    is_chat = not isinstance(prompt, RawText)
    engine = engine_of(served, continuation="auto", stream=stream)
    first = ask(engine, prompt, 4, sampling=Sampling(logprobs=2))
    assert first.logprobs is not None
    sent = {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    assert sent.items() <= served.bodies[-1].items()
    again = {"prefix_token_ids": first.token_ids, "prefix_text": first.text}
    last = ask(engine, prompt, 9, sampling=Sampling(logprobs=2), **again)
    entries = of_answer(last.text, last.logprobs, first.logprobs)
    assert entries is not None
    assert b"".join(entry.token for entry in entries).decode() == last.text  # and none of its end
    assert [entry.logprob for entry in entries] == [-k / 8 for k in range(1, 10)]
    assert all((b"?", -9.0) in entry.top for entry in entries)
    assert ask(engine, prompt, 4).logprobs is None


@pytest.mark.parametrize("goes_on", [False, None])
def test_without_going_on_a_cut_answer_is_at_its_end(goes_on: bool | None) -> None:
    with endpoint(goes_on=goes_on) as served:
        generation = ask(engine_of(served, continuation="auto"), "write 9", 4)
    assert (generation.finish_reason, generation.is_at_end, generation.text) == ("length", True, written(4))


def test_the_trial_of_going_on_costs_two_tokens_and_none_if_it_is_set(served: Endpoint) -> None:
    engine_of(served, continuation="auto")
    assert (len(served.bodies), served.generated_tokens) == (2, 2)
    engine_of(served, continuation="final_message")
    assert len(served.bodies) == 2


def test_a_cut_answer_that_the_endpoint_will_not_go_on_with_stays_as_it_is(served: Endpoint) -> None:
    served.behaviour.goes_on = None
    generation = ask(
        engine_of(served, continuation="final_message"),
        "write 9",
        4,
        prefix_token_ids=(UNKNOWN_TOKEN,) * 4,
        prefix_text=written(4),
    )
    assert (generation.text, generation.token_ids, generation.error) == (written(4), (), "")
    assert (generation.finish_reason, generation.is_at_end) == ("length", True)


# Counting.


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"completion_tokens": -3},
        {"completion_tokens": "many"},
        {"completion_tokens": True},
        {"completion_tokens": 0},
        {"completion_tokens": None},
    ],
)
def test_what_is_not_said_counts_as_the_worst(served: Endpoint, usage: Any) -> None:
    served.behaviour.usage = usage
    generation = ask(engine_of(served), "write 5", 20)
    assert (generation.text, generation.error, generation.usage) == (written(5), "", None)
    assert len(generation.token_ids) == 20


def test_more_than_was_granted_ends_the_run(served: Endpoint) -> None:
    served.behaviour.usage = {"completion_tokens": 21}
    with pytest.raises(EngineError, match="generated 21 tokens on a grant of 20"):
        ask(engine_of(served), "write 5", 20)


def test_reasoning_that_is_counted_apart_is_counted(served: Endpoint) -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 9}}
    served.behaviour.usage = details | {"total_tokens": 8 + 6 + 9}
    apart = ask(engine_of(served), "write 5")
    assert (len(apart.token_ids), apart.usage) == (15, Usage(8, 1, 15, 9))
    served.behaviour.usage = details | {"completion_tokens": 15, "total_tokens": 8 + 15}
    within = ask(engine_of(served), "write 5")
    assert (len(within.token_ids), within.usage) == (15, Usage(8, 1, 15, 9))


# Faults.


@pytest.mark.parametrize(("fault", "form"), [("429", "date"), ("503", "seconds")])
def test_retry_after_is_kept(fault: str, form: str) -> None:
    with endpoint(retry_after=form, retry_after_seconds=2, faults=deque([fault])) as served:
        generation = ask(engine_of(served), "write 5")
        first, second = served.times
    assert generation.text == written(5)
    assert second - first >= (2.0 if form == "seconds" else 1.0)  # a date has no parts of a second
    assert second - first <= 15.0


def test_one_answer_429_holds_the_others_back() -> None:
    with endpoint(retry_after="seconds", retry_after_seconds=1, faults=deque(["429"])) as served:
        engine = engine_of(served, first_calls=1, max_batch=2)
        found = answers(engine, [Grant(f"q{number}", "write 3", 9) for number in range(4)])
        assert all(generation.text == written(3) for generation in found.values())
        assert served.times[1] - served.times[0] >= 1.0


def test_a_storm_of_429_loses_nothing() -> None:
    faults: list[str | None] = ["429"] * 3 + [None, "429"] * 4
    with endpoint(faults=deque(faults)) as served:
        found = answers(engine_of(served), [Grant(f"q{number}", "write 3", 9) for number in range(60)])
        assert {generation.text for generation in found.values()} == {written(3)}
        assert served.generated_tokens == 60 * 4 == sum(len(each.token_ids) for each in found.values())


@pytest.mark.parametrize("fault", ["500", "html 502", "html", "reset", "truncated", "slow headers"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_grant_of_which_nothing_is_known_is_lost_and_counts_in_full(fault: str, stream: bool) -> None:
    with endpoint(faults=deque([fault])) as served:
        engine = engine_of(served, timeout_seconds=0.6, stream=stream)
        generation = ask(engine, "write 5", 20)
        assert generation.is_lost
        assert len(generation.token_ids) == 20 >= served.generated_tokens
        assert generation.error.startswith(LOST_BY_ENDPOINT)
        assert "<" not in generation.error
        assert ask(engine, "write 5", 20).text == written(5)
        assert engine.counts == {"lost": 1, "answered": 1}


def test_server_errors_are_tried_again_at_no_charge_where_they_cost_nothing() -> None:
    with endpoint(faults=deque(["500", "html 502"])) as served:
        generation = ask(engine_of(served, charge_server_errors=False), "write 5", 20)
    assert (generation.text, len(generation.token_ids)) == (written(5), 6)


def test_a_query_that_is_refused_fails_alone() -> None:
    with endpoint(faults=deque([None, "400", None])) as served:
        engine = engine_of(served, first_calls=1, max_batch=1)
        found = answers(engine, [Grant(f"q{number}", "write 3", 9) for number in range(3)])
    (refused,) = [generation for generation in found.values() if generation.error]
    assert refused.error == f"{REFUSED_BY_ENDPOINT}400: This prompt is not liked."
    assert not refused.token_ids
    assert REFUSED_BY_ENDPOINT == causes.REFUSED_BY_ENDPOINT
    assert causes.code_of_answer(refused.error) == "invalid_request"
    too_long = f"{REFUSED_BY_ENDPOINT}400: This model's maximum context length is 9 tokens."
    assert causes.code_of_answer(too_long) == "context_length_exceeded"


def test_an_endpoint_that_refuses_everything_ends_the_run() -> None:
    with endpoint(faults=deque(["400"] * 50)) as served, pytest.raises(EngineError, match="refuses whatever"):
        answers(engine_of(served), [Grant(f"q{number}", "write 3", 9) for number in range(50)])


def test_an_account_that_is_used_up_ends_the_run() -> None:
    with endpoint(faults=deque([None, "no money"])) as served:
        engine = engine_of(served, first_calls=1, max_batch=1)
        with pytest.raises(EngineError, match=r"exceeded your current quota.*used up"):
            answers(engine, [Grant(f"q{number}", "write 3", 9) for number in range(4)])
        assert len(served.bodies) == 2


def test_a_silence_that_is_too_long_ends_the_run() -> None:
    day = {"retry_after": "seconds", "retry_after_seconds": 86_400, "faults": deque(["429"])}
    with endpoint(**day) as served, pytest.raises(EngineError, match="left alone for 86400 s"):
        ask(engine_of(served))
    busy = endpoint(faults=deque(["503"] * 1_000))
    with busy as served, pytest.raises(EngineError, match=r"taken no call for \d+ s: 503"):
        ask(engine_of(served, patience_seconds=1.0))


def test_a_server_that_goes_and_comes_again(served: Endpoint) -> None:
    engine = engine_of(served)
    with endpoint() as gone:
        port = gone.port
    object.__setattr__(engine._config, "base_url", f"http://127.0.0.1:{port}/v1")

    async def run() -> list[Generation]:
        task = asyncio.ensure_future(anext(aiter(engine.generate([Grant("q", "write 3", 9)]))))
        while not engine.counts.get("busy"):  # what was never sent costs nothing
            await asyncio.sleep(0.05)
        calls = next(iter(engine._calls.values()))
        calls._client.base_url = served.base_url
        return [await task]

    (generation,) = LOOP.run(run())
    assert generation.text == written(3)
    assert len(generation.token_ids) == 4


def test_streams_are_put_together(served: Endpoint) -> None:
    generation = ask(engine_of(served, stream=True), "write 5")
    assert (generation.text, generation.finish_reason) == (written(5), "stop")
    assert generation.usage == Usage(8, 1, 6, 0)
    assert served.bodies[0]["stream_options"] == {"include_usage": True}
    raw = ask(engine_of(served, stream=True), RawText("write 5"), 3)
    assert (raw.text.strip(), raw.finish_reason, len(raw.token_ids)) == (written(3), "length", 3)


def test_a_cancelled_call_counts_in_full() -> None:
    with endpoint(seconds=5.0) as served:
        engine = engine_of(served)

        async def run() -> Generation:
            task = asyncio.ensure_future(anext(aiter(engine.generate([Grant("q", "write 3", 9)]))))
            await asyncio.sleep(0.3)
            engine.cancel(["q", "another"])
            return await task

        generation = LOOP.run(run())
    assert (generation.finish_reason, len(generation.token_ids), generation.is_lost) == ("cancelled", 9, False)


def test_a_closed_engine_refuses(served: Endpoint) -> None:
    engine = engine_of(served)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        ask(engine)


# Limits.


def test_no_more_calls_at_once_than_are_allowed() -> None:
    with endpoint(seconds=0.05) as served:
        answers(engine_of(served, max_batch=7), [Grant(f"q{number}", "write 3", 9) for number in range(50)])
        assert served.most_seen <= 7


def test_calls_a_minute_are_kept() -> None:
    with endpoint() as served:
        engine = engine_of(served, requests_per_minute=600)
        answers(engine, [Grant(f"q{number}", "write 3", 9) for number in range(25)])
        times = served.times
    # Ten a second, of which the first second's may go at once: 1.5 s, less what the first call is late on a busy machine.
    assert times[-1] - times[0] >= 1.0


def test_tokens_a_minute_are_kept_and_what_was_not_used_is_given_back() -> None:
    with endpoint() as served:
        engine = engine_of(served, tokens_per_minute=6_000)
        found = answers(engine, [Grant(f"q{number}", "write 3", 89) for number in range(12)])
        times = served.times
    used = sum(each.usage.prompt_tokens + each.usage.output_tokens for each in found.values() if each.usage)
    assert used == 144
    assert times[-1] - times[0] >= 0.1  # a hundred a second, of which the first second's may go at once


def test_what_a_call_did_not_use_of_its_tokens_is_given_back() -> None:
    """One call of 100 tokens at most, which used 12, at six a minute: the next one waits for those 12, not for 100."""
    with endpoint() as served:
        engine = engine_of(served, tokens_per_minute=6)

        async def run() -> float:
            _ = [each async for each in engine.generate([Grant("q", "write 3", 89)])]
            (calls,) = engine._calls.values()
            assert calls._tokens_pace is not None
            return calls._tokens_pace.wait_seconds(asyncio.get_running_loop().time(), 1.0)

        assert LOOP.run(run()) <= 121.0  # less where the machine is busy; 1,000 seconds if all 100 had been charged


# Keys, and what is said before a run.


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with endpoint(key=KEY) as served:
        for settings in ({"key_env": "MY_KEY"}, {"key_file": str(file)}):
            config = config_of(served, continuation="none", **settings)
            carrying = pickle.loads(pickle.dumps(with_key(config)))  # noqa: S301 - of this test
            assert isinstance(carrying, OpenAIConfig)
            monkeypatch.setenv("MY_KEY", "another")  # it was read where the user is
            assert ask(build_engine(carrying)).text == written(5)  # type: ignore[arg-type]
            assert KEY not in repr(carrying) + carrying.model_dump_json() + str(carrying)
            monkeypatch.setenv("MY_KEY", KEY)
        assert served.headers[-1]["Authorization"] == f"Bearer {KEY}"
        wrong = config_of(served, key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", KEY[:-1] + "X")
        with pytest.raises(ConfigError) as raised:
            build_engine(wrong)
    assert KEY[:-1] not in str(raised.value) + repr(raised.value.args)
    assert "MY_KEY" in str(raised.value)


def test_a_key_in_another_header(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    ask(engine_of(served, key_env="MY_KEY", key_header="api-key"))
    assert served.headers[-1]["api-key"] == KEY
    assert "Authorization" not in served.headers[-1]


def test_no_key_is_sent_that_was_not_named(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    ask(engine_of(served))
    assert KEY not in json.dumps(served.headers)


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "k\u00e9y"])
def test_a_file_without_a_key_is_refused(served: Endpoint, tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="key_file"):
        engine_of(served, key_file=str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="cannot be read"):
        engine_of(served, key_file=str(tmp_path / "missing"))


def refusal(config: OpenAIConfig) -> str:
    started = time.monotonic()
    with pytest.raises(ClearRayError) as raised:
        engine_notes(config)
    assert time.monotonic() - started < 15
    said = str(raised.value)
    assert "\n" not in said
    return said


def test_what_is_wrong_is_said_in_a_line(served: Endpoint) -> None:
    assert "it has words" in refusal(config_of(served, model="wrods"))
    assert "it is not set" in refusal(config_of(served, key_env="NO_SUCH_VARIABLE_HERE"))
    with endpoint(key=KEY) as locked:
        assert "wants a key" in refusal(config_of(locked))
    gone = config_of(locked)
    assert "cannot be reached" in refusal(gone)
    assert "no OpenAI-compatible" in refusal(gone.model_copy(update={"base_url": _page_of_html(served)}))


def _page_of_html(served: Endpoint) -> str:
    return served.base_url.replace("/v1", "/page")


def test_what_could_not_be_looked_at_is_a_note(served: Endpoint) -> None:
    config = config_of(served)
    assert engine_notes(config) == ()
    check_engine(config, probe_layers=None, check_model=lambda _: None, is_for_any_model=True)
    assert build_engine(config).card.context_tokens == 4_096
    served.behaviour.lists = False
    assert "lists no models" in engine_notes(config)[0]
    with pytest.raises(ConfigError, match="layers"):
        check_engine(config, probe_layers=3, check_model=lambda _: None, is_for_any_model=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "127.0.0.1:8000/v1"},
        {"base_url": "https://user:key@host/v1"},
        {"base_url": "https://host/v1?key=abc"},
        {"extra_body": {"max_tokens": 3}},
        {"extra_body": {"stream": True}},
        {"key_header": "a b"},
        {"model": ""},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OpenAIConfig.model_validate({"kind": "openai", "base_url": "http://h/v1", "model": "m"} | settings)


# What the probe sees.


def test_the_probe_reads_the_text_alone(served: Endpoint) -> None:
    engine = engine_of(served)
    features = engine.prefill(["a", "b"], ["What is 17 + 25?", (("user", "Hello there"), ("assistant", "Hi"))])
    assert not served.bodies
    assert features.hidden_last_ND.shape == features.hidden_mean_ND.shape == (2, 0)
    assert features.prompt_tokens_N.tolist() == engine.prompt_tokens(
        ["What is 17 + 25?", (("user", "Hello there"), ("assistant", "Hi"))]
    )
    assert engine.card.hidden_width == 0


@pytest.mark.parametrize("kind", ["competing_risks", "factorised", "shifted_erlang"])
def test_heads_are_fitted_on_what_it_reads(served: Endpoint, kind: str) -> None:
    engine = engine_of(served)
    names, prompts = [f"q{n}" for n in range(24)], [f"Case {n}: what is {n} + {n * n}?" for n in range(24)]
    features = engine.prefill(names, prompts)
    rollouts = {
        "query_id": names,
        "prompt": prompts,
        "output_tokens": [2 + n % 9 for n in range(24)],
        "finish_reason": ["stop"] * 24,
        "correct": [n % 3 > 0 for n in range(24)],
        "max_tokens": [24] * 24,
    }
    fingerprint = engine.card.fingerprint
    head = fit_head(pa.table(rollouts), features, kind=kind, model_fingerprint=fingerprint, diagnostic_folds=0)
    head.check_model(fingerprint)
    curves = head.curves(features, prompts, names)
    assert np.isfinite(curves.success_NK).all()
    assert curves.success_NK.std(axis=0).max() > 0


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("The quick brown fox jumps over the lazy dog.", 10), ("12345 + 678 = ?", 8), ("\u4f60\u597d\u5417", 3)],
)
def test_prompts_are_about_as_long_as_they_are_taken_for(prompt: str, tokens: int) -> None:
    assert tokens <= prompt_tokens_of(prompt) <= 2 * tokens + 8
    assert prompt_tokens_of(TokenIds((1, 2, 3))) == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 01:01:40 GMT", "date": "Thu, 01 Jan 1970 01:01:00 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "yesterday"}, 40.0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_when_to_come_again(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=60.0) == seconds
