"""A real Chromium without a window, which may not speak to the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

HOW_TO_INSTALL = "apt-get update && apt-get install -y chromium chromium-driver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)

Open = Callable[..., webdriver.Chrome]


def found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is missing, and these tests are about it: {HOW_TO_INSTALL}", pytrace=False)
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Open]:
    """Opens a page in a browser of its own profile; switches are added as given."""
    opened: list[webdriver.Chrome] = []

    def open_page(path: Path, *switches: str, javascript: bool = True) -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        options.binary_location = found("chromium")
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / f'profile{len(opened)}'}", *switches):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if not javascript:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        driver = webdriver.Chrome(options, Service(found("chromedriver")))
        opened.append(driver)
        driver.get(path.as_uri())
        return driver

    yield open_page
    for driver in opened:
        driver.quit()
