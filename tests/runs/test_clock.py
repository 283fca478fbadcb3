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
from ovr_ray.runs import RunFolder
from ovr_ray.runs import clock
from ovr_ray.runs import Clock


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(UPath(tmp_path))


def sign(run: RunFolder, process: int, host: str = "") -> None:
    told = {"seconds": 7.0, "time": time.time(), "host": host or socket.gethostname(), "process": process}
    (run.path / "search.json").write_text(json.dumps(told))


def test_time_adds_up_over_sessions_and_between_them_it_stands(run: RunFolder) -> None:
    with Clock(run).ticking():
        time.sleep(0.3)
    time.sleep(0.3)
    again = Clock(run)
    assert not again.is_alive
    assert 0.2 < again.seconds < 0.5


def test_a_second_search_is_refused_while_the_first_is_alive(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SAVE_EVERY", 0.2)
    with Clock(run).ticking():
        while not (run.path / "search.json").exists():
            time.sleep(0.01)
        with pytest.raises(BadInput, match=f"process {os.getpid()} on {socket.gethostname()} is at work in it"):
            Clock(run).refuse_a_second_search()
    Clock(run).refuse_a_second_search()


def test_a_search_that_was_killed_on_this_machine_is_in_nobodys_way(run: RunFolder) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sign(run, ended.pid)
    begun = time.monotonic()
    Clock(run).refuse_a_second_search()
    assert time.monotonic() - begun < 1


def test_a_search_that_was_killed_elsewhere_is_waited_for_and_found_dead(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "WATCHED", 1.5)
    sign(run, os.getpid(), host="a-node-that-is-gone")
    begun = time.monotonic()
    Clock(run).refuse_a_second_search()
    assert time.monotonic() - begun > 1.5
