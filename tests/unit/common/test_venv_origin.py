"""scripts/install.py: which .venv it goes on with, and which it makes anew."""

import importlib.util
import sys

import pytest

from services.common.testing import ROOT

VERSION = ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("version", "folder", "kept"),
    [(VERSION, "", True), ("3.9.1", "", False), (VERSION, "/elsewhere", False)],
    ids=["this one", "of another Python", "moved"],
)
def test_a_venv_of_another_python_or_place_is_made_anew(tmp_path, monkeypatch, version, folder, kept):
    spec = importlib.util.spec_from_file_location("install_script_of_origin", ROOT / "scripts/install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").touch()
    (venv / "pyvenv.cfg").write_text(f"version = {version}\ncommand = /usr/bin/python3 -m venv {folder or tmp_path}/.venv\n")
    calls = []
    monkeypatch.setattr(install, "VENV", str(venv))
    monkeypatch.setattr(install, "PYTHON", str(venv / "bin/python"))
    monkeypatch.setattr(install.subprocess, "call", lambda command, **_: calls.append(list(command)) or 0)
    install.make_venv()
    assert ("venv" not in calls[-1]) == kept
