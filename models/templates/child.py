"""The process that renders templates: requests as JSON lines on standard input, answers on standard output.

A template can keep C code busy that no exception reaches (hashing `(t, t)` sixty levels deep), and ask for memory in a
hundred ways. So the kernel holds the bounds: a timer of processor time ends this process, a limit of its address space
refuses memory. Imports no Transformers by itself: a request names the renderer's module.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from typing import Any

from models.chat import ChatInputs
from models.chat_template import rendered

MAX_CHARACTERS = 2**24  # of a rendering: as many as a line of a prompt file may have


def main() -> None:
    """Answers until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write among the answers
    for line in sys.stdin.buffer:
        request = json.loads(line)
        render = KINDS[request["kind"]]
        if (renderer := request.get("renderer")) is not None:
            request["renderer"] = import_module(renderer)  # outside of the bounds: it takes longer than a template
        answers.write(json.dumps(_bounded(render, request)).encode() + b"\n")
        answers.flush()


def _bounded(render: Callable[[dict[str, Any]], Any], request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request: its value or its error, within the request's seconds and bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)  # a cluster's job may have a hard limit, which nobody may raise
    most = min((each for each in before if each != resource.RLIM_INFINITY), default=sys.maxsize)
    resource.setrlimit(resource.RLIMIT_AS, (min(most, _address_space() + request["max_bytes"]), before[1]))
    signal.setitimer(signal.ITIMER_PROF, request["max_seconds"])  # whose signal ends the process
    try:
        value = render(request)
        return {"is_too_long": True} if len(value) > MAX_CHARACTERS else {"value": value}
    except MemoryError:
        return {"is_out_of_memory": True}
    except Exception as error:  # a template may raise anything
        return {"error": type(error).__name__, "message": _text(error), "line": getattr(error, "lineno", None)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _text(error: Exception) -> str:
    try:
        return str(error)[:2_000]
    except Exception:  # of a class that a template's value has
        return ""


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _chat(request: dict[str, Any]) -> str:
    return rendered(
        request["renderer"],
        request["template"],
        request["messages"],
        ChatInputs.model_validate(request["inputs"]),
        clock=datetime.fromisoformat(request["clock"]),
        special_tokens=request["special_tokens"],
        is_continued=request["is_continued"],
        is_closed=request["is_closed"],
    )


def _prompt(request: dict[str, Any]) -> str:
    from models.templates.prompts import compiled

    return str(compiled(request["source"]).render({**request.get("cells", request["row"]), "row": request["row"]}))


def _names(request: dict[str, Any]) -> list[str]:
    from models.templates.prompts import compiled, undeclared_names

    compiled(request["source"])
    return sorted(undeclared_names(request["source"]))


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {"chat": _chat, "prompt": _prompt, "names": _names}


if __name__ == "__main__":
    main()
