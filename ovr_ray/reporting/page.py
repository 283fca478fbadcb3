"""Write ``report.html``: one file that needs no network."""

from __future__ import annotations

import base64
import gzip
import json
import sys
from datetime import UTC, datetime

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from upath import UPath

from ovr_ray.images import refuse_moved, stamps
from ovr_ray.joint import read_winners
from ovr_ray.recipe import Data
from ovr_ray.reporting.decisions import SPLIT_NAMES
from ovr_ray.reporting.evaluation import Evaluation, NotEvaluated, read_evaluation
from ovr_ray.reporting.sections import Sources
from ovr_ray.reporting.trials import score_name
from ovr_ray.runs import RunFolder, refuse_foreign, with_images
from ovr_ray.search import Ledger, read_ledger
from ovr_ray.storage import write_whole


def report(run: RunFolder, images: str | None = None) -> UPath:
    """Write ``report.html`` into a run folder, also while a search runs, and also without a joint model.

    Parameters
    ----------
    run : RunFolder
    images : str, optional
        Folder in which the run's images are now; default: where its recipe says.

    Returns
    -------
    UPath
        File of the page.

    Raises
    ------
    BadInput
        If ``images`` has none of the images, or the page would replace a file that this program did not write.
    """
    refuse_foreign({run.report: "report"})
    ledger, found = read_ledger(run), read_evaluation(run)
    data = (with_images(ledger.recipe, images) if images else ledger.recipe).data
    evaluation = found if isinstance(found, Evaluation) else None
    sources = Sources(ledger, ledger.history(), read_winners(run), run.winners(), evaluation, data)
    sections = [sources.section(task) for task in ledger.recipe.tasks]
    figures = {drawing.id: drawing.content for section in sections for drawing in section.drawings()}
    templates = Environment(
        loader=PackageLoader("ovr_ray.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template("report.html").render(
        name=ledger.recipe.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        state=_state(ledger),
        minutes=ledger.clock.seconds / 60,
        score_name=score_name(ledger),
        tasks=sections,
        evaluation=evaluation,
        note=found.value if isinstance(found, NotEvaluated) else _lacking_pictures(run, data, found, images),
        split_names=SPLIT_NAMES,
        recipe=yaml.safe_dump(ledger.recipe.dump(), sort_keys=False, allow_unicode=True),
        made_with=run.made_with(),
        figures=_packed(json.dumps(figures)),
        plotly=_packed(get_plotlyjs()),
    )
    write_whole(run.report, html)
    return run.report


def _lacking_pictures(run: RunFolder, data: Data, evaluation: Evaluation, images: str | None) -> str:
    """Return, and print, why the page shows no image; "" if it can show some."""
    names = evaluation.predictions.filename.tolist()
    if images:
        refuse_moved(data.images, names)
    if stamps(data.images, names):
        return ""
    note = f"No picture is shown: {data.images} holds none of the images. ovr-ray report {run.path} --images DIR does."
    print(note, file=sys.stderr)
    return note


def _state(ledger: Ledger) -> str:
    if ledger.clock.is_alive:
        return "running"
    return "complete" if ledger.complete() else "not complete"


def _packed(text: str) -> str:
    """Return a text as the page's script unpacks it: Plotly takes 2.0 MB instead of 4.8, and the figures a fifth."""
    return base64.b64encode(gzip.compress(text.encode())).decode()
