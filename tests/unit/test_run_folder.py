"""A damaged run folder is refused in words, not by the library that failed to read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clear_ray.config import RunConfig
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.pipeline import run
from clear_ray.run_folder import MANIFEST, SUMMARY, read_manifest, read_summary
from clear_ray.storage import Folder, open_folder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"config": {}, "input": {}}', b"\xff\xfe"])
@pytest.mark.parametrize(("name", "read"), [(MANIFEST, read_manifest), (SUMMARY, read_summary)])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, read: Callable[[Folder], Any], content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResumeError, match=f"{name}.*damaged.*new run_dir"):
        read(open_folder(str(tmp_path)))


def test_a_new_folder_has_neither(tmp_path: Path) -> None:
    assert read_manifest(open_folder(str(tmp_path))) is None
    assert read_summary(open_folder(str(tmp_path))) is None


def test_a_run_writes_nothing_through_a_link(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "queries").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds a link"):
        run(None, RunConfig.parse(replay_settings))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["queries"]
