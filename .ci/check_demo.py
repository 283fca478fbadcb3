"""Check the results of `make demo` in its run folder: `python .ci/check_demo.py RUN`."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch

run = Path(sys.argv[1])
records = [json.loads(file.read_text()) for file in run.glob("trials/*/trial.json")]
trials = Counter(record["task"] for record in records)
stopped = Counter(record["task"] for record in records if record["status"] == "stopped")
metrics = json.loads((run / "metrics.json").read_text())
model = torch.jit.load(run / "joint.pt")

assert len(trials) == 2, trials
assert min(trials.values()) >= 4, trials
assert stopped.total() >= 1, "ASHA stopped no trial"
for task, score in metrics["tasks"].items():
    low, _ = score["average_precision_interval"]
    assert low > score["prevalence"], f"{task}: average precision from {low:.3f}, prevalence {score['prevalence']:.3f}"
assert model(torch.zeros(3, 1, 70, 90, dtype=torch.uint8)).shape == (3, 2)
print(f"{dict(trials)} trials, {dict(stopped)} stopped early; average F1 {metrics['average_f1']:.3f}")
