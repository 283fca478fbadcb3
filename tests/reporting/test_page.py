from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

import ovr_ray
from ovr_ray.errors import BadInput
from ovr_ray.recipe import Recipe
from ovr_ray.runs import RunFolder, metrics_beside, predictions_beside
from tests.support import copy_run


@pytest.fixture(scope="module")
def page(finished: RunFolder) -> str:
    return f"file://{ovr_ray.report(finished)}"


@pytest.fixture
def opened(browser: Chrome, page: str) -> Chrome:
    browser.get(page)
    WebDriverWait(browser, 20).until(lambda chrome: chrome.execute_script("return waiting.size + drawn.size"))
    return browser


def texts(elements: list[WebElement]) -> list[str]:
    return [element.text for element in elements]


@pytest.mark.parametrize("content", [b"", b"filename;part;error\n", b"\xff\n"])
def test_damaged_predictions_are_told(content: bytes, finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    (run.path / "predictions.csv").write_bytes(content)
    with pytest.raises(BadInput, match=r"predictions\.csv: is damaged, or not of this program: "):
        ovr_ray.report(run)


def test_every_plot_is_drawn_and_the_console_is_silent(opened: Chrome) -> None:
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    plots = opened.find_elements(By.CLASS_NAME, "plot")
    assert len(plots) == 2 * (11 + 6)
    drawn = "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
    WebDriverWait(opened, 20).until(lambda chrome: chrome.execute_script(drawn))
    assert opened.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace"), "the plots are empty"
    assert opened.get_log("browser") == []


def test_plots_wait_until_they_come_into_view(opened: Chrome) -> None:
    assert opened.execute_script("return waiting.size") > 0


def test_the_table_of_trials_sorts_both_ways(opened: Chrome) -> None:
    table = opened.find_element(By.CSS_SELECTOR, "#task-0 table.trials")
    heading = next(h for h in table.find_elements(By.TAG_NAME, "th") if h.text.startswith("lr"))
    column = int(str(heading.get_property("cellIndex"))) + 1
    orders = []
    for _ in range(2):
        heading.click()
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({column})")
        orders.append([float(text) for text in texts(cells)])
    assert orders[0] == sorted(orders[0]) == orders[1][::-1]
    assert len(set(orders[0])) > 1


def test_the_table_of_trials_filters(opened: Chrome) -> None:
    section = opened.find_element(By.ID, "task-1")
    section.find_element(By.CLASS_NAME, "filter").send_keys("INACTIVE-0001")
    rows = section.find_elements(By.CSS_SELECTOR, "table.trials tbody tr")
    assert [row.text.split()[0] for row in rows if row.is_displayed()] == ["inactive-0001"]


def test_another_trials_curves_can_be_chosen(opened: Chrome) -> None:
    select = opened.find_element(By.CSS_SELECTOR, "#task-0 select.epochs")
    opened.execute_script("arguments[0].scrollIntoView()", select)
    losses = "return document.querySelector('#task-0 .small-multiples .plot').data?.[0].y"
    before = WebDriverWait(opened, 20).until(lambda chrome: chrome.execute_script(losses))
    chosen = Select(select)
    chosen.select_by_visible_text(next(o.text for o in chosen.options if not o.is_selected()))
    WebDriverWait(opened, 20).until(lambda chrome: chrome.execute_script(losses) != before)


def test_it_fits_a_phone(opened: Chrome) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_plots_follow_the_dark_theme(opened: Chrome) -> None:
    opened.execute_script("arguments[0].scrollIntoView()", opened.find_element(By.CLASS_NAME, "plot"))
    ink = "return document.querySelector('.plot .xtitle')?.style.fill"
    light = WebDriverWait(opened, 20).until(lambda chrome: chrome.execute_script(ink))
    theme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
    try:
        WebDriverWait(opened, 20).until(lambda chrome: chrome.execute_script(ink) != light)
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_shows_the_metrics_and_needs_no_network(finished: RunFolder, page: str) -> None:
    html = Path(page.removeprefix("file://")).read_text()
    metrics = json.loads(metrics_beside(finished.joint_model).read_text())
    low, high = metrics["tasks"]["crack"]["f1_interval"]
    assert re.search(rf"{metrics['tasks']['crack']['f1']:.3f}\s*<small>\[{low:.3f}, {high:.3f}\]", html)
    assert re.search(r"32 px in (fp32|bf16), validation F1", html)
    assert not re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(?!data:)", html)


def test_plotly_is_compressed(page: str) -> None:
    assert len(get_plotlyjs()) > 4e6
    assert Path(page.removeprefix("file://")).stat().st_size < 2.5e6


def test_without_an_evaluated_joint_model_it_shows_the_search_alone(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    run.joint_model.write_bytes(run.joint_model.read_bytes() + b"another")
    assert "joint.pt has changed since it was evaluated" in ovr_ray.report(run).read_text()
    for name in ("winners.json", "metrics.json"):
        (run.path / name).unlink()
    assert "joint.pt has not been evaluated" in ovr_ray.report(run).read_text()
    run.joint_model.unlink()
    html = ovr_ray.report(run).read_text()
    assert "No joint model yet" in html
    assert "crack-0001" in html
    assert "Reliability" not in html


def test_a_name_cannot_bring_a_script_into_the_page(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path)
    file = predictions_beside(metrics_beside(run.joint_model))
    predictions = pd.read_csv(file.open(), sep=";")
    predictions["filename"] = "</script><b>bold</b>.png"
    predictions["crack_probability"] = 1 - predictions.crack  # all wrong, so that all are shown
    file.write_text(predictions.to_csv(sep=";", index=False))
    html = ovr_ray.report(run).read_text()
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in html


def test_a_search_that_has_only_begun_has_a_page(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    run = RunFolder.of(recipe)
    run.begin(recipe, "fingerprint", pd.DataFrame({"filename": [], "part": []}))
    assert ovr_ray.report(run).read_text().count("No trial has ended an epoch yet") == 2
