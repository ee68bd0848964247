"""Settings are checked alike, whether a flag, the environment or the file gives them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from models.engine_options import EngineOptions, checked_devices
from models.settings import InvalidSettings, Settings, bounds_of, help_of, option_of, read_settings
from producer.cli import app as producer
from worker.cli import app as worker


@pytest.mark.parametrize("devices", ["auto", "cpu", "cuda", "cuda:0", "cuda:0, cuda:1", "cuda:0+cuda:1,cpu"])
def test_devices_are_named_as_torch_names_them(devices: str) -> None:
    assert checked_devices(devices) == devices.replace(" ", "")


@pytest.mark.parametrize("devices", ["", ",", "gpu", "cuda:", "cuda:0,", "cuda:0+", "cpu+cuda:0", "auto,cpu"])
def test_other_devices_are_refused(devices: str) -> None:
    with pytest.raises(ValueError, match="must be auto, cpu"):
        checked_devices(devices)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("device", "gpu", "must be auto, cpu, cuda:0 or a list of devices, got 'gpu'"),
        ("dtype", "float8", "input should be 'auto'"),
        ("max_num_seqs", "0", "greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_named_with_its_source(
    name: str, value: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSettings, match=f"^--{name.replace('_', '-')}: .*{problem}"):
        read_settings(**{name: value})
    monkeypatch.setenv(f"NOCTURNE_{name.upper()}", value)
    with pytest.raises(InvalidSettings, match=f"^NOCTURNE_{name.upper()} .*{problem}"):
        read_settings()
    monkeypatch.delenv(f"NOCTURNE_{name.upper()}")
    (tmp_path / "nocturne.toml").write_text(f"{name} = '{value}'")
    with pytest.raises(InvalidSettings, match=problem):
        read_settings()


@pytest.mark.parametrize("ending", ["", "_FILE"])
@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_variable_that_is_nearly_a_settings_is_refused(
    name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name without one of its letters; the run would have gone into another database."""
    monkeypatch.chdir(tmp_path)
    variable = f"NOCTURNE_{name[:-2]}{name[-1]}{ending}".upper()
    monkeypatch.setenv(variable, "x")
    meant = f"{variable} of the environment is not a setting; did you mean NOCTURNE_{name.upper()}{ending}?"
    with pytest.raises(InvalidSettings, match=f"^{re.escape(meant)}$"):
        read_settings()


@pytest.mark.parametrize(
    "variable",
    [
        "NOCTURNE_DATA", "NOCTURNE_SECRETS", "NOCTURNE_RUN_LOG",  # of the compose file and of `--detach`
        "NOCTURNE_PORT", "NOCTURNE_SERVICE_HOST", "NOCTURNE_PORT_5432_TCP_ADDR",  # of a cluster's service of that name
        "NOCTURNE_NOTES", "NOCTURNE_", "NOCTURNE", "MY_NOCTURNE_DATABSE",
    ],
)  # fmt: skip
def test_other_variables_are_left_alone(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "x")
    read_settings()


#: The settings that an option of `worker start` or `producer run` sets, and the options that say more than they do.
OPTIONS = [
    *sorted(set(EngineOptions.model_fields) - {"model", "prefill_tokens"}),
    "engine_timeout",
    "load_timeout",
    "grace_seconds",
]


@pytest.mark.parametrize("setting", OPTIONS)
def test_an_option_has_the_help_and_the_bounds_of_its_setting(setting: str) -> None:
    names = {f"--{option_of(setting)}", "--devices" if setting == "device" else ""}
    options = [
        option
        for command in (get_group(worker).commands["start"], get_group(producer).commands["run"])
        for option in command.params
        if names & set(option.opts)
    ]
    assert options
    for option in options:
        bounds = {name: value for name in ("min", "max") if (value := getattr(option, name, None)) is not None}
        assert bounds == bounds_of(setting)
        assert getattr(option, "help", "") == help_of(setting) or setting == "grace_seconds"  # another one in a home


@pytest.mark.parametrize(
    ("option", "value"),
    [("gpu-memory-utilization", "0"), ("gpu-memory-utilization", "1.1"), ("kv-memory", "0"), ("num-threads", "0")],
)
def test_a_value_beyond_its_bounds_is_refused_by_the_option(option: str, value: str) -> None:
    outcome = CliRunner().invoke(worker, ["start", f"--{option}", value])
    assert outcome.exit_code == 2
    assert f"--{option}" in re.sub(r"\x1b\[[0-9;]*m", "", outcome.output)
