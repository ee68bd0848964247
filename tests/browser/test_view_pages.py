"""The pages of `producer view` in Chromium: widths, themes, accessibility, a run that goes on, hostile texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.schema.run import Run
from tests.browser.conftest import Browser
from tests.browser.hostile_run import HOSTILE, fill
from tests.integration.producer.view.test_view import TOKEN, Reader, serving
from tests.support.table_rows import RUN_ID

STATEMENT = "/sql?q=select+custom_id,text+from+job_results"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('view') / 'nocturne.db'}")
    upgrade(engine)
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def server(database: Engine, browser: Browser) -> Iterator[Reader]:
    with serving(database) as reader:
        browser.visit(f"http://127.0.0.1:{reader.port}/?token={TOKEN}")
        yield reader


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("path", ["/runs", f"/runs/{RUN_ID}", STATEMENT, "/runs/none"])
def test_a_page_fits_its_screen_and_is_accessible(
    browser: Browser, server: Reader, path: str, width: int, theme: str
) -> None:
    browser.visit(f"http://127.0.0.1:{server.port}{path}", width=width, theme=theme)
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.broken_words() == []
    assert browser.run("return document.title !== 'taken' && document.querySelectorAll('img').length === 0")
    assert browser.findings() == []
    is_missing = path.endswith("none")
    assert [each for each in browser.complaints() if not (is_missing and "404" in each)] == []


def test_the_page_of_a_run_follows_it_without_a_reload(browser: Browser, server: Reader, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == "later").values(num_succeeded=3))
    browser.visit(f"http://127.0.0.1:{server.port}/runs/later")
    browser.run("window.mark = 1")
    assert browser.run("return document.querySelector('.numbers dd:nth-of-type(1)') !== null")
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == "later").values(num_succeeded=24, state="finished"))
    browser.wait_for("return document.getElementById('progress').dataset.finished === 'true'")
    assert browser.run("return window.mark") == 1
    assert browser.complaints() == []


def test_a_link_keeps_the_focus_while_its_page_follows_a_run(
    browser: Browser, server: Reader, database: Engine
) -> None:
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == "later").values(num_succeeded=3, state="running"))
    browser.visit(f"http://127.0.0.1:{server.port}/runs/later")
    link = "document.querySelectorAll('#progress a')[1]"
    browser.run(f"window.before = {link}; {link}.focus()")
    browser.wait_for(f"return {link} !== window.before")
    assert browser.run(f"return document.activeElement === {link}")
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == "later").values(num_succeeded=24, state="finished"))


def test_a_prompt_is_a_page_of_the_report(browser: Browser, server: Reader) -> None:
    browser.visit(f"http://127.0.0.1:{server.port}/runs/{RUN_ID}")
    browser.run("document.querySelector('table.list tbody th a').click()")
    browser.wait_for("return document.documentElement.dataset.ready === 'true'")
    browser.show_answers()
    assert HOSTILE[:9] in browser.run("return document.querySelector('h1').textContent")
    assert browser.run("return document.querySelector('.back a').pathname") == f"/runs/{RUN_ID}"
    assert browser.complaints() == []
