"""``python -m tests.faults [--kills 20] [--seed 0]``: the long form; prints the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.harness import Hunt, Sabotage, Victim, cluster, compare, recipe, shoot_nodes

PROJECT = Path(__file__).parents[2]
SEARCHES = (("random", "none"), ("tpe", "asha"))
SABOTAGED: dict[Sabotage, tuple[Victim, tuple[str, str]]] = {
    "optimizer": ("worker", SEARCHES[0]),
    "rungs": ("driver", SEARCHES[1]),
}
"""Who is shot in which search, so that the safeguard which was taken away is missed."""
PER_SEARCH = 10
"""Kills of one search; the next ones are of a new one."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind [20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="*", default=["worker", "driver", "node"])
    parser.add_argument("--sabotages", nargs="*", default=["optimizer", "rungs"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovr-faults-") as folder:
        gallery = Gallery(Path(folder), given.seed)
        for searcher, scheduler in SEARCHES:
            for victim in given.victims:
                gallery.shoot(victim, searcher, scheduler, given.kills // len(SEARCHES))
        for sabotage in given.sabotages:
            victim, search = SABOTAGED[sabotage]
            gallery.shoot(victim, *search, 5, sabotage)


class Gallery:
    """Shoots at searches and prints a row each."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._undisturbed: dict[tuple[str, str], Hunt] = {}
        self._has_header = False

    def shoot(
        self, victim: Victim, searcher: str, scheduler: str, kills: int, sabotage: Sabotage | None = None
    ) -> None:
        """Until so many have fallen; one row."""
        expected = self._expected(searcher, scheduler)
        fallen, sessions, wrong = 0, 0, Counter[str]()
        while fallen < kills:
            name = f"{victim}-{searcher}-{scheduler}-{sabotage}-{self._rng.randrange(10**6)}"
            hunt = Hunt(self._folder, recipe(DATA, self._folder, name, searcher, scheduler), self._rng, sabotage)
            _shoot(hunt, victim, min(PER_SEARCH, kills - fallen))
            fallen, sessions = fallen + len(hunt.shots), sessions + hunt.sessions
            wrong.update(compare(expected.run, hunt))
        self._tell(f"{searcher}, {scheduler}", victim, sabotage, fallen, sessions, wrong)

    def _expected(self, searcher: str, scheduler: str) -> Hunt:
        if (searcher, scheduler) not in self._undisturbed:
            name = f"undisturbed-{searcher}-{scheduler}"
            hunt = Hunt(self._folder, recipe(DATA, self._folder, name, searcher, scheduler), self._rng)
            hunt.undisturbed()
            self._undisturbed[searcher, scheduler] = hunt
        return self._undisturbed[searcher, scheduler]

    def _tell(
        self, search: str, victim: str, sabotage: str | None, kills: int, sessions: int, wrong: Counter[str]
    ) -> None:
        if not self._has_header:
            print("| search | killed | without | kills | sessions |", " | ".join(wrong), "|")
            print("|---" * (5 + len(wrong)) + "|")
            self._has_header = True
        counts = " | ".join(map(str, wrong.values()))
        print(f"| {search} | {victim} | {sabotage or ''} | {kills} | {sessions} | {counts} |", flush=True)


def _shoot(hunt: Hunt, victim: Victim, kills: int) -> None:
    if victim == "driver":
        hunt.shoot_driver(kills, within=50 if hunt.sabotage else 25)  # later, when there are rungs to forget
        hunt.undisturbed()
    elif victim == "worker":
        hunt.shoot_workers(kills, within=6)
    else:
        with (
            tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder,
            cluster(Path(folder)) as nodes,
        ):
            hunt.address = nodes.address
            shoot_nodes(hunt, nodes, kills, within=8)


DATA = PROJECT / "data" / "elpv"

if __name__ == "__main__":
    main()
