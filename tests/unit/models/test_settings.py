"""Settings are checked alike, whether a flag, the environment or the file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine_options import checked_devices
from models.settings import InvalidSettings, read_settings


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
