"""The clock of a search or a refit: how long it took over all sessions, and whether a process works on it now."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.runs.records import Heartbeat, damage_told
from ovr_ray.storage import read_if_there, refresh, storage_errors, write_whole

SAVE_EVERY: Final = 5.0
"""Seconds between two heartbeats."""

SIGN_OF_LIFE: Final = 30.0
"""Seconds since the last heartbeat in which the work is taken to be running."""

WATCHED: Final = 3 * SAVE_EVERY
"""Seconds in which a process on another machine certainly writes a heartbeat."""


class Clock:
    """The heartbeat file of a search or a refit.

    Parameters
    ----------
    file : UPath
        :attr:`RunFolder.clock <ovr_ray.runs.RunFolder.clock>` or :attr:`RefitFolder.clock
        <ovr_ray.runs.RefitFolder.clock>`.

    Attributes
    ----------
    is_alive : bool
        Whether a process was at work in the folder when this object was made.
    """

    def __init__(self, file: UPath) -> None:
        self._file = file
        self._found = self._read()
        self._start = time.monotonic()
        self.is_alive = time.time() - self._found.time < SIGN_OF_LIFE

    @property
    def seconds(self) -> float:
        """Time spent over all sessions, including this one, in seconds."""
        return self._found.seconds + time.monotonic() - self._start

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Write a heartbeat every few seconds while this block runs."""
        ended = threading.Event()

        def tick() -> None:
            while not ended.is_set():
                self._write(time.time())
                ended.wait(SAVE_EVERY)

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._write(0.0)

    def refuse_a_second_process(self) -> None:
        """Raise :class:`BadInput` if another process works in this folder; one that was killed does not count."""
        found = self._found
        is_here = found.host == socket.gethostname()
        if not found.time or (is_here and not _runs(found.process)):
            return
        watched_until = time.monotonic() + WATCHED
        while (now := self._read()) == found:  # another machine's clock may be wrong, so the times are not compared
            if time.monotonic() > watched_until:
                return
            time.sleep(1)
        if now.time:
            problem = f"process {now.process} on {now.host} is at work in it"
            raise BadInput(Fault(str(self._file.parent), problem, "ovr-ray status shows how far it is"))

    def _read(self) -> Heartbeat:
        refresh(self._file)
        with damage_told(self._file):
            text = read_if_there(self._file)
            return Heartbeat() if text is None else Heartbeat.from_json(text)

    def _write(self, now: float) -> None:
        seconds, host = round(self.seconds, 1), socket.gethostname()
        heartbeat = Heartbeat(seconds=seconds, time=round(now, 1), host=host, process=os.getpid())
        with suppress(*storage_errors()):  # a full disk is reported by those who write results
            write_whole(self._file, heartbeat.to_json())


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
