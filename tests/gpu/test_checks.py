"""The checks for a GPU run on the CPU, at sizes that prove nothing about one, so that they are right where one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.checks import CHECKS, ON_CPU, Verdict, run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_every_check_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gpu")
    found = {name: run(name, ON_CPU, folder) for name in CHECKS}
    assert not {name: verdict for name, verdict in found.items() if verdict.is_good is False}


def test_a_check_that_raises_is_bad_and_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scale: object, folder: Path) -> Verdict:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setitem(CHECKS, "machine", broken)
    verdict = run("machine", ON_CPU, tmp_path)
    assert (verdict.word, verdict.told) == ("BAD", "RuntimeError: no kernel image is available")
    assert "broken" in "".join(verdict.plain()["figures"]["trace"])
