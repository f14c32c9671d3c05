"""scripts/install.py: when it installs, and what it says when it cannot."""

import importlib.util
import sys

import pytest

from services.common.testing import ROOT


@pytest.fixture
def install(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("install_script", ROOT / "scripts/install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/run.txt", "requirements/test.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", str(tmp_path))
    monkeypatch.setattr(module, "VENV", str(tmp_path / ".venv"))
    monkeypatch.setattr(module, "PYTHON", str(tmp_path / ".venv/bin/python"))
    module.commands = []

    def call(command, **_):
        module.commands.append(list(command))
        if "venv" in command:
            (tmp_path / ".venv/bin").mkdir(parents=True)
            (tmp_path / ".venv/bin/python").touch()
        return 0

    monkeypatch.setattr(module.subprocess, "call", call)
    return module


def run(install, monkeypatch, name):
    install.commands.clear()
    monkeypatch.setattr(sys, "argv", ["install.py", name])
    install.main()
    return [" ".join(command[1:]) for command in install.commands]


def test_it_installs_by_hashes_and_only_when_the_lock_has_changed(install, monkeypatch, tmp_path):
    done = run(install, monkeypatch, "run")
    assert any("--require-hashes -r requirements/run.txt" in command for command in done)
    assert any("--no-deps --no-build-isolation -e ." in command for command in done)
    assert run(install, monkeypatch, "run") == []
    (tmp_path / "requirements/run.txt").write_text("changed")
    assert run(install, monkeypatch, "run")
    assert not any("-m venv" in command for command in run(install, monkeypatch, "test"))


def test_what_the_tests_need_holds_what_a_run_needs(install, monkeypatch):
    assert run(install, monkeypatch, "test")
    assert run(install, monkeypatch, "run") == []


@pytest.mark.parametrize("version", [(3, 10), (3, 15), (2, 7)])
def test_another_python_is_one_clear_line(install, monkeypatch, capsys, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as status:
        run(install, monkeypatch, "run")
    assert status.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("Python 3.11 to 3.14 is needed")
    assert told.count("\n") == 1


def test_a_missing_venv_module_is_one_clear_line(install, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit):
        run(install, monkeypatch, "run")
    assert capsys.readouterr().err == "python3-venv missing: apt-get install python3-venv\n"
