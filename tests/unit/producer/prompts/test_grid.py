"""The grid of the command line."""

from __future__ import annotations

import pytest

from producer.errors import LineProblem, UsageError
from producer.prompts.grid import Grid, label, parse_option, validate


def test_comma_lists_make_all_combinations_of_what_each_strategy_takes() -> None:
    grid = Grid({"strategy": ["greedy", "nucleus"], "temperature": [0.5, 1.0], "top_p": [0.9, 0.15]})
    points = [varied for _, varied in grid.points({})]
    assert points == [
        {"strategy": "greedy"},
        {"strategy": "nucleus", "temperature": 0.5, "top_p": 0.9},
        {"strategy": "nucleus", "temperature": 0.5, "top_p": 0.15},
        {"strategy": "nucleus", "temperature": 1.0, "top_p": 0.9},
        {"strategy": "nucleus", "temperature": 1.0, "top_p": 0.15},
    ]


def test_the_line_wins_over_the_command_and_is_not_varied() -> None:
    grid = Grid({"strategy": ["sample"], "temperature": [0.5, 1.0]})
    assert list(grid.points({"temperature": 2.0})) == [({"strategy": "sample", "temperature": 2.0}, {})]


def test_a_line_with_a_strategy_keeps_it() -> None:
    grid = Grid({"strategy": ["sample", "greedy"], "temperature": [0.5]})
    assert [params for params, _ in grid.points({"strategy": "greedy"})] == [{"strategy": "greedy"}]


def test_repeats_are_points_of_their_own() -> None:
    points = [varied for _, varied in Grid({}, repeat=3).points({})]
    assert points == [{"repeat": 0}, {"repeat": 1}, {"repeat": 2}]


def test_a_parameter_that_no_strategy_takes_is_an_error() -> None:
    grid = Grid({"strategy": ["greedy"], "top_p": [0.9]})
    list(grid.points({}))
    with pytest.raises(UsageError, match="--top-p is not a parameter of the strategies of this command; it belongs to"):
        grid.check_all_used()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("temperature", "1,0.5,1.0", "1.0"), ("num_beams", "2,2", "2"), ("strategy", "beam,beam", "beam")],
)
def test_a_value_comes_once(name: str, text: str, value: str) -> None:
    """Two jobs of it would have the same custom id."""
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"^{option} has {value} twice; --repeat decodes a job several times$"):
        Grid({"strategy": ["sample", "beam"], name: parse_option(name, text)}).check_values()


@pytest.mark.parametrize(
    ("values", "repeat", "number"),
    [({}, 1, 1), ({}, 10**9, 10**9), ({"strategy": ["greedy", "sample"], "temperature": [1.0, 2.0]}, 3, 9),
     ({"temperature": [1.0, 2.0]}, 1, 2)],
)  # fmt: skip
def test_the_number_of_points_is_known_without_making_them(
    values: dict[str, list[object]], repeat: int, number: int
) -> None:
    assert Grid(values, repeat).num_points == number


def test_options_are_parsed_by_kind() -> None:
    assert parse_option("temperature", "0.001, 1,10") == [0.001, 1.0, 10.0]
    assert parse_option("num_beams", "1,4") == [1, 4]
    with pytest.raises(UsageError, match="--num-beams must be a whole number from 1 to 64, got 'four'"):
        parse_option("num_beams", "1,four")


def test_a_wrong_value_is_named_with_its_rule() -> None:
    with pytest.raises(LineProblem, match=r"top_p must be in \(0, 1\], got 1.5"):
        validate({"strategy": "nucleus", "top_p": 1.5})


def test_a_point_has_a_readable_name() -> None:
    assert label({"strategy": "beam", "num_beams": 4, "repeat": 1}) == "beam,num_beams=4,repeat=1"


def test_a_value_that_no_line_can_take_is_the_commands_error() -> None:
    with pytest.raises(UsageError, match=r"^--top-p must be in \(0, 1\], got 1.5$"):
        Grid({"strategy": ["nucleus"], "top_p": [0.9, 1.5]}).check_values()
    strategies = "greedy, sample, nucleus, beam, model"
    with pytest.raises(UsageError, match=f"^--strategy must be one of {strategies}, got 'magic'$"):
        Grid({"strategy": ["magic"]}).check_values()


@pytest.mark.parametrize(("bias", "is_taken"), [(1e300, False), (3.5e38, False), (3.4e38, True), (-1e300, True)])
def test_a_bias_that_fp32_takes_for_infinite_is_refused(bias: float, is_taken: bool) -> None:
    """A negative one bans its token and leaves the others."""
    if is_taken:
        assert validate({"logit_bias": {5: bias}}).logit_bias == {5: bias}
    else:
        with pytest.raises(LineProblem, match=r"^logit_bias of token 5 is beyond fp32, got [13]"):
            validate({"logit_bias": {5: bias}})
