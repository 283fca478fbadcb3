"""Check on a machine with a GPU what can only be read elsewhere: `python -m tests.gpu [NAME…] [--json FILE]`.

Each line is a verdict and a figure. It takes less than nine minutes; without a GPU it runs on the CPU, at sizes that
prove nothing about one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.gpu.checks import CHECKS, ON_CPU, ON_GPU, Verdict, run


def main() -> int:
    """Run the checks; return 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(CHECKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(CHECKS)):
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    scale = ON_GPU if torch.cuda.is_available() else ON_CPU
    found: dict[str, Verdict] = {}
    with tempfile.TemporaryDirectory(prefix="ovr-") as folder:
        for name in given.names or CHECKS:
            began = time.monotonic()
            found[name] = run(name, scale, Path(folder))
            print(f"{found[name].word:7} {name:12} {time.monotonic() - began:5.0f} s  {found[name].told}", flush=True)
            if given.json:  # after each, so that nothing is lost if time runs out
                plain = {known: verdict.plain() for known, verdict in found.items()}
                given.json.write_text(json.dumps({"device": scale.device, "checks": plain}, indent=1))
    return int(any(verdict.is_good is False for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main())
