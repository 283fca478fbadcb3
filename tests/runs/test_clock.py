from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.runs import Clock, clock


@pytest.fixture
def file(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "search.json")


def sign(file: UPath, process: int, host: str = "") -> None:
    """Write a heartbeat of this moment."""
    heartbeat = {"seconds": 7.0, "time": time.time(), "host": host or socket.gethostname(), "process": process}
    file.write_text(json.dumps(heartbeat))


def test_time_adds_up_over_sessions_and_does_not_pass_between_them(file: UPath) -> None:
    with Clock(file).ticking():
        time.sleep(0.3)
    time.sleep(0.3)
    again = Clock(file)
    assert not again.is_alive
    assert 0.2 < again.seconds < 0.5


def test_a_clock_that_was_written_a_moment_ago_is_alive(file: UPath) -> None:
    assert not Clock(file).is_alive
    sign(file, os.getpid())
    alive = Clock(file)
    assert alive.is_alive
    assert 7 <= alive.seconds < 8


def test_a_second_process_is_refused_while_the_first_is_alive(file: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SAVE_EVERY", 0.2)
    with Clock(file).ticking():
        while not file.exists():
            time.sleep(0.01)
        with pytest.raises(BadInput, match=f"process {os.getpid()} on {socket.gethostname()} is at work in it"):
            Clock(file).refuse_a_second_process()
    Clock(file).refuse_a_second_process()


def test_a_process_that_was_killed_on_this_machine_refuses_nobody(file: UPath) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sign(file, ended.pid)
    begun = time.monotonic()
    Clock(file).refuse_a_second_process()
    assert time.monotonic() - begun < 1


def test_a_process_that_was_killed_on_another_machine_is_watched_and_then_refuses_nobody(
    file: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "WATCHED", 1.5)
    sign(file, os.getpid(), host="a-node-that-is-gone")
    begun = time.monotonic()
    Clock(file).refuse_a_second_process()
    assert time.monotonic() - begun > 1.5
