"""The page of a report in Chromium: sections, tokens by mouse, keys and touch, trees, widths, themes, hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Browser
from tests.browser.hostile_run import LARGE

Pages = dict[str, Path]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("name", ["run", "two"])
def test_a_page_fits_its_screen_and_is_accessible(
    browser: Browser, pages: Pages, name: str, width: int, theme: str
) -> None:
    browser.open(pages[name], width=width, theme=theme)
    browser.show_answers()
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.broken_words() == []
    assert browser.findings() == []
    assert browser.complaints() == []


def test_every_section_is_there_in_its_order(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    sections = browser.run("return [...document.querySelectorAll('main > section')].map((each) => each.id)")
    assert sections == ["failures", "settings", "plots", "matrix", "answers"]
    numbers = browser.run("return [...document.querySelectorAll('.numbers dt')].map((each) => each.textContent)")
    assert numbers == ["jobs", "succeeded", "tokens", "tokens/s", "duration"]
    command = browser.run("return document.querySelector('.command code').textContent")
    assert command.startswith("producer retry ") and "--error-code EngineDied" in command
    browser.run("document.querySelector('#plots').scrollIntoView({behavior: 'instant'})")
    browser.wait_for("return document.querySelectorAll('#plots svg[role=img]').length >= 7")
    titles = browser.run("return [...document.querySelectorAll('.plot strong')].map((each) => each.textContent)")
    assert titles == [
        "Distinct answers", "Mean logprob", "Valid JSON", "Answer lengths",
        "How answers ended", "Tokens of rank 1", "Entropy by position", "The night",
    ]  # fmt: skip
    assert browser.complaints() == []


def test_hostile_texts_stay_texts(browser: Browser, pages: Pages) -> None:
    for name, page in pages.items():
        browser.open(page)
        browser.show_answers()
        assert "taken" not in page.read_text().split("<style>")[0].replace("&quot;taken&quot;", "")
        assert browser.run("return document.querySelectorAll('main img, main script, main iframe').length") == 0
        shown = browser.run("return document.querySelector('.prompt.ready').textContent")
        assert "<img src=x onerror=" in shown and "\u241b[2J" in shown and "&amp;" in shown, name
        assert "\x1b" not in shown and "\u202e" not in shown and "\u27e8U+202E\u27e9" in shown
        assert not browser.run("return /[\x1b\u202e]/.exec(document.documentElement.outerHTML)"), name
        assert browser.run("return document.title").startswith(("night", "later"))
        assert browser.complaints() == []


def popover(browser: Browser) -> str:
    return str(browser.run("const p = document.getElementById('popover'); return p.hidden ? '' : p.textContent"))


def dispatch_mouse(browser: Browser, kind: str, place: dict[str, float], **more: Any) -> None:
    browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place, **more})


#: The middle of the sixth token of the first answer.
PLACE = """
const token = document.querySelectorAll('.tokens')[0].children[5];
token.scrollIntoView({block: 'center', behavior: 'instant'});
const box = [...token.getClientRects()].sort((a, b) => b.width - a.width)[0];
return {x: box.left + box.width / 2, y: box.top + box.height / 2};
"""


#: Whether the popover is shown, directly above or below its token.
IS_AT_ITS_TOKEN = """
const popover = document.getElementById('popover'), box = popover.getBoundingClientRect();
const token = document.querySelector('[aria-describedby=popover]').getClientRects()[0];
return !popover.hidden && Math.min(Math.abs(box.top - token.bottom), Math.abs(token.top - box.bottom)) < 8;
"""


def test_the_popover_goes_with_its_token_and_out_of_view(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    browser.show_answers()
    browser.run("document.querySelector('.tokens [tabindex=\"0\"]').focus()")
    browser.run("scrollBy({top: 60, behavior: 'instant'})")
    browser.wait_for(IS_AT_ITS_TOKEN)
    browser.run("scrollTo({top: 0, behavior: 'instant'})")
    browser.wait_for("return document.getElementById('popover').hidden")


def test_the_popover_opens_by_mouse(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    browser.show_answers()
    place = browser.run(PLACE)
    dispatch_mouse(browser, "mouseMoved", place)
    browser.wait_for("return !document.getElementById('popover').hidden")
    told = popover(browser)
    assert "probability0.055 %" in told and "rank90" in told and "entropy3.50 nats" in told and "kept200 tokens" in told
    assert "<img\u2423src=x" in told and "90.5 %" in told  # an alternative, with its bar
    dispatch_mouse(browser, "mouseMoved", {"x": 2, "y": 2})
    browser.wait_for("return document.getElementById('popover').hidden")


def test_the_popover_opens_by_keys(browser: Browser, pages: Pages) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(pages["run"])
    browser.show_answers()
    browser.run("document.querySelector('.tokens [tabindex=\"0\"]').focus()")
    assert "> 99.9 %" in popover(browser)  # 0.9999, and never "-0.000"
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert "probability81.9 %" in popover(browser)
    browser.driver.switch_to.active_element.send_keys("u")
    assert "rank4" in popover(browser)  # the next token that was less likely than not
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert popover(browser) == ""


def test_the_popover_opens_by_touch(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"], width=390, touch=True)
    browser.show_answers()
    place = browser.run(PLACE)
    for kind, points in (("touchStart", [place]), ("touchEnd", [])):
        browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    browser.wait_for("return !document.getElementById('popover').hidden")
    assert "rank90" in popover(browser)
    box = browser.run("const b = document.getElementById('popover').getBoundingClientRect(); return [b.left, b.right]")
    assert 0 <= box[0] < box[1] <= 390


def test_trees_fork_where_sequences_part(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    browser.show_answers()
    browser.run("document.querySelector('.beams').open = true; document.querySelector('.tree-toggle').click()")
    leaves = browser.run(
        "return [...document.querySelectorAll('.beams')[0].querySelectorAll('.leaf')].map(e => e.textContent)"
    )
    assert len(leaves) == 4 and all("score -" in leaf for leaf in leaves)
    assert "4 ways from position 6" in browser.run("return document.querySelector('.beams .fork').textContent")
    assert browser.run("return document.querySelectorAll('.prompt .tree .leaf').length") >= 6


def test_equal_answers_are_one_card_and_others_are_compared(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    browser.show_answers()
    cards = browser.run(
        "return [...document.querySelectorAll('.prompt')[0].querySelectorAll('.card strong')].map(e => e.textContent)"
    )
    assert cards == ["3 of 6", "3 of 6"]
    browser.run("document.querySelector('.base-button').click()")
    assert browser.run("return document.querySelectorAll('.prompt')[0].querySelectorAll('.departure').length") == 1
    browser.run("document.querySelectorAll('.prompt')[0].querySelectorAll('.card footer button')[2].click()")
    assert (
        browser.run("return document.querySelector('dialog[open] h3').textContent")
        == "Answers B and A part at position 5"
    )
    assert browser.run("return document.querySelectorAll('dialog .departs').length") == 2


def test_whole_numbers_are_shown_to_the_last_digit(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    browser.show_answers()
    about = browser.run("return document.querySelector('.prompt .metadata dl').textContent")
    assert f"seed{LARGE}" in about and f'"number":"{LARGE}"' in about
    assert browser.complaints() == []


def test_prompts_are_searched_and_filtered(browser: Browser, pages: Pages) -> None:
    browser.open(pages["run"])
    search = browser.run("return document.querySelector('input[type=search]')")
    search.send_keys("Return JSON 2")
    browser.wait_for("return document.querySelector('#answers [role=status]').textContent.startsWith('Showing 1 of 4')")
    search.clear()
    browser.wait_for("return document.querySelector('#answers [role=status]').textContent.startsWith('Showing 4 of 4')")
    browser.run("""
        const facet = document.querySelector('[data-name=topic] select');
        facet.value = '"cats"';
        facet.dispatchEvent(new Event('change', {bubbles: true}));
    """)
    browser.wait_for("return document.querySelector('#answers [role=status]').textContent.startsWith('Showing 1 of 4')")
    assert browser.run("return document.querySelectorAll('[data-name=topic] b').length") == 0
    browser.run("document.querySelector('.matrix tbody tr:nth-child(3) button').click()")  # to one that is filtered out
    browser.wait_for("return document.querySelector('#answers [role=status]').textContent.startsWith('Showing 4 of 4')")
    assert browser.run("return document.querySelector('[data-name=topic] select').value") == ""
    browser.run("""
        const facet = document.querySelector('[data-name="user.age"] select');
        facet.value = '1';
        facet.dispatchEvent(new Event('change', {bubbles: true}));
    """)
    browser.wait_for("return document.querySelector('#answers [role=status]').textContent.startsWith('Showing 3 of 4')")


def test_two_runs_side_by_side(browser: Browser, pages: Pages) -> None:
    browser.open(pages["two"])
    browser.show_answers()
    sections = browser.run("return [...document.querySelectorAll('main > section')].map((each) => each.id)")
    assert sections == ["runs", "changes", "pairs"]
    first = "document.querySelector('.prompt.ready')"
    assert browser.run(f"return {first}.querySelectorAll('.pair > div').length") == 2
    assert browser.run(f"return {first}.querySelectorAll('.departure').length") == 1
    assert browser.complaints() == []
