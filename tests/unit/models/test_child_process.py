"""The import path of child processes: whatever PYTHONPATH holds, not the working directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from models.child_process import CODE_FOLDER, child_environment, isolate_children


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, ""),
        ("", ""),
        (".", ""),
        ("./", ""),
        ("{cwd}", ""),
        ("{cwd}/../{name}", ""),
        ("/a:", "/a"),
        (":/a::/b:.", "/a:/b"),
        ("/a:lib", "/a:lib"),  # a folder that the user names is wanted
    ],
)
def test_pythonpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, kept: str) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"HOME": "/h"}
    if given is not None:
        environment["PYTHONPATH"] = given.format(cwd=tmp_path, name=tmp_path.name)
    assert child_environment(environment) == {"HOME": "/h", "PYTHONPATH": kept, "PYTHONSAFEPATH": "1"}


def test_a_checkout_stays_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CODE_FOLDER)
    assert child_environment({"PYTHONPATH": "/a:."})["PYTHONPATH"] == f"/a:{CODE_FOLDER}"


def test_this_process_hands_on_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/lib"])
    monkeypatch.setattr(os, "environ", {"PYTHONPATH": "."})
    isolate_children()
    assert sys.path == ["/lib"]
    assert os.environ == {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
