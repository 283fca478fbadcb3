"""The content of the page's section about one task, as types that the template reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ovr_ray.joint import Winner
from ovr_ray.recipe import Data, Split
from ovr_ray.reporting import decisions, pictures, trials
from ovr_ray.reporting.decisions import Measure
from ovr_ray.reporting.evaluation import Evaluation
from ovr_ray.reporting.hyperparameters import hyperparameters
from ovr_ray.reporting.pictures import Answer, Mistake, Picture
from ovr_ray.reporting.trials import TrialTable
from ovr_ray.runs import TaskScore, WinnerRecord
from ovr_ray.search import Ledger, Trial


@dataclass(frozen=True)
class Drawing:
    """A figure that the page's script draws.

    Attributes
    ----------
    id : str
        Its key in the page's JSON.
    content : dict
        The JSON: a Plotly figure, or the curves of :func:`~ovr_ray.reporting.trials.epochs`.
    """

    id: str
    content: dict[str, Any]


@dataclass(frozen=True)
class ChosenWinner:
    """The winner of a task, and how the joint model answers the task.

    Attributes
    ----------
    winner : Winner
    members : list of str
        Names of the checkpoints that the joint model averages; empty: the winner alone.
    image_size : int
        Pixels per side of the images that the members see.
    varied : list of str
        The fields that the search varied.
    labels : dict of Split to (int, int)
        The positives and the images of the splits that every trial uses; empty before the first epoch of a trial.
    """

    winner: Winner
    members: list[str]
    image_size: int
    varied: list[str]
    labels: dict[Split, tuple[int, int]]


@dataclass(frozen=True)
class Mistakes:
    """The wrong decisions of one kind.

    Attributes
    ----------
    kind : "false positives" or "false negatives"
    total : int
    shown : list of Picture
        The most confident mistakes whose images can be read.
    """

    kind: Mistake
    total: int
    shown: list[Picture]


@dataclass(frozen=True)
class SplitDecisions:
    """The scores of a task on one split.

    Attributes
    ----------
    score : TaskScore
    measures : dict of str to Measure
        The rows of the table of metrics.
    """

    score: TaskScore
    measures: dict[str, Measure]


@dataclass(frozen=True)
class Decisions:
    """The decisions of the joint model on one task.

    Attributes
    ----------
    splits : dict of Split to SplitDecisions
        Validation first.
    mistakes : list of Mistakes
    doubtful : list of Answer
        The labels that look wrong, the most doubtful first.
    doubtful_shown : list of Picture
        The first of them, as pictures.
    precision_recall, threshold, reliability : Drawing
    """

    splits: dict[Split, SplitDecisions]
    mistakes: list[Mistakes]
    doubtful: list[Answer]
    doubtful_shown: list[Picture]
    precision_recall: Drawing
    threshold: Drawing
    reliability: Drawing

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, which all splits have."""
        return list(next(iter(self.splits.values())).measures)


@dataclass(frozen=True)
class SearchFigures:
    """The figures of a task's trials.

    Attributes
    ----------
    epochs, stopping : Drawing
    parallel, slices : Drawing or None
        None where :func:`~ovr_ray.reporting.hyperparameters.hyperparameters` gives none.
    """

    epochs: Drawing
    stopping: Drawing
    parallel: Drawing | None
    slices: Drawing | None


@dataclass(frozen=True)
class TaskSection:
    """The page's section about one task.

    Attributes
    ----------
    id : str
        Id of its HTML element.
    name : str
        The task's name.
    begun, budget : int
        Number of trials that have begun, and that the recipe asks for.
    best : str
        Name of the winner; before a joint model, of the best trial so far; empty before the first epoch.
    score : float or None
        The score by which it was chosen.
    trial : str
        Name of the trial whose curves are shown first: the winner, or else the best trial of this run.
    trials : TrialTable
    chosen : ChosenWinner or None
        None before there is a joint model, or if the winner's checkpoint was deleted.
    figures : SearchFigures or None
        None before the first epoch of a trial.
    decisions : Decisions or None
        None if the joint model was not evaluated on this task.
    """

    id: str
    name: str
    begun: int
    budget: int
    best: str
    score: float | None
    trial: str
    trials: TrialTable
    chosen: ChosenWinner | None
    figures: SearchFigures | None
    decisions: Decisions | None

    def drawings(self) -> Iterator[Drawing]:
        """Yield all figures of the section."""
        if self.figures:
            every = (self.figures.epochs, self.figures.stopping, self.figures.parallel, self.figures.slices)
            yield from (drawing for drawing in every if drawing)
        if self.decisions:
            yield from (self.decisions.precision_recall, self.decisions.threshold, self.decisions.reliability)


@dataclass(frozen=True)
class Sources:
    """What the sections of all tasks are made from.

    Attributes
    ----------
    ledger : Ledger
    history : DataFrame
        See :meth:`ovr_ray.search.Ledger.history`.
    winners : mapping of str to Winner
        By task; only those whose checkpoints still exist.
    records : mapping of str to WinnerRecord
        The content of ``winners.json``.
    evaluation : Evaluation or None
    data : Data
        Of the recipe, with the folder in which the images are now.
    """

    ledger: Ledger
    history: pd.DataFrame
    winners: Mapping[str, Winner]
    records: Mapping[str, WinnerRecord]
    evaluation: Evaluation | None
    data: Data

    def section(self, task: str) -> TaskSection:
        """Return the section about one task."""
        ledger, winner = self.ledger, self.winners.get(task)
        scored = [trial for trial in ledger.trials[task] if trial.scores]
        best = max(scored, key=lambda trial: trial.best or 0, default=None)
        # a winner that was picked by hand may lie in another run
        own = (trial for trial in scored if winner and trial.folder.path == winner.checkpoint.parent)
        shown = next(own, best)
        section = f"task-{list(ledger.recipe.tasks).index(task)}"
        epochs = self._epochs(task) if shown else pd.DataFrame()
        scores = self.evaluation.scores(task) if self.evaluation else {}
        return TaskSection(
            id=section,
            name=task,
            begun=len(ledger.trials[task]),
            budget=ledger.recipe.tasks[task].trials,
            best=winner.trial if winner else best.folder.name if best else "",
            score=winner.card.metrics[ledger.score_column] if winner else best.best if best else None,
            trial=shown.folder.name if shown else "",
            trials=trials.table(ledger, task),
            chosen=self._chosen(task, winner, shown, epochs) if winner else None,
            figures=_search_figures(ledger, task, section, epochs) if shown else None,
            decisions=self._decisions(self.evaluation, scores, task, section) if self.evaluation and scores else None,
        )

    def _epochs(self, task: str) -> pd.DataFrame:
        own = self.history[self.history.task == task]
        return own.assign(trial=[self.ledger.run.trial(task, number).name for number in own.number])

    def _chosen(self, task: str, winner: Winner, shown: Trial | None, epochs: pd.DataFrame) -> ChosenWinner:
        record = self.records[task]
        labels: dict[Split, tuple[int, int]] = {}
        if shown:
            last = epochs[epochs.trial == shown.folder.name].iloc[-1].to_dict()
            for split in trials.CURVES:
                counts = trials.confusion(last, split)
                labels[split] = (counts.fn + counts.tp, counts.tn + counts.fp + counts.fn + counts.tp)
        varied = list(self.ledger.recipe.tasks[task].varied())
        return ChosenWinner(winner, record.members, record.config["image_size"], varied, labels)

    def _decisions(
        self, evaluation: Evaluation, scores: Mapping[Split, TaskScore], task: str, section: str
    ) -> Decisions:
        data, winner = self.data, self.winners.get(task)
        answers = {split: decisions.answers_of(evaluation.predictions, task, split) for split in scores}
        threshold = next(iter(scores.values())).threshold  # it is the same on all splits
        every = pd.concat(answers.values())
        drawn = {split: rows for split, rows in answers.items() if scores[split].positives}
        doubtful = pictures.listed_answers(pictures.contradicted(every))
        return Decisions(
            splits={split: SplitDecisions(score, decisions.measures(score)) for split, score in scores.items()},
            mistakes=[
                _mistakes(kind, rows, data, winner) for kind, rows in pictures.mistakes(every, threshold).items()
            ],
            doubtful=doubtful,
            doubtful_shown=pictures.pictures(doubtful[: pictures.SHOWN], data, None),
            precision_recall=_drawing(f"{section}-precision-recall", decisions.precision_recall(drawn, scores)),
            threshold=_drawing(f"{section}-threshold", decisions.threshold_f1(drawn, threshold)),
            reliability=_drawing(f"{section}-reliability", decisions.reliability(drawn)),
        )


def _mistakes(kind: Mistake, rows: pd.DataFrame, data: Data, winner: Winner | None) -> Mistakes:
    first = pictures.listed_answers(rows.head(pictures.SHOWN))
    return Mistakes(kind, len(rows), pictures.pictures(first, data, winner))


def _search_figures(ledger: Ledger, task: str, section: str, epochs: pd.DataFrame) -> SearchFigures:
    varied = hyperparameters(ledger, task)
    return SearchFigures(
        epochs=Drawing(f"{section}-epochs", trials.epochs(epochs)),
        stopping=_drawing(f"{section}-stopping", trials.stopping(ledger, task)),
        parallel=_drawing(f"{section}-parallel", varied.parallel) if varied else None,
        slices=_drawing(f"{section}-slices", varied.slices) if varied else None,
    )


def _drawing(name: str, figure: go.Figure) -> Drawing:
    """Return a figure without Plotly's template, because the page has its own style."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return Drawing(name, plain)
