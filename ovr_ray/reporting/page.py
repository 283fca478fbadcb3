"""``report.html``: one file that holds all it needs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from upath import UPath

from ovr_ray.joint import Winner, winners
from ovr_ray.reporting import decisions, pictures, trials
from ovr_ray.results import PREDICTIONS
from ovr_ray.run_folder import RunFolder, write_whole
from ovr_ray.search import Ledger, read_ledger

REPORT = "report.html"

NOT_YET = "No joint model yet: ovr-ray combine and ovr-ray evaluate add what it decides."
OTHERS = "metrics.json is of other labels than the run's: ovr-ray evaluate without --labels, then ovr-ray report."
OUTDATED = "joint.pt has changed since it was evaluated: ovr-ray evaluate, then ovr-ray report, show what it decides."


def report(run: RunFolder) -> UPath:
    """Write ``report.html`` from what the run folder has: while a search runs, after it, with a joint model or without.

    Parameters
    ----------
    run : RunFolder

    Returns
    -------
    UPath
        The page. It needs no network.
    """
    ledger = read_ledger(run)
    evaluated = _evaluated(run)
    chosen = winners.read(run)
    figures: dict[str, Any] = {}
    history = ledger.history()
    sections = [_section(ledger, task, chosen.get(task), evaluated, history, figures) for task in ledger.recipe.tasks]
    templates = Environment(
        loader=PackageLoader("ovr_ray.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template("report.html").render(
        name=ledger.recipe.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        state="running" if ledger.clock.is_alive else "complete" if ledger.complete() else "not complete",
        minutes=ledger.clock.seconds / 60,
        metric=ledger.metric,
        tasks=sections,
        average=evaluated.metrics["average_f1"] if evaluated.metrics else None,
        note=evaluated.note,
        part=evaluated.part,
        recipe=yaml.safe_dump(ledger.recipe.dump(), sort_keys=False, allow_unicode=True),
        made_with=run.made_with(),
        figures=_in_script(figures),
        plotly=Markup(get_plotlyjs()),
    )
    file = run.file(REPORT)
    write_whole(file, html)
    return file


@dataclass(frozen=True)
class _Evaluated:
    """What ``evaluate`` found of the joint model that is there now, or why there is nothing."""

    metrics: dict[str, Any]
    predictions: pd.DataFrame
    note: str = ""

    @property
    def part(self) -> str:
        """What counts: test, or validation where there is no test part."""
        return str(self.metrics.get("part", "test"))

    def scores(self, task: str) -> dict[str, dict[str, Any]]:
        """Part -> score; empty for a task that the joint model does not answer."""
        parts = {"val": self.metrics.get("validation", {}), self.part: self.metrics.get("tasks", {})}
        return {part: scores[task] for part, scores in parts.items() if task in scores}


def _evaluated(run: RunFolder) -> _Evaluated:
    model, metrics, predictions = (run.file(name) for name in ("joint.pt", "metrics.json", PREDICTIONS))
    if not (model.exists() and metrics.exists() and predictions.exists()):
        return _Evaluated({}, pd.DataFrame(), NOT_YET)
    found = json.loads(metrics.read_text())
    if found["part"] == "all":
        return _Evaluated({}, pd.DataFrame(), OTHERS)
    if found["model_digest"] != hashlib.sha256(model.read_bytes()).hexdigest():
        return _Evaluated({}, pd.DataFrame(), OUTDATED)
    table = pd.read_csv(predictions.open(), sep=";", dtype={"filename": str, "error": str})
    return _Evaluated(found, table.fillna({"error": ""}))


def _section(
    ledger: Ledger,
    task: str,
    winner: Winner | None,
    evaluated: _Evaluated,
    history: pd.DataFrame,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """What the page tells of a task; its figures go into ``figures``, by identifiers that the section names."""
    counts = ledger.counts().loc[task]
    best = max((t for t in ledger.trials[task] if t.scores), key=lambda trial: trial.best or 0, default=None)
    trial = (
        winner.trial if winner and ledger.run.path in winner.checkpoint.parents else best.folder.name if best else None
    )
    table = trials.table(ledger, task)
    number = list(ledger.recipe.tasks).index(task)
    section: dict[str, Any] = {"id": f"task-{number}", "name": task, "counts": counts, "trial": trial}
    told = winners.told(ledger.run).get(task, {})
    section["members"], section["size"] = told.get("members", []), told.get("config", {}).get("image_size")
    section |= {"winner": winner, "varied": list(ledger.recipe.tasks[task].varied())}
    section["columns"], section["rows"] = list(table), table.astype(object).where(table.notna(), "").to_numpy().tolist()
    section["scores"] = evaluated.scores(task)
    drawn: dict[str, go.Figure | dict[str, Any]] = {}
    if best:
        own = history[history.task == task]
        named = own.assign(trial=[ledger.run.trial(task, n).name for n in own.number])
        section["images"] = _images(named[named.trial == trial].iloc[-1])
        drawn = {"epochs": trials.epochs(named), "stopping": trials.stopping(ledger, task)}
        drawn |= trials.hyperparameters(ledger, task)
    if section["scores"]:
        drawn |= _decisions(section, ledger, task, winner, evaluated.predictions)
    section["figures"] = {name: f"{section['id']}-{name}" for name in drawn}
    figures |= {f"{section['id']}-{name}": _plain(figure) for name, figure in drawn.items()}
    return section


def _images(epoch: pd.Series) -> dict[str, tuple[int, int]]:
    """Part -> positives and images, from the confusion counts of one epoch."""
    parts = {}
    for part in trials.PARTS:
        tn, fp, fn, tp = (int(epoch[f"{part}_{name}"]) for name in ("tn", "fp", "fn", "tp"))
        parts[part] = (fn + tp, tn + fp + fn + tp)
    return parts


def _decisions(
    section: dict[str, Any], ledger: Ledger, task: str, winner: Winner | None, predictions: pd.DataFrame
) -> dict[str, go.Figure]:
    scores, data = section["scores"], ledger.recipe.data
    parts = {part: decisions.answers_of(predictions, task, part) for part in scores}
    any_score = next(iter(scores.values()))
    threshold = any_score["threshold"]
    section["intervals"] = {part: decisions.with_intervals(score) for part, score in scores.items()}
    section["metrics"] = [name for name, value in any_score.items() if isinstance(value, float)]
    answers = pd.concat(parts.values())
    section["mistakes"] = {
        kind: (pictures.pictures(rows, data, winner), total)
        for kind, (rows, total) in pictures.worst(answers, threshold).items()
    }
    doubtful = pictures.contradicted(answers)
    section["doubtful"] = doubtful[["filename", "part", "truth", "probability"]].to_dict("records")
    section["doubtful_pictures"] = pictures.pictures(doubtful.head(pictures.SHOWN), data, None)
    return {
        "precision-recall": decisions.precision_recall(parts, scores),
        "threshold": decisions.threshold_f1(parts, threshold),
        "reliability": decisions.reliability(parts),
    }


def _plain(figure: go.Figure | dict[str, Any]) -> dict[str, Any]:
    """A figure without plotly's own look; the page has one of its own."""
    if isinstance(figure, dict):
        return figure
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def _in_script(figures: dict[str, Any]) -> Markup:
    """JSON that cannot end its script element, whatever the names in it."""
    return Markup(json.dumps(figures).replace("<", r"\u003c"))
