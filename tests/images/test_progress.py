from __future__ import annotations

import os
import pty
import sys
from contextlib import suppress

import pytest

from ovr_ray.images import progress


def test_a_terminal_shows_count_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(80, done=30) as advance:
            advance(20)
    shown = b""
    with suppress(OSError):  # reading fails once the terminal has no writer
        while more := os.read(master, 4096):
            shown += more
    os.close(master)
    assert b"50/80" in shown
    assert b"images/s" in shown


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(80) as advance:
        advance(20)
    assert capsys.readouterr().err == ""
