"""The long form of the fault injection: ``python -m tests.faults [--kills 20] [--seed 0]``.

It prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.harness import PROJECT, DisturbedSearch, Killed, Safeguard, cluster, compare, kill_nodes, recipe

DATA = PROJECT / "data" / "elpv"
SEARCHES = (("random", "none"), ("tpe", "asha"))
"""Searcher and scheduler of each search."""

WITHOUT: dict[Safeguard, tuple[Killed, tuple[str, str]]] = {
    "optimizer": ("worker", SEARCHES[0]),
    "rungs": ("driver", SEARCHES[1]),
}
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
        for searcher, scheduler in SEARCHES:
            for killed in given.killed:
                table.add(killed, searcher, scheduler, given.kills // len(SEARCHES))
        for safeguard in given.without:
            killed, search = WITHOUT[safeguard]
            table.add(killed, *search, 5, safeguard)


class FaultTable:
    """Disturbs searches, and prints a row for each combination."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._undisturbed: dict[tuple[str, str], DisturbedSearch] = {}
        self._has_header = False

    def add(self, killed: Killed, searcher: str, scheduler: str, kills: int, without: Safeguard | None = None) -> None:
        """Kill processes of searches this many times in all, and print one row."""
        expected = self._expected(searcher, scheduler)
        made, sessions, differences = 0, 0, Counter[str]()
        while made < kills:
            name = f"{killed}-{searcher}-{scheduler}-{without}-{self._rng.randrange(10**6)}"
            plain = recipe(DATA, self._folder, name, searcher, scheduler)
            search = DisturbedSearch(self._folder, plain, self._rng, without)
            _disturb(search, killed, min(PER_SEARCH, kills - made))
            made, sessions = made + len(search.kills), sessions + search.sessions
            differences.update(compare(expected.run, search))
        self._print(f"{searcher}, {scheduler}", killed, without, made, sessions, differences)

    def _expected(self, searcher: str, scheduler: str) -> DisturbedSearch:
        if (searcher, scheduler) not in self._undisturbed:
            plain = recipe(DATA, self._folder, f"undisturbed-{searcher}-{scheduler}", searcher, scheduler)
            search = DisturbedSearch(self._folder, plain, self._rng)
            search.finish()
            self._undisturbed[searcher, scheduler] = search
        return self._undisturbed[searcher, scheduler]

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
