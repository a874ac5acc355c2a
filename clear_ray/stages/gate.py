"""What holds the probe's calls back: a file that says whether they may begin, or how many of them.

The probe is started beside the engines, which load their models meanwhile. Nothing is asked of them before they are up and it
is known that the run folder is of these models. And where the price is cleared while prompts are read, no more of them are
read than it is to see.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from clear_ray.errors import EngineError
from clear_ray.storage import Folder

_LOOK_SECONDS, _LOOK_FAR_SECONDS = 0.05, 0.5
_CLOSED, _OPEN = b"closed", b"open"


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that is opened, or taken away: that works on a full disk, too.

    Attributes:
        folder: The run folder.
        name: Its file there.
    """

    folder: Folder
    name: str = "probe.gate"

    def close(self) -> None:
        """Hold the calls back from now on."""
        self.folder.write(self.name, _CLOSED)

    def open(self) -> None:
        """Let the calls begin."""
        self.folder.write(self.name, _OPEN)

    def open_to(self, calls: int) -> None:
        """Let so many calls begin, the first ones."""
        self.folder.write(self.name, str(calls).encode())

    def remove(self) -> None:
        """Take the gate away: what still waits fails, for what keeps the run from being opened is raised elsewhere."""
        with suppress(FileNotFoundError):
            self.folder.filesystem.delete_file(f"{self.folder.path}/{self.name}")

    def is_there(self) -> bool:
        """Return whether anything waits for it still."""
        return self.folder.exists(self.name)

    async def passed(self, call: int = 0) -> None:
        """Return once the gate is open for a call.

        Args:
            call: How many have begun before it.

        Raises:
            EngineError: There is none any more.
        """
        while not await asyncio.to_thread(self._lets_in, call):
            await asyncio.sleep(_LOOK_SECONDS if self.folder.is_local else _LOOK_FAR_SECONDS)

    def _lets_in(self, call: int) -> bool:
        try:
            state = self.folder.read(self.name)
        except FileNotFoundError:
            raise EngineError("the engines are not to be asked", value="the run could not be opened") from None
        return state == _OPEN or (state != _CLOSED and call < int(state))
