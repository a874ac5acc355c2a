from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from ray.data.datasource.path_util import _resolve_paths_and_filesystem

from clear_ray.errors import ConfigError, StorageError
from clear_ray.storage import Folder, inside, open_folder, open_location, writing_errors


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    places = {"local": f"{tmp_path}/run", "file": f"file://{tmp_path}/run", "memory": f"memory://st-{tmp_path.name}"}
    if request.param == "s3":
        places["s3"] = inside(request.getfixturevalue("bucket"), tmp_path.name)
    opened = open_folder(places[request.param])
    yield opened
    if opened.exists():
        opened.filesystem.delete_dir(opened.path)


def test_files_go_round(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.files() == []
    folder.write("b.json", b"2")
    folder.child("deep").child("er").write("a.parquet", b"\0\xff")
    assert folder.exists()
    assert folder.exists("b.json")
    assert folder.exists("deep")
    assert not folder.exists("c.json")
    assert [path.removeprefix(folder.path) for path in folder.files()] == ["/b.json", "/deep/er/a.parquet"]
    assert [path.removeprefix(folder.path) for path in folder.files(".parquet")] == ["/deep/er/a.parquet"]
    assert folder.child("deep").child("er").read("a.parquet") == b"\0\xff"
    folder.write("b.json", b"3")
    assert folder.read("b.json") == b"3"


def test_a_folder_takes_the_place_of_another(folder: Folder) -> None:
    for content in (b"1", b"2"):
        with folder.replacing("new") as growing:
            growing.write(f"of-{content.decode()}", content)
            if folder.is_local and content == b"2":
                assert folder.child("new").read("of-1") == b"1", "the old one stands until the new one is whole"
    whole = [f"{folder.path}/new/of-2"]
    assert folder.child("new").files() == whole
    folder.delete("new")
    folder.delete("new")  # nothing there: nothing to do
    assert not folder.exists("new")


@pytest.mark.parametrize(
    ("location", "within"),
    [
        ("runs/a", "runs/a/b/c"),
        ("/runs/what?/", "/runs/what?/b/c"),
        ("s3://bucket/a/", "s3://bucket/a/b/c"),
        ("s3://bucket?region=x&scheme=http", "s3://bucket/b/c?region=x&scheme=http"),
    ],
)
def test_a_location_inside_another(location: str, within: str) -> None:
    assert inside(location, "b/c") == within


def test_a_file_is_replaced_as_one_step(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("summary.json", b"old")
    held = open(tmp_path / "summary.json", "rb")  # noqa: SIM115  a reader that came before
    folder.write("summary.json", b"new and longer")
    assert held.read() == b"old"
    held.close()
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_folder_that_is_deleted_during_a_write_is_named_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(str(tmp_path / "run"))
    replace = os.replace

    def replace_after_deletion(partial: str, target: str) -> None:
        shutil.rmtree(folder.path)
        replace(partial, target)

    monkeypatch.setattr(os, "replace", replace_after_deletion)
    with pytest.raises(StorageError, match="deleted or moved"):
        folder.write("rows.parquet", b"1")


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("summary.json", b"old")
    with pytest.raises(TypeError):
        folder.write("summary.json", "text is not bytes")  # type: ignore[arg-type]
    assert folder.read("summary.json") == b"old"


def test_only_local_places_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder("runs/one/").path == f"{tmp_path}/runs/one"
    assert open_folder("runs/one").is_local
    assert open_folder(f"file://{tmp_path}").is_local
    assert not open_folder("memory://runs").is_local
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_folder("~/run").path == f"{tmp_path}/run"


@pytest.mark.parametrize(
    "location", ["http://example.org/run", "https://example.org/run", "ftp://host/x", "://x", "python://os", "data://x"]
)
def test_unknown_schemes_are_refused_with_those_that_are_known(location: str) -> None:
    with pytest.raises(ConfigError, match="unknown scheme") as refused:
        open_location(location)
    assert refused.value.where == location
    assert "s3" in refused.value.remedy
    assert "memory" in refused.value.remedy


@pytest.mark.parametrize("scheme", ["s3", "sftp", "https"])
def test_messages_hold_no_keys(scheme: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_location(f"{scheme}://user:hidden@host:notaport/run?secret_key=hidden")
    assert "hidden" not in str(refused.value)
    assert refused.value.where == f"{scheme}://host:notaport/run"


def test_memory_takes_no_keys_into_its_paths() -> None:
    assert open_location("memory://KEY:HIDDEN@bucket/run?token=HIDDEN")[1] == open_location("memory://bucket/run")[1]


@pytest.mark.parametrize("location", ["s3:/KEY:HIDDEN@bucket/run", "s3://KEY:HID/DEN@bucket/run"])
def test_what_is_mistyped_is_quoted_without_keys(location: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_location(location)
    assert "DEN" not in str(refused.value)


@pytest.mark.parametrize("location", ["file://", "s3://", "file://host/too/many", "sftp://nohost.invalid:notaport/x"])
def test_a_location_that_cannot_be_opened_is_a_setting_to_mend(location: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_location(location)
    assert refused.value.where == location


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_told_wherever_it_was_met(code: int) -> None:
    failure = RuntimeError("a worker of Ray failed")
    failure.__cause__ = OSError(code, "as the system says it")
    with pytest.raises(StorageError, match=r"runs/mine.*run the same command again"), writing_errors("runs/mine"):
        raise failure


@pytest.mark.parametrize("name", ["/models/mine/model.safetensors", None])
def test_a_permission_that_lacks_is_told_with_its_file(name: str | None) -> None:
    said = r"lacks a permission.*Permission denied.*Mend that"
    with pytest.raises(StorageError, match=said) as told, writing_errors("runs/mine"):
        raise PermissionError(errno.EACCES, "Permission denied", name)
    assert told.value.where == (name or "runs/mine")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "no such file"), ConfigError("wrong"), ValueError("wrong")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, writing_errors("runs/mine"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "location",
    ["memory://a/../../b", "s3://bucket/../other/run", "file:///tmp/../etc"],
)
def test_a_uri_does_not_climb(location: str) -> None:
    with pytest.raises(ConfigError, match=r"\.\. leads upwards") as refused:
        open_location(location)
    assert refused.value.where == location


def test_a_scheme_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert open_folder(f"FILE://{tmp_path}/run").path == f"{tmp_path}/run"
    assert open_folder("Memory://run").path == open_folder("memory://run").path


def test_a_folder_may_be_a_link_but_hold_none(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    folder = open_folder(str(tmp_path / "run"))
    folder.child("rounds").write("kept", b"1")
    folder.refuse_links()
    for name, target in (("completions", tmp_path), ("rounds/r01", tmp_path), ("journal.jsonl", tmp_path / "nowhere")):
        link = tmp_path / "run" / name
        link.symlink_to(target)
        with pytest.raises(ConfigError, match=f"holds a link.*{target}") as refused:
            folder.refuse_links()
        assert refused.value.where == f"{folder.path}/{name}"
        link.unlink()


@pytest.mark.parametrize(
    "location", ["s3:/bucket/run", "http:/x", "file:/tmp/x", "data:text/plain,abc", "file:///tmp/a#b"]
)
def test_what_is_mistyped_does_not_become_a_local_folder(location: str) -> None:
    with pytest.raises(ConfigError):
        open_location(location)


@pytest.mark.parametrize(
    "location", ["~nosuchuser/run", "nul\0byte/run", "memory://nul\0byte/run", "half \ud800", f"{'x' * 300}/run"]
)
def test_a_name_that_cannot_be_is_a_setting_to_mend(location: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_folder(location)
    assert str(refused.value).isprintable()
    assert refused.value.remedy


@pytest.mark.parametrize("name", ["what?", "a?b=1", "new\nline", "tab\t", "bell\a"])
def test_a_run_folder_that_ray_would_read_under_another_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for location in (f"{tmp_path}/{name}/run", f"file://{tmp_path}/{quote(name)}"):
        with pytest.raises(ConfigError, match="neither question marks nor control characters") as refused:
            open_folder(location)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "location",
    ["${HOME}/runs", "$HOME/runs", "runs/$USER", "$(pwd)/run", "{{ run_dir }}/x", "%USERPROFILE%/x", "C:\\runs"],
)
def test_what_a_shell_would_have_filled_in_is_no_folder(location: str) -> None:
    with pytest.raises(ConfigError, match="a folder of that very name would be made"):
        open_folder(location)


@pytest.mark.parametrize("name", ["cost-$5", "50%", "a{b}", "100%-run", "run$"])
def test_a_folder_may_have_any_other_name(tmp_path: Path, name: str) -> None:
    assert open_folder(f"{tmp_path}/{name}").path == f"{tmp_path}/{name}"


def test_a_path_has_one_slash_before_it(tmp_path: Path) -> None:
    for location in (f"/{tmp_path}/run", f"//{tmp_path}/run", f"file:///{tmp_path}/run"):
        folder = open_folder(location)
        assert folder.path == f"{tmp_path}/run"
        assert _resolve_paths_and_filesystem([folder.path], folder.filesystem)[0] == [f"{tmp_path}/run"]


def test_a_colon_in_a_local_name_can_be_said() -> None:
    assert open_location("./a run: the first")[2]


@pytest.mark.parametrize("location", ["/", "///", "file:///", "memory://"])
def test_the_root_of_a_file_system_is_no_run_folder(location: str) -> None:
    with pytest.raises(ConfigError, match=r"root|names no folder"):
        open_folder(location)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for location in (str(tmp_path / "run"), f"file://{tmp_path}/run", f"{tmp_path}/run/in/it"):
        with pytest.raises(ConfigError, match="a file stands where a folder should be"):
            open_folder(location)
