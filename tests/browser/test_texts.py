"""Texts in Chromium: the invisible is shown, differences are whole and readable; one prompt's figures, long answers."""

from __future__ import annotations

import math
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.result import Result
from models.schema.trace import TokenTrace
from models.settings import read_settings
from models.states import FinishReason
from producer.results.page_text import page_text
from producer.results.report.command import PageOptions, write_comparison, write_report
from producer.results.selection import Selection
from tests.browser.conftest import Browser
from tests.browser.test_report_page import IS_AT_ITS_TOKEN
from tests.support.table_rows import RUN_ID, insert_run
from tests.unit.producer.results.test_page_text import HALVES, SHOWN
from worker.engine.request import Completion, RequestOutput, Trace
from worker.storage.job_store import FinishedJob, JobStore

#: Every character that may be invisible, each behind and before a letter of ASCII and one of Hebrew.
CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Mn")]
PROMPTS = [*SHOWN, "".join(f"a{each}b{each}א{each}ב" for each in CHARACTERS if each != "\0")]

WORDS = "the cat sat on a mat and then it went to sleep under an old tree".split()
LONG_ANSWER = 400


def answer(database: Engine, job_ids: list[int], texts: list[str]) -> None:
    store = JobStore(database, "worker", 30.0)
    for claim, text in zip(store.claim(job_ids), texts, strict=True):
        tokens = text.split()
        count = len(tokens)
        numbers = [-1.0] * count
        trace = Trace(tokens, numbers, numbers, [0.5] * count, [1] * count, [1] * count)
        done = Completion(0, tuple(range(count)), text, FinishReason.EOS, -1.0 * count, trace=trace)
        store.commit([FinishedJob(claim, RequestOutput(claim.job_id, 1, (done,), (), decode_seconds=0.1))])


def changed(text: str, luck: random.Random) -> str:
    words = text.split(" ")
    for _ in range(luck.randrange(6)):
        place = luck.randrange(len(words))
        words[place : place + luck.randrange(4)] = luck.choices([*WORDS, "\n", ""], k=luck.randrange(4))
        words = words or ["all"]
    return " ".join(words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    url = f"sqlite:///{folder / 'nocturne.db'}"
    database = open_database(url)
    upgrade(database)
    job_ids = insert_run(database, len(PROMPTS))
    with database.begin() as connection:
        for job_id, prompt in zip(job_ids, PROMPTS, strict=True):
            connection.execute(update(Job).where(Job.id == job_id).values(prompt=prompt.replace("\0", "")))
    ids = insert_run(database, 3, run_id="figures", prompt="one")
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == ids[2]).values(prompt="two"))
        connection.execute(update(Job).where(Job.run_id == "figures").values(metadata_={half: half for half in HALVES}))
    answer(database, ids, ["", "word " * LONG_ANSWER, "another"])
    mixed = insert_run(database, 2, run_id="mixed", prompt="one")
    answer(database, mixed, ["the cat sat", "the cat ran"])
    with database.begin() as connection:
        of_second = select(Result.id).where(Result.job_id == mixed[1]).scalar_subquery()
        connection.execute(delete(TokenTrace).where(TokenTrace.result_id == of_second))
        connection.execute(update(TokenTrace).where(TokenTrace.result_id != of_second).values(entropy=math.inf))
    both: list[dict[str, Any]] = [
        {"strategy": "sample"},
        {"strategy": "nucleus", "top_p": 1.0},
        {"strategy": "nucleus", "top_p": 0.5},
    ]
    grid = insert_run(database, 2 * len(both), run_id="grid", prompt="one")
    with database.begin() as connection:
        for number, job_id in enumerate(grid):
            params = GenerationParams.model_validate({**both[number // 2], "temperature": 0.5 + number % 2}).stored
            values = {"params": params, "strategy": params["strategy"], "grid_point": {"temperature": 0.5 + number % 2}}
            connection.execute(update(Job).where(Job.id == job_id).values(values))
    answer(database, grid, ["one", "two", "three", "four", "five", "six"])
    luck = random.Random(1)
    before = [" ".join(luck.choices(WORDS, k=luck.randrange(1, 40))) for _ in range(40)]
    for run_id, texts in (("a", before), ("b", [changed(text, luck) for text in before])):
        answer(database, insert_run(database, len(texts), run_id=run_id), texts)
    database.dispose()
    settings, options = read_settings(database=url), PageOptions(Selection(), None, "auto")
    pages = {run_id: folder / f"{run_id}.html" for run_id in (RUN_ID, "figures", "mixed", "grid")}
    for run_id, page in pages.items():
        write_report(settings, run_id, page, options, as_superuser=False)
    write_comparison(settings, ("a", "b"), folder / "two.html", options, as_superuser=False)
    return {"two": folder / "two.html", **pages}


def test_every_character_of_a_text_is_seen(browser: Browser, made: dict[str, Path]) -> None:
    browser.open(made[RUN_ID])
    found = []
    for number in range(len(PROMPTS)):
        shown = f"document.querySelectorAll('.prompt')[{number}]"
        browser.run(f"{shown}.scrollIntoView({{behavior: 'instant'}})")
        browser.wait_for(f"return {shown}.classList.contains('ready')")
        found.append(browser.run(f"return {shown}.querySelector('.ask').textContent"))
    assert found == [page_text(prompt.replace("\0", "")) for prompt in PROMPTS]


def test_a_difference_has_both_texts_and_no_crumbs(browser: Browser, made: dict[str, Path]) -> None:
    browser.open(made["two"])
    browser.show_answers()
    browser.wait_for("""
        document.querySelector('.sentinel').scrollIntoView();
        const unready = [...document.querySelectorAll('.prompt:not(.ready)')];
        unready.forEach((each) => each.scrollIntoView());
        return !unready.length;
    """)
    found = browser.run("""
        return [...document.querySelectorAll('.pair')].filter((pair) => pair.querySelector('.diff')).map((pair) => [
          pair.children[0].querySelector('.text').textContent,
          [...pair.querySelectorAll('.diff > :not(.departure)')].map((part) => [part.tagName, part.textContent])]);
    """)
    assert len(found) > 15
    for before, parts in found:
        assert "".join(text for tag, text in parts if tag != "INS") == before
        kinds = [tag for tag, _ in parts]
        assert all(pair not in (("INS", "DEL"), ("INS", "INS")) for pair in zip(kinds, kinds[1:], strict=False))
        for number in range(1, len(parts) - 1):
            tag, text = parts[number]
            if tag == "SPAN":  # between two changes it is longer than one of them
                around = [len(parts[number - 1][1]), len(parts[number + 1][1])]
                assert len(text) > min(around), parts


#: Opens the first answer of a prompt beside another one, and focuses its first token.
OPEN_DIALOG = """
[...document.querySelectorAll('.card footer button')].find((each) => each.textContent === 'Side by side').click();
document.querySelector('dialog .token').focus({preventScroll: true});
"""


def test_the_popover_goes_with_its_token_in_a_dialog(browser: Browser, made: dict[str, Path]) -> None:
    browser.open(made["figures"], width=390)
    browser.show_answers()
    browser.run(OPEN_DIALOG)
    assert browser.run("const box = document.querySelector('dialog'); return box.scrollHeight > box.clientHeight + 200")
    browser.run("document.querySelector('dialog').scrollTop = 40")
    browser.wait_for(IS_AT_ITS_TOKEN)
    browser.run("document.querySelector('dialog').scrollTop = 10000")  # the token leaves the dialog, not the screen
    browser.wait_for("return document.getElementById('popover').hidden")
    assert browser.complaints() == []


def test_answers_with_and_without_tokens_part_at_a_word(browser: Browser, made: dict[str, Path]) -> None:
    browser.open(made["mixed"])
    browser.show_answers()
    browser.run(OPEN_DIALOG)
    assert browser.run("return document.querySelector('dialog h3').textContent") == "Answers B and A part at word 2"
    assert browser.run("return document.querySelectorAll('dialog .departs').length") == 0
    assert "entropy\N{EN DASH}" in browser.run("return document.getElementById('popover').textContent")
    assert browser.complaints() == []


def test_no_two_settings_share_a_cell_of_a_heat_map(browser: Browser, made: dict[str, Path]) -> None:
    """Sampling without a cut, and nucleus sampling with a top-p of 1, are the same."""
    browser.open(made["grid"])
    browser.run("document.querySelector('#plots').scrollIntoView({behavior: 'instant'})")
    browser.wait_for("return document.querySelector('.plot svg[role=img]') !== null")
    first = "document.querySelector('.plot')"
    assert browser.run(f"return {first}.querySelector('figcaption').textContent").endswith("and top-p, nucleus.")
    assert browser.run(f"return {first}.querySelectorAll('svg rect').length") == 4
    assert browser.complaints() == []


def test_figures_of_one_prompt_and_a_long_answer(browser: Browser, made: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(made["figures"])
    browser.run("""
        const choice = document.querySelector('.choice select');
        choice.value = '0';
        choice.dispatchEvent(new Event('change', {bubbles: true}));
    """)
    browser.wait_for("return document.querySelector('.figures tbody').textContent.includes('200.0')")  # mean tokens
    heads = browser.run(
        "return [...document.querySelectorAll('.figures th[scope=col]')].map((each) => each.textContent)"
    )
    cells = browser.run(
        "return [...document.querySelectorAll('.figures tbody tr > *')].map((each) => each.textContent)"
    )
    assert dict(zip(heads, cells, strict=True))["logprob / token"] == "-1.000"  # an answer without tokens has none
    browser.show_answers()
    about = browser.run("return document.querySelector('.prompt .metadata dl').textContent")
    assert about.endswith("".join(2 * shown for shown in HALVES.values()))
    browser.run("document.querySelectorAll('.prompt .tokens')[0].firstChild.focus()")
    assert browser.run("return document.activeElement.closest('.clamp').classList.contains('open')") is False
    browser.driver.switch_to.active_element.send_keys(Keys.END)
    browser.wait_for("""
        const token = document.activeElement, {bottom} = token.getBoundingClientRect();
        return bottom <= token.closest('.clamp').getBoundingClientRect().bottom && bottom > 0 && bottom < innerHeight;
    """)  # the part that was cut is unfolded for it
    assert browser.complaints() == []
