"""Write ``report.html``: one file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from upath import UPath

from ovr_ray.joint import read_winners
from ovr_ray.reporting.decisions import SPLIT_NAMES
from ovr_ray.reporting.evaluation import Evaluation, NotEvaluated, read_evaluation
from ovr_ray.reporting.sections import Drawing, Sources
from ovr_ray.reporting.trials import score_name
from ovr_ray.runs import RunFolder
from ovr_ray.search import Ledger, read_ledger
from ovr_ray.storage import write_whole


def report(run: RunFolder) -> UPath:
    """Write ``report.html`` into a run folder, also while a search runs, and also without a joint model.

    Parameters
    ----------
    run : RunFolder

    Returns
    -------
    UPath
        File of the page.
    """
    ledger, found = read_ledger(run), read_evaluation(run)
    evaluation = found if isinstance(found, Evaluation) else None
    sources = Sources(ledger, ledger.history(), read_winners(run), run.winners(), evaluation)
    sections = [sources.section(task) for task in ledger.recipe.tasks]
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
        note=found.value if isinstance(found, NotEvaluated) else "",
        split_names=SPLIT_NAMES,
        recipe=yaml.safe_dump(ledger.recipe.dump(), sort_keys=False, allow_unicode=True),
        made_with=run.made_with(),
        figures=_in_script(drawing for section in sections for drawing in section.drawings()),
        plotly=Markup(get_plotlyjs()),
    )
    write_whole(run.report, html)
    return run.report


def _state(ledger: Ledger) -> str:
    if ledger.clock.is_alive:
        return "running"
    return "complete" if ledger.complete() else "not complete"


def _in_script(drawings: Iterable[Drawing]) -> Markup:
    """Return the figures as JSON that cannot end its script element, whatever names it contains."""
    figures = {drawing.id: drawing.content for drawing in drawings}
    return Markup(json.dumps(figures).replace("<", r"\u003c"))
