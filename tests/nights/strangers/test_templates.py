"""Templates of strangers are bounded in time and memory, whatever they do, and what they did is named."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chat import ChatInputs
from models.templates.process import TemplateExceeded, TemplateFailed, TemplateProcess
from models.templates.prompts import is_plain
from producer.errors import LineProblem, UsageError
from producer.prompts.prompt_template import PromptTemplate
from producer.prompts.records import ReaderOptions, read_records
from worker.engine.request import InvalidRequest
from worker.engine.text.chat_template import ChatTemplate

#: Repeats a statement sixty times on `ns`, which keeps its values from one round to the next.
ROUNDS = "{%% set ns = namespace(s='xx', n=7) %%}{%% for i in range(60) %%}{%% set %s %%}{%% endfor %%}"

SHARED = "{% set ns = namespace(t=(1, 1)) %}{% for i in range(60) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"

#: Each would take hours or all memory; some spend them where no exception reaches.
ENDLESS = {
    "two loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a hash of shared tuples": SHARED + "{{ {ns.t: 1} }}",
    "a comparison of shared tuples": SHARED + SHARED.replace("ns", "other") + "{{ ns.t == other.t }}",
    "digits": ROUNDS % "ns.n = ns.n * ns.n" + "{{ ns.n }}",
    "loops that wait in filters": "{{ range(99999)|map('string')|map('list')|map('join', range(9999)|join)|list }}",
}
GREEDY = {
    "a product": "{{ 'x' * 10**10 }}",
    "a doubling": ROUNDS % "ns.s = ns.s ~ ns.s" + "{{ ns.s }}",
    "a list": "{{ [0] * 10**10 }}",
    "a width": "{{ '%10000000000d' % 1 }}",
    "a width in format": "{{ '{:10000000000}'.format(1) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "a method": "{{ 'x'.ljust(10**10) }}",
    "batch": "{{ [1]|batch(10**10, 'x')|list }}",
    "indent": "{{ [1]|tojson(indent=10**10) }}",
    "shared text": SHARED + "{{ ns.t }}",
    "a growing replace": ROUNDS % "ns.s = ns.s|replace('x', ns.s)" + "{{ ns.s }}",
    "a long answer": "{{ 'x' * 2**25 }}",
}
ORDINARY_FAULTS = {
    "a large range": "{{ range(10**12)|list }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a way out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an unknown name": "{{ nothing.at_all }}",
}


@pytest.fixture(scope="module")
def small() -> Iterator[TemplateProcess]:
    """A process with small bounds, so that the tests are quick."""
    process = TemplateProcess(max_seconds=0.3, max_bytes=2**26)
    yield process
    process.close()


#: Each of these starts a process anew; `make attack` tries the others too.
OFTEN = {"two loops", "a hash of shared tuples", "a product", "a doubling", "shared text", "a long answer"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN or name in ORDINARY_FAULTS else pytest.param(name, marks=pytest.mark.long)
        for name in (*ENDLESS, *GREEDY, *ORDINARY_FAULTS)
    ],
)
def test_a_template_ends_in_its_bounds(name: str, small: TemplateProcess) -> None:
    source = {**ENDLESS, **GREEDY, **ORDINARY_FAULTS}[name]
    expected = TemplateFailed if name in ORDINARY_FAULTS else TemplateExceeded
    with pytest.raises(expected):
        small.ask("prompt", source=source, row={"text": "x"})
    assert small.ask("prompt", source="{{ text * 3 }}", row={"text": "x"}) == "xxx"  # the next one is served


@pytest.mark.parametrize("name", [*ENDLESS, *GREEDY])
def test_no_hostile_template_is_taken_for_a_plain_one(name: str) -> None:
    assert not is_plain({**ENDLESS, **GREEDY}[name])


PIECES = [
    "{{ text }}", "{{ row['text']|upper }}", "{% if text %}", "{% endif %}", "{{ text|tojson|tojson }}", "x",
    "{{ text * 9 }}", "{% for c in text %}", "{% endfor %}", "{{ text|replace('a', text) }}", "{{ f() }}",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.text('a"\\', max_size=50))
def test_a_plain_template_makes_no_more_than_it_is_given(pieces: list[str], text: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        template = PromptTemplate("".join(pieces)) if is_plain("".join(pieces)) else None
    except TemplateSyntaxError:
        return
    if template is not None:
        assert len(template.render({"text": text})) <= sum(len(piece) + 6 * len(text) for piece in pieces)


def test_a_file_s_line_is_named_and_a_template_that_never_ends_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("n,prompt\n1,a\n2,b\n10,c\n3,d\n10,e\n10,f\n4,g\n")
    process = TemplateProcess(max_seconds=0.3, max_bytes=2**26)
    with patch("models.templates.process.renderer_process", process):
        records = read_records(file, ReaderOptions(template="{{ 'x' * 10 ** (n|int) }}"))
        found = [next(records) for _ in range(5)]
        assert [record.number for record in found if record.problem is not None] == [4, 6]
        assert found[0].named == {"prompt": "x" * 10}
        with pytest.raises(UsageError, match="takes more than 64 MiB of memory, in 3 lines by now; it is given up"):
            next(records)
        with pytest.raises(UsageError, match="is not a Jinja2 template"):
            PromptTemplate("{% for %}")
        with pytest.raises(UsageError, match="is not a Jinja2 template: Exceeds the limit"):
            PromptTemplate(f"{{{{ {'9' * 5_000} }}}}")
        with pytest.raises(LineProblem, match="does not go with --template: 'nothing' is undefined"):
            PromptTemplate("{{ nothing ~ 1 }}").render({})
    process.close()


class Tokenizer:
    special_tokens_map = {"eos_token": "</s>"}

    def __init__(self, template: str) -> None:
        self.chat_template = template


def test_a_hostile_chat_template_fails_its_job_alone() -> None:
    process = TemplateProcess(max_seconds=0.5, max_bytes=2**27)
    chat, noon = [{"role": "user", "content": "hello"}], datetime(2026, 1, 1, tzinfo=UTC)
    with patch("models.chat_template.renderer_process", process):
        for source, reason in ((ENDLESS["two loops"], "s of processor time"), (GREEDY["a product"], "of memory")):
            with pytest.raises(InvalidRequest, match=f"the chat template takes more than .* {reason}"):
                ChatTemplate("model", Tokenizer(source)).text(chat, ChatInputs(), noon)
        plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        assert ChatTemplate("model", Tokenizer(plain)).text(chat, ChatInputs(), noon) == "<user>hello</s>"
    process.close()


def test_a_ctrl_c_leaves_no_answer_for_the_next_request(small: TemplateProcess) -> None:
    small.ask("prompt", source="{{ 1 }}", row={})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with patch.dict(small._limits, max_seconds=600.0), pytest.raises(KeyboardInterrupt):
        timer.start()
        small.ask("prompt", source=ENDLESS["two loops"], row={})
    assert small.ask("prompt", source="{{ 2 }}", row={}) == "2"


def test_a_process_that_was_killed_while_idle_fails_no_template(small: TemplateProcess) -> None:
    """As the kernel does where memory is short."""
    small.ask("prompt", source="{{ 1 }}", row={})
    process = small._process
    assert process is not None
    process.kill()
    process.wait()
    assert small.ask("prompt", source="{{ 2 }}", row={}) == "2"


def test_a_hard_limit_of_the_address_space_stays(small: TemplateProcess) -> None:
    """Clusters set one for each job: root alone may raise it, and nobody should."""
    small.ask("prompt", source="{{ 1 }}", row={})
    process = small._process
    assert process is not None
    limits = (2**36, 2**37)
    resource.prlimit(process.pid, resource.RLIMIT_AS, limits)
    with pytest.raises(TemplateExceeded, match="of memory"):
        small.ask("prompt", source=GREEDY["a product"], row={})
    small.ask("prompt", source="{{ 1 }}", row={})
    process = small._process
    assert process is not None
    resource.prlimit(process.pid, resource.RLIMIT_AS, limits)
    assert small.ask("prompt", source="{{ 2 }}", row={}) == "2"
    assert resource.prlimit(process.pid, resource.RLIMIT_AS) == limits
