"""A form on its way to disk: whole or not at all, whatever its pieces are, with flat memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clear_ray.serve.batches import upload
from clear_ray.serve.batches.upload import expiry_of, receive
from clear_ray.serve.errors import ApiError

BOUNDARY = "----of-the-tests"
TYPE = f'multipart/form-data; boundary="{BOUNDARY}"'


def form(content: bytes, *, filename: str = "b.jsonl", after: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head += f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="{filename}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    return head.encode() + content + f"\r\n{after}--{BOUNDARY}--\r\n".encode()


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@given(content=st.binary(max_size=300) | st.just(f"\r\n--{BOUNDARY[:-1]}\r\n".encode() * 3), size=st.integers(1, 400))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_content_in_any_pieces_arrives_as_it_is(tmp_path: Path, content: bytes, size: int) -> None:
    target = tmp_path / "file"
    fields, name, length = await receive(pieces(form(content), size), TYPE, target, most_bytes=1_000)
    assert (fields, name, length) == ({"purpose": "batch"}, "b.jsonl", len(content))
    assert target.read_bytes() == content


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (form(b"x" * 101), TYPE, 413),
        (form(b"x")[:-10], TYPE, 400),
        (form(b"x")[:-60], TYPE, 400),
        (b"", TYPE, 400),
        (b"{}", "application/json", 400),
        (form(b"x"), "multipart/form-data", 400),
        (form(b"x"), "multipart/form-data; boundary=another", 400),
        (form(b"x", after=form(b"y").decode().partition("batch\r\n")[2].rpartition("--" + BOUNDARY)[0]), TYPE, 400),
        (b"--" + BOUNDARY.encode() + b"\r\nno header at all\r\n\r\n", TYPE, 400),
    ],
    ids=["too long", "cut", "cut in the file", "empty", "json", "no boundary", "other boundary", "two files", "header"],
)
async def test_what_is_no_form_leaves_nothing(tmp_path: Path, body: bytes, content_type: str, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        await receive(pieces(body, 50), content_type, tmp_path / "file", most_bytes=100)
    assert caught.value.status == status
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield form(b"x" * 50)[:-20]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await receive(broken(), TYPE, tmp_path / "file", most_bytes=100)
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_stands_still_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def still() -> AsyncIterator[bytes]:
        yield form(b"x" * 50)[:-20]
        await asyncio.Event().wait()

    monkeypatch.setattr(upload, "_STALL_SECONDS", 0.05)
    with pytest.raises(ApiError) as caught:
        await receive(still(), TYPE, tmp_path / "file", most_bytes=100)
    assert caught.value.status == 408
    assert list(tmp_path.iterdir()) == []


async def test_memory_is_flat(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        head, tail = form(b"|").split(b"|")
        yield head
        for _ in range(640):
            yield b"a line of a batch file\n" * 2_850
        yield tail

    tracemalloc.start()
    _, _, length = await receive(body(), TYPE, tmp_path / "file", most_bytes=1 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length > 40_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1_100),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}, 4_600),
        ({"expires_after": {"anchor": "created_at", "seconds": 2_592_000}}, 2_593_000),
    ],
)
def test_files_expire_when_their_clients_say(fields: dict[str, object], expected: int) -> None:
    assert expiry_of(fields, 1_000, default_seconds=100) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after": "soon"},
        {"expires_after": {"anchor": "now", "seconds": 3600}},
        {"expires_after": {"seconds": 3600}},
        {"expires_after": {"anchor": "created_at"}},
        *(
            {"expires_after": {"anchor": "created_at", "seconds": each}}
            for each in (3_599, 2_592_001, -1, "x", 1e9, True)
        ),
    ],
)
def test_other_times_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ApiError) as caught:
        expiry_of(fields, 1_000, default_seconds=None)
    assert caught.value.status == 400
