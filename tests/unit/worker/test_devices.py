"""The devices that workers get, without any GPU available."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from worker import cli
from worker.devices import DeviceAssignment, assign_devices, device_names


@pytest.mark.parametrize(
    ("devices", "environment", "names"),
    [
        ("cpu", {}, ["cpu"]),
        ("cuda:0, cuda:2", {}, ["cuda:0", "cuda:2"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3,5"}, ["cuda:0", "cuda:1"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "-1"}, ["cpu"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ["cpu"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "2,-1,3"}, ["cuda:0"]),
    ],
)
def test_names(devices: str, environment: dict[str, str], names: list[str]) -> None:
    assert device_names(devices, environment) == names


def test_workers_on_the_cpu_divide_its_threads() -> None:
    one, two = assign_devices(["cpu", "cpu"], 8, {})
    assert one == two == DeviceAssignment("cpu", "cpu", {"NOCTURNE_NUM_THREADS": "4"})
    (given,) = assign_devices(["cpu"], 8, {"NOCTURNE_NUM_THREADS": "3"})
    assert given.environment == {}
    assert assign_devices(["cpu"] * 3, 2, {})[0].environment == {"NOCTURNE_NUM_THREADS": "1"}


def test_a_gpus_worker_sees_only_its_own() -> None:
    assignments = assign_devices(["cuda:0", "cuda:1", "cpu"], 8, {"CUDA_VISIBLE_DEVICES": "3,GPU-5"})
    assert [(each.label, each.device, each.environment) for each in assignments] == [
        ("cuda:0", "cuda:0", {"CUDA_VISIBLE_DEVICES": "3"}),
        ("cuda:1", "cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-5"}),
        ("cpu", "cpu", {"NOCTURNE_NUM_THREADS": "8"}),
    ]


def test_gpus_are_counted_as_nvidia_smi_counts_them_where_nobody_says_otherwise() -> None:
    """Those in a list of a person's own are counted in the order that the person saw."""
    (plain,) = assign_devices(["cuda:4"], 8, {})
    assert plain.environment == {"CUDA_VISIBLE_DEVICES": "4", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for given in ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}):
        assert assign_devices(["cuda:4"], 8, given)[0].environment == {"CUDA_VISIBLE_DEVICES": "4"}


def test_one_worker_may_have_several_gpus() -> None:
    pair, single = assign_devices(["cuda:2+cuda:0", "cuda:1"], 8, {"CUDA_VISIBLE_DEVICES": "4,5,6"})
    assert pair == DeviceAssignment("cuda:2+cuda:0", "cuda:0+cuda:1", {"CUDA_VISIBLE_DEVICES": "6,4"})
    assert single.environment == {"CUDA_VISIBLE_DEVICES": "5"}


@pytest.mark.parametrize(("devices", "is_told"), [("auto", True), ("cpu", False)])
def test_workers_that_take_the_cpu_for_want_of_a_gpu_say_so(
    devices: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group:
        def __init__(self, *_: Any) -> None: ...

        def run(self) -> int:
            return 0

    monkeypatch.setattr(cli, "WorkerGroup", Group)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("NOCTURNE_MODEL", "none/such")
    done = CliRunner().invoke(cli.app, ["start", "--devices", devices])
    assert ("no GPU is visible here" in done.output) == is_told, done.output
    assert done.exit_code == 0
