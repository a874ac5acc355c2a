"""What a command's end comes to: an exit code, and at most one line."""

import signal
from collections.abc import Callable

import pytest

from clear_ray.cli import guarded
from clear_ray.errors import EngineError, ResumeError


def ending(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ResumeError("another run is writing"), 2, "Refused: another run is writing."),
        (EngineError("engines died"), 1, "Failed: engines died."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (SystemExit(130), 130, "Interrupted."),
        (SystemExit(signal.SIGTERM), 130, "Interrupted."),
        (SystemExit(4), 4, ""),
        (SystemExit(None), 0, ""),
    ],
    ids=repr,
)
def test_every_end_has_its_code(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(ending(error)) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == bool(said)
