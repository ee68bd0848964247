"""Fields of other tools: taken under our name, accepted where they ask for nothing, or refused by name.

`foreign_names` lists the tools. In a table such a name is more often a column of data, so there it is warned about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from producer.errors import LineProblem
from producer.prompts.foreign_names import DATA, EMPTY, MISSPELLED, OBJECTS, REFUSED, RENAMED, UNSEEN, WITHOUT_EFFECT
from producer.prompts.readers.record import OWN_FIELDS, PARAMETER_FIELDS

OUR_FIELDS = PARAMETER_FIELDS | OWN_FIELDS

#: Parameters of drawing, which Transformers reads with `do_sample` alone, and the values that turn each off there.
NOT_DRAWING: dict[str, tuple[int, ...]] = {"temperature": (), "top_p": (), "top_k": (0,), "min_p": (0,)}

#: Parameters whose names are hardly ever data.
TELLTALES = frozenset({
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_new_tokens", "max_completion_tokens",
    "max_output_tokens", "n_predict", "num_predict", "do_sample", "num_beams", "repetition_penalty", "stop_sequences",
    "frequency_penalty", "presence_penalty", "max_gen_toks", "max_tokens_to_sample", "max_token_count",
})  # fmt: skip

HATCH = "leave it out, or name it in --metadata-columns if it is data of yours"


def native_fields(fields: dict[str, Any], data: Collection[str] = (), place: str = "") -> dict[str, Any]:
    """The fields with other tools' names replaced by ours; those in `data` stay. Raises `LineProblem`.

    `place` is the path of the fields for messages, `body.` for an OpenAI line.
    """
    foreign = {name: value for name, value in fields.items() if name in _FOREIGN and name not in data}
    nulls = {name for name, value in fields.items() if value is None and name in OUR_FIELDS}
    if not foreign and not nulls:
        return fields
    native = {name: value for name, value in fields.items() if name not in foreign and name not in nulls}
    for name, value in foreign.items():
        if value in EMPTY or name == "do_sample":
            continue
        if name in WITHOUT_EFFECT or _is_data(name, value):
            native[name] = value
        else:
            _take(native, name, value, place)
    _resolve_do_sample(native, foreign.get("do_sample"), place)
    return native


def remark(name: str, value: Any) -> str | None:
    """The warning about a field that is kept as metadata, without its name; None for an ordinary one."""
    if (meant := _meant(name)) is None:
        return _remark_of_object(name, value)
    if (value := _read(value)) in EMPTY or _is_data(meant, value):
        return None
    if meant in UNSEEN:
        return f"is kept as metadata, and the model does not see it: {UNSEEN[meant]}"
    if meant in REFUSED:
        rejection = REFUSED[meant]
        return None if value in rejection.neutral else f"is kept as metadata and changes nothing: it {rejection.advice}"
    return f"is kept as metadata; did you mean {_ours(meant)}?"


def _remark_of_object(name: str, value: Any) -> str | None:
    """The warning about an object of another name than tools have, with parameters in it."""
    if name in WITHOUT_EFFECT or not isinstance(value, dict):
        return None
    if found := [inner for inner in value if _snake(inner) in TELLTALES]:
        return f"is kept as metadata and changes nothing: write its {found[0]} into the line itself, under our name"
    return None


def _is_data(name: str, value: Any) -> bool:
    """Whether the tool's parameter cannot have such a value, so that the field is the submitter's own."""
    if name in OBJECTS and isinstance(value, dict):
        return _FOREIGN.isdisjoint(value) and OUR_FIELDS.isdisjoint(value)
    return isinstance(value, DATA.get(name, ()))


def _read(value: Any) -> Any:
    """A table's cell as the value that it spells."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.strip().lower())
    except (ValueError, RecursionError):
        return value


@lru_cache(maxsize=1024)
def _meant(name: str) -> str | None:
    """The name as its tool spells it, or None for one that belongs to no tool."""
    if name in OUR_FIELDS or name in WITHOUT_EFFECT:
        return None
    meant = name if name in _FOREIGN or name in MISSPELLED else _snake(name)
    return meant if meant in UNSEEN or meant in REFUSED or _ours(meant) is not None else None


def _ours(name: str) -> str | None:
    """Our name of a parameter that is spelled otherwise."""
    if name in OUR_FIELDS:
        return name
    if name in _MEANINGS:
        return _MEANINGS[name]
    matches = get_close_matches(name, OUR_FIELDS, n=1, cutoff=0.8) or get_close_matches(
        name, _MEANINGS, n=1, cutoff=0.9
    )
    return _MEANINGS.get(matches[0], matches[0]) if matches else None


def _snake(name: str) -> str:
    """max_tokens for maxTokens, MaxTokens, max-tokens and "Max Tokens"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[- ]+", "_", name.strip()).lower()


def _take(native: dict[str, Any], name: str, value: Any, place: str) -> None:
    """Adds the field under our name, if that is not nothing. Raises `LineProblem`."""
    if name in RENAMED:
        _set(native, RENAMED[name], value, name, place)
    elif name in _SPECIAL:
        _SPECIAL[name](native, value, place)
    elif name in UNSEEN:
        if place:
            raise LineProblem(place + name, f"is not supported: {UNSEEN[name]}")
        native[name] = value
    elif value not in REFUSED[name].neutral:
        raise _rejection(name, value, place)


def _rejection(name: str, value: Any, place: str, advice: str | None = None) -> LineProblem:
    advice = REFUSED[name].advice if advice is None else advice
    way_out = "leave it out" if place else HATCH
    return LineProblem(place + name, f"({value!r:.60}) {advice}; {way_out}")


def _set(native: dict[str, Any], ours: str, value: Any, name: str, place: str) -> None:
    if ours in native and native[ours] != value:
        raise LineProblem(place + name, f"means {ours}, and they differ ({value!r:.60} and {native[ours]!r:.60})")
    native[ours] = value


def _max_tokens(native: dict[str, Any], name: str, value: Any, place: str) -> None:
    if value in (-1, -2):
        raise _rejection(name, value, place, "sets no limit, and there must be one: give max_new_tokens")
    _set(native, "max_new_tokens", value, name, place)


def _num_return_sequences(native: dict[str, Any], value: Any, place: str) -> None:
    ours = "num_return" if native.get("strategy") == "beam" or native.get("num_beams", 1) != 1 else "n"
    if value != 1 or ours in native:
        _set(native, ours, value, "num_return_sequences", place)


def _eos_token_id(native: dict[str, Any], value: Any, place: str) -> None:
    _set(native, "eos_token_ids", value if isinstance(value, list) else [value], "eos_token_id", place)


def _logprobs(native: dict[str, Any], value: Any, place: str) -> None:
    """vLLM's number of alternatives."""
    _set(native, "top_logprobs", value, "logprobs", place)


def _best_of(native: dict[str, Any], value: Any, place: str) -> None:
    if value not in (1, native.get("n")):
        raise _rejection(
            "best_of", value, place, "would choose among answers; give n, and choose by cumulative_logprob"
        )


def _enable_thinking(native: dict[str, Any], value: Any, place: str) -> None:
    """An argument of chat templates, which vLLM's clients write beside the others too."""
    arguments = native.get("chat_template_kwargs") or {}
    if isinstance(arguments, dict):
        if arguments.get("enable_thinking", value) != value:
            raise LineProblem(f"{place}enable_thinking", "is in chat_template_kwargs too, with another value")
        native["chat_template_kwargs"] = {**arguments, "enable_thinking": value}


def _early_stopping(native: dict[str, Any], value: Any, place: str) -> None:
    is_beam = native.get("strategy") == "beam" or native.get("num_beams", 1) != 1
    if is_beam and value is not True:
        raise _rejection("early_stopping", value, place, "must be true: beam search always stops early")


def _add_special_tokens(native: dict[str, Any], value: Any, place: str) -> None:
    if value is not ("messages" not in native):
        advice = "must be true for prompts and false for chats, whose template writes its own special tokens"
        raise _rejection("add_special_tokens", value, place, advice)


def _resolve_do_sample(native: dict[str, Any], do_sample: Any, place: str) -> None:
    """Sets the strategy that Transformers chooses by `do_sample` and `num_beams`. Raises `LineProblem`."""
    if do_sample is None:
        return
    if not isinstance(do_sample, bool):
        raise LineProblem(f"{place}do_sample", f"must be true or false, got {do_sample!r:.60}")
    takers = ("sample", "nucleus") if do_sample else ("greedy", "beam")
    if native.get("num_beams") == 1 and native.get("strategy") != "beam":
        del native["num_beams"]
    drawn = "beam" if "num_beams" in native else "greedy"
    strategy = native.setdefault("strategy", "sample" if do_sample else drawn)
    if strategy not in takers:
        raise LineProblem(f"{place}do_sample", f"({do_sample}) does not go with strategy {strategy!r:.60}")
    for name, neutral in NOT_DRAWING.items():
        if not do_sample or (name in native and native[name] in neutral and not isinstance(native[name], bool)):
            native.pop(name, None)


_SPECIAL: dict[str, Callable[[dict[str, Any], Any, str], None]] = {
    "n_predict": lambda native, value, place: _max_tokens(native, "n_predict", value, place),
    "num_predict": lambda native, value, place: _max_tokens(native, "num_predict", value, place),
    "num_return_sequences": _num_return_sequences,
    "eos_token_id": _eos_token_id,
    "logprobs": _logprobs,
    "best_of": _best_of,
    "early_stopping": _early_stopping,
    "enable_thinking": _enable_thinking,
    "add_special_tokens": _add_special_tokens,
}

#: Every name that `native_fields` looks at; our own come first.
_FOREIGN = frozenset({*RENAMED, *REFUSED, *UNSEEN, *WITHOUT_EFFECT, *_SPECIAL, "do_sample"}) - OUR_FIELDS

#: Our name for each other one.
_MEANINGS = {
    **RENAMED, **MISSPELLED, "n_predict": "max_new_tokens", "num_predict": "max_new_tokens",
    "num_return_sequences": "n", "eos_token_id": "eos_token_ids", "logprobs": "top_logprobs", "best_of": "n",
    "do_sample": "strategy",
}  # fmt: skip
