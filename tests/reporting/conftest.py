"""A headless browser. Tests that need it are skipped where there is none; in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900")


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """Chromium, which keeps the messages of its console."""
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not (driver and binary):
        lacking = "no chromium and chromedriver here: apt-get install chromium chromium-driver"
        assert "CI" not in os.environ, lacking
        pytest.skip(lacking)
    options = ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()
