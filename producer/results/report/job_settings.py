"""The settings of a run: strategy and parameters by which its answers are compared."""

from __future__ import annotations

from typing import Any

from models.states import Strategy
from producer.results.report.figure_rows import decoded

#: The parameters that tell settings apart, in the order of the columns, each with the value that changes nothing.
PARAMETERS: dict[str, Any] = {
    "temperature": None, "top_p": 1.0, "top_k": None, "min_p": None, "num_beams": None, "length_penalty": None,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip

#: Strategies whose parameters are shown even where they change nothing.
ALWAYS_SHOWN = {Strategy.NUCLEUS: {"top_p"}}

#: Values of the grid that name no setting.
NO_SETTING = ("repeat", "strategy", "seed")

#: Settings told apart; further ones are counted by their strategy alone.
MAX_SETTINGS = 300

#: Texts of parameters whose setting is remembered.
MAX_TEXTS = 10_000

Key = tuple[str, tuple[tuple[str, Any], ...]]


class JobSettings:
    """The settings met so far, numbered in the order of their first job."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._of_texts: dict[tuple[str, str, str | None], int] = {}
        self.is_folded = False  # there were more than are told apart

    def number_of(self, row: dict[str, Any]) -> int:
        """The number of a row's setting."""
        key = (row["strategy"], tuple(setting_of(row).items()))
        if key not in self._numbers and len(self._numbers) >= MAX_SETTINGS:
            self.is_folded, key = True, (row["strategy"], (("others", "…"),))
        return self._numbers.setdefault(key, len(self._numbers))

    def number_of_texts(self, strategy: str, params: str, grid_point: str | None) -> int:
        """The number of the setting of a row whose JSON is text; rows of one setting have few texts."""
        texts = (strategy, params, grid_point)
        number = self._of_texts.get(texts)
        if number is None:
            values = {"strategy": strategy, "params": decoded(params), "grid_point": decoded(grid_point)}
            number = self.number_of(values)
            if len(self._of_texts) < MAX_TEXTS:
                self._of_texts[texts] = number
        return number

    def described(self) -> list[dict[str, Any]]:
        """Strategy and values of each setting, in the order of the numbers."""
        return [{"strategy": strategy, "values": dict(values)} for strategy, values in self._numbers]


def setting_of(row: dict[str, Any]) -> dict[str, Any]:
    """The values that name a row's setting beside its strategy: of the grid, and parameters that change something."""
    params, point = row["params"], row["grid_point"] or {}
    shown = ALWAYS_SHOWN.get(row["strategy"], set()) | point.keys()
    names = [name for name in PARAMETERS if params.get(name) is not None]
    values = {name: params[name] for name in names if name in shown or params[name] != PARAMETERS[name]}
    others = {name: value for name, value in point.items() if name not in PARAMETERS and name not in NO_SETTING}
    return values | {
        name: value if isinstance(value, int | float | str) else str(value) for name, value in others.items()
    }
