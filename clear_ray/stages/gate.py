"""What holds the probe's calls back while its processes start: a file that says whether they may begin.

The probe is started beside the engines, which load their models meanwhile. Nothing is asked of them before they are up and it
is known that the run folder is of these models.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from clear_ray.errors import EngineError
from clear_ray.storage import Folder

_LOOK_SECONDS = 0.05
_OPEN, _REFUSED = b"open", b"refused"


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that is closed at first.

    Attributes:
        folder: The run folder.
        name: Its file there.
    """

    folder: Folder
    name: str = "probe.gate"

    def open(self) -> None:
        """Let the calls begin."""
        self.folder.write(self.name, _OPEN)

    def refuse(self) -> None:
        """Have the calls fail: what keeps the run from being opened is raised elsewhere."""
        self.folder.write(self.name, _REFUSED)

    def remove(self) -> None:
        """Delete the file: nothing waits any more."""
        if self.folder.exists(self.name):
            self.folder.filesystem.delete_file(f"{self.folder.path}/{self.name}")

    async def passed(self) -> None:
        """Return once the gate is open.

        Raises:
            EngineError: It was refused.
        """
        while not await asyncio.to_thread(self.folder.exists, self.name):
            await asyncio.sleep(_LOOK_SECONDS)
        if await asyncio.to_thread(self.folder.read, self.name) == _REFUSED:
            raise EngineError("the engines are not to be asked", value="the run could not be opened")
