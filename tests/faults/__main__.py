"""The long form of the fault injection: ``python -m tests.faults [--kills 20] [--seed 0]``.

It prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.faults.harness import PROJECT, DisturbedSearch, Killed, Kind, Safeguard, cluster, compare, kill_nodes, recipe

DATA = PROJECT / "data" / "elpv"
SEARCHES = (Kind("random", "none"), Kind("tpe", "asha"), Kind("tpe", "halving", slots=4))
WITHOUT: dict[Safeguard, tuple[Killed, Kind]] = {"optimizer": ("worker", SEARCHES[0]), "rungs": ("driver", SEARCHES[1])}
"""Safeguard -> what is killed, and in which search, so that its absence is noticed."""

PER_SEARCH = 10
"""Most kills of one search; further ones are made in a new search."""


def main() -> None:
    """Kill, compare, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind [20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--killed", nargs="*", default=["worker", "driver", "node"])
    parser.add_argument("--without", nargs="*", default=["optimizer", "rungs"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovr-faults-") as folder:
        table = FaultTable(Path(folder), given.seed)
        for kind in SEARCHES:
            for killed in given.killed:
                table.add(killed, kind, given.kills // len(SEARCHES))
        for safeguard in given.without:
            table.add(*WITHOUT[safeguard], 5, safeguard)


class FaultTable:
    """Disturbs searches, and prints a row for each combination."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._undisturbed: dict[Kind, DisturbedSearch] = {}
        self._has_header = False

    def add(self, killed: Killed, kind: Kind, kills: int, without: Safeguard | None = None) -> None:
        """Kill processes of searches this many times in all, and print one row."""
        expected = self._expected(kind)
        made, sessions, differences = 0, 0, Counter[str]()
        while made < kills:
            name = f"{killed}-{kind.scheduler}-{without}-{self._rng.randrange(10**6)}"
            search = DisturbedSearch(self._folder, recipe(DATA, self._folder, name, kind), self._rng, without)
            _disturb(search, killed, min(PER_SEARCH, kills - made))
            made, sessions = made + len(search.kills), sessions + search.sessions
            differences.update(compare(expected.run, search))
        self._print(str(kind), killed, without, made, sessions, differences)

    def _expected(self, kind: Kind) -> DisturbedSearch:
        """Return an undisturbed search; that of halving has one slot, because slots must change nothing."""
        alone = replace(kind, slots=1)
        if alone not in self._undisturbed:
            plain = recipe(DATA, self._folder, f"undisturbed-{kind.scheduler}", alone)
            self._undisturbed[alone] = DisturbedSearch(self._folder, plain, self._rng)
            self._undisturbed[alone].finish()
        return self._undisturbed[alone]

    def _print(
        self, search: str, killed: str, without: str | None, kills: int, sessions: int, differences: Counter[str]
    ) -> None:
        if not self._has_header:
            print("| search | killed | without | kills | sessions |", " | ".join(differences), "|")
            print("|---" * (5 + len(differences)) + "|")
            self._has_header = True
        counts = " | ".join(map(str, differences.values()))
        print(f"| {search} | {killed} | {without or ''} | {kills} | {sessions} | {counts} |", flush=True)


def _disturb(search: DisturbedSearch, killed: Killed, kills: int) -> None:
    if killed == "driver":
        search.kill_driver(kills, within=50 if search.without else 25)  # later, when there are rungs to lose
        search.finish()
    elif killed == "worker":
        search.kill_workers(kills, within=6)
    else:
        with (
            tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder,
            cluster(Path(folder)) as nodes,
        ):
            search.address = nodes.address
            kill_nodes(search, nodes, kills, within=8)


if __name__ == "__main__":
    main()
