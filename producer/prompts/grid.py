"""The grid: comma lists of the command line and all combinations of their values. Knows no lines and no jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Any

from pydantic import ValidationError

from models.params import (
    COMMON_PARAMETERS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    GenerationParams,
    infinite_bias,
    parameters_of,
)
from models.states import Strategy
from producer.errors import LineProblem, UsageError

#: The rule for the values of each parameter, as messages word it.
RULES = {
    "temperature": "must be a number above 0 (0 means greedy: use strategy greedy)",
    "top_p": "must be in (0, 1]",
    "top_k": "must be a whole number of at least 1",
    "min_p": "must be in [0, 1]",
    "repetition_penalty": "must be a number above 0",
    "presence_penalty": "must be in [-2, 2]",
    "frequency_penalty": "must be in [-2, 2]",
    "logit_bias": "must be an object of token id to number",
    "num_beams": "must be a whole number from 1 to 64",
    "num_return": "must be a whole number from 1 to num_beams",
    "length_penalty": "must be a finite number",
    "max_new_tokens": "must be a whole number from 1 to 1,000,000",
    "min_new_tokens": "must be a whole number from 0 to max_new_tokens",
    "seed": "must be a whole number from 0 to 2**63 - 1",
    "n": "must be a whole number from 1 to 256",
    "stop": f"must be a string or up to {MAX_STOP_STRINGS} strings, none of them empty or of more than "
    f"{MAX_STOP_CHARACTERS:,} characters",
    "stop_token_ids": "must be a list of token ids",
    "eos_token_ids": "must be a list of token ids",
    "ignore_eos": "must be true or false",
    "trace": "must be none, tokens or top:k",
    "top_logprobs": "must be a whole number from 0 to 100",
    "strategy": f"must be one of {', '.join(Strategy)}, model",
}

#: The strategy that samples as the model's makers recommend; jobs store the greedy or sample that it means.
MODEL_STRATEGY = "model"

#: The strategies of lines and commands.
STRATEGIES = (*map(str, Strategy), MODEL_STRATEGY)

#: The parameters of each strategy.
KNOWN = {
    **{str(strategy): parameters_of(strategy) for strategy in Strategy},
    MODEL_STRATEGY: COMMON_PARAMETERS | {"n"},
}

#: Parameters that belong to nucleus alone where a command has both nucleus and sample.
NUCLEUS_FIRST = frozenset({"top_p", "top_k"})

#: Validated parameters by their representation. A file with a seed on every line fills it and gains nothing.
_VALIDATED: dict[str, GenerationParams] = {}
MAX_REMEMBERED = 10_000

INTEGERS = frozenset({
    "top_k", "num_beams", "num_return", "max_new_tokens", "min_new_tokens", "seed", "n", "top_logprobs",
})  # fmt: skip


@dataclass
class Grid:
    """The values of each parameter on the command line."""

    values: dict[str, list[Any]]
    repeat: int = 1  # jobs of each combination
    used: set[str] = field(default_factory=set)  # the parameters that some line has taken so far
    has_nucleus_lines: bool = False  # some line names the strategy nucleus itself
    #: The parameters that the strategy `model` means, greedy without one; it may raise `UsageError`.
    recommended: Callable[[], dict[str, Any]] = lambda: {"strategy": "greedy"}

    @property
    def is_varied(self) -> bool:
        return self.repeat > 1 or any(len(values) > 1 for values in self.values.values())

    def points(
        self, line_params: dict[str, Any], default_strategy: str = "greedy"
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """For each combination: its parameters below the line's own, and the values that the grid varied."""
        given = self.values.get("strategy", [default_strategy])
        strategies = [line_params["strategy"]] if "strategy" in line_params else given
        for strategy in strategies:
            taken = self._taken_by(strategy)
            names = [name for name in self.values if name in taken and name not in line_params]
            self.used.update(names)
            for combination in product(*(self.values[name] for name in names)):
                params = {"strategy": strategy, **dict(zip(names, combination, strict=True)), **line_params}
                varied = {name: params[name] for name in names if len(self.values[name]) > 1}
                if len(self.values.get("strategy", [])) > 1 and "strategy" not in line_params:
                    varied = {"strategy": strategy, **varied}
                if strategy == MODEL_STRATEGY:
                    params = self._recommended(params)
                for number in range(self.repeat):
                    yield params, varied | ({"repeat": number} if self.repeat > 1 else {})

    @property
    def num_points(self) -> int:
        """The combinations for a line that names no parameter itself, under the default strategy that takes most."""
        given = self.values.get("strategy")
        numbers = [
            self.repeat * prod(len(self.values[name]) for name in self.values if name in self._taken_by(strategy))
            for strategy in given or (Strategy.GREEDY, Strategy.SAMPLE)
        ]
        return sum(numbers) if given else max(numbers)

    @property
    def depends_on_lines(self) -> bool:
        """Whether `has_nucleus_lines` makes a difference."""
        return not self._has_nucleus and any(name in self.values for name in NUCLEUS_FIRST)

    def _taken_by(self, strategy: Any) -> frozenset[str]:
        """The parameters that jobs of a strategy take from the command line."""
        known = KNOWN.get(strategy, frozenset()) if isinstance(strategy, str) else frozenset()
        gives_way = strategy == Strategy.SAMPLE and (self._has_nucleus or self.has_nucleus_lines)
        return known - NUCLEUS_FIRST if gives_way else known

    @property
    def _has_nucleus(self) -> bool:
        return Strategy.NUCLEUS in self.values.get("strategy", [])

    def _recommended(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters with those of the model's makers. Raises `LineProblem` for one that would hide theirs."""
        for name in sorted(params.keys() - {"strategy"} - KNOWN[MODEL_STRATEGY]):
            raise LineProblem(name, "is not a parameter of strategy model, whose makers chose it; name the strategy")
        return params | self.recommended()

    def check_values(self) -> None:
        """Raises `UsageError` for a value that is wrong on every line, so that no line is blamed for it."""
        for name, values in self.values.items():
            _check_distinct(name, values)
        for params, _ in Grid(self.values).points({}):
            try:
                validate(params)
            except LineProblem as error:
                if error.field:  # a line may still fix a wrong combination
                    raise UsageError(f"--{error.field.replace('_', '-')} {error.problem}") from error

    def check_all_used(self) -> None:
        """Raises `UsageError` for a parameter that no line has taken."""
        for name in self.values:
            if name not in self.used and name != "strategy":
                takers = [strategy for strategy in Strategy if name in parameters_of(strategy)]
                raise UsageError(
                    f"--{name.replace('_', '-')} is not a parameter of the strategies of this command; "
                    f"it belongs to {' and '.join(takers)}: add --strategy {takers[0]} or leave it out"
                )


def _check_distinct(name: str, values: list[Any]) -> None:
    """Raises `UsageError` for a value that comes twice: its jobs would have the same custom id."""
    seen: set[str] = set()
    for value in values:
        if (text := repr(value)) in seen:
            raise UsageError(f"--{name.replace('_', '-')} has {value} twice; --repeat decodes a job several times")
        seen.add(text)


def parse_option(name: str, text: str) -> list[Any]:
    """The values of one option's comma list. Raises `UsageError`."""
    values: list[Any] = []
    for part in text.split(","):
        part = part.strip()
        if name == "strategy":
            values.append(part)
            continue
        try:
            values.append(int(part) if name in INTEGERS else float(part))
        except ValueError:
            raise UsageError(f"--{name.replace('_', '-')} {RULES[name]}, got {part!r}") from None
    return values


def validate(params: dict[str, Any]) -> GenerationParams:
    """The parameters of a job. Raises `LineProblem` for the first wrong one.

    Lines with the same parameters, the rule in most files, share one object.
    """
    key = repr(params)
    if (known := _VALIDATED.get(key)) is None:
        known = _validate(params)
        if len(_VALIDATED) < MAX_REMEMBERED:
            _VALIDATED[key] = known
    return known


def _validate(params: dict[str, Any]) -> GenerationParams:
    try:
        found = GenerationParams.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if not name:
            raise LineProblem("", first["msg"].removeprefix("Value error, ")) from error
        problem = f"{RULES.get(name, 'is not valid')}, got {_shorten(params.get(name))}"
        if name == "strategy" and (near := get_close_matches(str(params.get(name)), STRATEGIES, n=1)):
            problem += f"; did you mean {near[0]}?"
        raise LineProblem(name, problem) from error
    if (infinite := infinite_bias(found.logit_bias or {})) is not None:
        token_id, bias = infinite
        raise LineProblem("logit_bias", f"of token {token_id} is beyond fp32, got {bias:g}; 100 all but picks a token")
    return found


def label(varied: dict[str, Any]) -> str:
    """A grid point's name, which is appended to the custom id."""
    return ",".join(str(value) if name == "strategy" else f"{name}={value}" for name, value in varied.items())


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
