"""Prompts that are ChatML are shown as the chats that they are; whatever only looks like it stays one text."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.schema.job import Job
from models.settings import read_settings
from producer.results.report.command import PageOptions, write_report
from producer.results.selection import Selection
from tests.browser.conftest import Browser
from tests.support.table_rows import RUN_ID, insert_run

START, END = "<|im_start|>", "<|im_end|>"

#: A prompt -> the role and the text of each bubble, or None where it is one text.
PROMPTS: dict[str, list[list[str]] | None] = {
    f"{START}system\nBe brief.{END}\n{START}user\nHi <b>you</b>{END}\n{START}assistant\n": [
        ["system", "Be brief."],
        ["user", "Hi <b>you</b>"],
    ],
    f"{START}user\nOne\ntwo{END}\n{START}assistant\nIt is": [["user", "One\ntwo"], ["assistant", "It is"]],
    f"{START}robot\nHi{END}": [["robot", "Hi"]],
    f"{START}user\nHi{END}\nand a tail": None,
    f"before {START}user\nHi{END}\n": None,
    f"{START}user\nHi{START}assistant\n": None,
    f"{START}assistant\n": None,
    f"{START}user Hi{END}": None,
    "user\nHi": None,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    url = f"sqlite:///{folder / 'nocturne.db'}"
    database = open_database(url)
    upgrade(database)
    job_ids = insert_run(database, len(PROMPTS))
    with database.begin() as connection:
        for job_id, prompt in zip(job_ids, PROMPTS, strict=True):
            connection.execute(update(Job).where(Job.id == job_id).values(prompt=prompt))
    database.dispose()
    options = PageOptions(Selection(), None, "auto")
    write_report(read_settings(database=url), RUN_ID, folder / "chats.html", options, as_superuser=False)
    return folder / "chats.html"


def test_chatml_is_a_chat(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.show_answers()
    found = []
    for number in range(len(PROMPTS)):
        shown = f"document.querySelectorAll('.prompt')[{number}]"
        browser.run(f"{shown}.scrollIntoView({{behavior: 'instant'}})")
        browser.wait_for(f"return {shown}.classList.contains('ready')")
        bubbles = "[...each.querySelectorAll('.bubble')]"
        texts = "['.role', '.text'].map((part) => bubble.querySelector(part).textContent)"
        found.append(browser.run(f"const each = {shown}; return {bubbles}.map((bubble) => {texts})") or None)
    assert found == list(PROMPTS.values())
    assert browser.complaints() == []
