"""The GPUs of this machine in `producer doctor`, as a program in nvidia-smi's place tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer.runs import device_check

H100, A100, T4 = (
    "0, NVIDIA H100 80GB HBM3, 9.0, 81559, 4",
    "1, NVIDIA A100-SXM4-40GB, 8.0, 40960, 30720",
    "1, Tesla T4, 7.5, 15360, 512",
)


@pytest.mark.parametrize(
    ("told", "code", "findings"),
    [
        ([], 0, []),
        (
            [H100, A100],
            0,
            [
                (True, "0: NVIDIA H100 80GB HBM3, bfloat16, 0.0 of 79.6 GiB in use"),
                (True, "1: NVIDIA A100-SXM4-40GB, bfloat16, 30.0 of 40.0 GiB in use"),
            ],
        ),
        (
            [H100, T4],
            0,
            [
                (True, "0: NVIDIA H100"),
                (False, "1: Tesla T4, float16, 0.5 of 15.0 GiB in use; attention has no kernel there, so workers"),
                (False, "in different types (0 in bfloat16 and 1 in float16); give all workers the same --dtype"),
            ],
        ),
        (["Failed to initialize NVML: Driver/library version mismatch"], 18, [(False, "library version mismatch")]),
        (["0, Old, [N/A], 8, 1"], 0, [(False, "does not tell which there are: could not convert string to float")]),
        (["a driver of another time"], 0, [(False, "does not tell which there are: not enough values")]),
        (None, 0, [(True, "nvidia-smi, which would tell, is not installed")]),
    ],
    ids=["none", "alike", "different", "broken", "unknown", "other", "absent"],
)
def test_each_card_is_told_of_and_that_they_differ(
    told: list[str] | None,
    code: int,
    findings: list[tuple[bool, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if told is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in told) + f"exit {code}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_check, "DEVICE_FILES", ("null",))
    found = list(device_check.card_findings())
    assert [is_ok for is_ok, _ in found] == [is_ok for is_ok, _ in findings]
    assert all(part in message for (_, message), (_, part) in zip(found, findings, strict=True)), found


def test_a_machine_without_a_gpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "DEVICE_FILES", ("no-such-device*",))
    monkeypatch.setattr(device_check, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    monkeypatch.setattr(device_check, "_cards", pytest.fail)
    assert list(device_check.card_findings()) == []
