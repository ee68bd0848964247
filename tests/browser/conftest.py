"""A headless Chromium, and the pages of two runs whose rows say every hostile thing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.settings import read_settings
from producer.results.report.command import PageOptions, write_comparison, write_report
from producer.results.selection import Selection
from tests.browser.hostile_run import fill
from tests.support.table_rows import RUN_ID

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

HANG_SECONDS = 300

BROKEN_WORDS = r"""
const found = [], range = document.createRange();
for (const cell of document.querySelectorAll('td, th')) {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/[\p{L}\d_]{2,12}/gu)) {
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    const isPart = /[^\s]{13,}/.test(walker.currentNode.data);
    if (!isPart && new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(word[0]);
  }
}
return found;
"""

AXE = Path(__file__).with_name("axe.min.js")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and that of two runs compared."""
    folder = tmp_path_factory.mktemp("pages")
    url = f"sqlite:///{folder / 'nocturne.db'}"
    database = open_database(url)
    upgrade(database)
    fill(database)
    database.dispose()
    settings, options = read_settings(database=url), PageOptions(Selection(), 200, "auto")
    write_report(settings, RUN_ID, folder / "run.html", options, as_superuser=False)
    write_comparison(settings, (RUN_ID, "later"), folder / "two.html", options, as_superuser=False)
    return {"run": folder / "run.html", "two": folder / "two.html"}


class Browser:
    """A page in Chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, theme: str = "light", touch: bool = False) -> None:
        """Opens the page of a report, and waits until its sections are there."""
        self.visit(page.as_uri(), width=width, theme=theme, touch=touch)
        self.wait_for("return document.documentElement.dataset.ready === 'true'")

    def visit(self, address: str, *, width: int = 1280, theme: str = "light", touch: bool = False) -> None:
        """Opens an address on a screen of that width."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str) -> Any:
        """The first true value of a script."""
        deadline = time.monotonic() + HANG_SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return value

    def show_answers(self) -> None:
        """Scrolls to the answers, and waits for the first prompt's."""
        self.run("document.querySelector('#answers, #pairs').scrollIntoView({behavior: 'instant'})")
        self.wait_for("return document.querySelector('.prompt.ready') !== null")

    def broken_words(self) -> list[str]:
        """The short words in cells of tables that go on in another line."""
        return list(self.run(BROKEN_WORDS))

    def findings(self) -> list[tuple[str, ...]]:
        """The findings of axe-core that are at least moderate."""
        self.run(AXE.read_text())
        self.driver.set_script_timeout(HANG_SECONDS)
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        return [(each["id"], each["impact"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"])
                for each in found["violations"] if each["impact"] in ("moderate", "serious", "critical")]  # fmt: skip

    def complaints(self) -> list[str]:
        """The errors and warnings of the console so far."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield Browser(driver)
    driver.quit()
