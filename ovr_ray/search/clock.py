"""A search's or a refit's clock: how long it took over all sessions, and whether somebody is at it right now."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.run_folder import RunFolder, refresh, storage_errors, write_whole

SAVE_EVERY = 5.0
"""Seconds between two writings."""

SIGN_OF_LIFE = 30.0
"""Seconds since the last writing in which a search is taken to be running."""

WATCHED = 3 * SAVE_EVERY
"""Seconds in which a search on another machine is certain to give a sign of life."""


class Clock:
    """``search.json`` of a run folder, or a file of another's.

    Parameters
    ----------
    run : RunFolder
    file : UPath, optional

    Attributes
    ----------
    is_alive : bool
        Whether a search was at work in the folder when this was made.
    """

    def __init__(self, run: RunFolder, file: UPath | None = None) -> None:
        self._run, self._file = run, file or run.file("search.json")
        self._found = self._read()
        self._start = time.monotonic()
        self.is_alive = time.time() - self._found.get("time", 0.0) < SIGN_OF_LIFE

    @property
    def seconds(self) -> float:
        """Time that the search has taken, over all sessions, this one included."""
        return self._found.get("seconds", 0.0) + time.monotonic() - self._start

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Write the time every few seconds while this is open."""
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

    def refuse_a_second_search(self) -> None:
        """Raise :class:`BadInput` if another process searches in this folder; one that was killed does not."""
        found = self._found
        is_here = found.get("host") == socket.gethostname()
        if not found.get("time") or (is_here and not _runs(found["process"])):
            return
        watched_until = time.monotonic() + WATCHED
        while (now := self._read()) == found:  # another machine's clock may be wrong, so it is not asked for the time
            if time.monotonic() > watched_until:
                return
            time.sleep(1)
        if now["time"]:
            problem = f"process {now['process']} on {now['host']} is at work in it"
            raise BadInput(Fault(str(self._run.path), problem, "ovr-ray status tells how far it is"))

    def _read(self) -> dict[str, Any]:
        refresh(self._run.path)
        return json.loads(self._file.read_text()) if self._file.exists() else {}

    def _write(self, now: float) -> None:
        told = {"seconds": round(self.seconds, 1), "time": round(now, 1)}
        with suppress(*storage_errors()):  # a full disk is told by those who write results
            write_whole(self._file, json.dumps(told | {"host": socket.gethostname(), "process": os.getpid()}))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
