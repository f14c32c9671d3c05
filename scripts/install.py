"""Make .venv from a hashed lock, only when the lock has changed: `python3 scripts/install.py run|test`.

Standard library only, and in the syntax of old Pythons, so that it can say what is wrong with them. `test` holds all of
`run`, so installing `run` never takes anything away from a .venv that has `test`.
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
OLDEST, TOO_NEW = (3, 11), (3, 15)
SETS = ("run", "test")


def fail(message):
    sys.stderr.write(message + "\n")
    raise SystemExit(1)


def fingerprint(name):
    """Digest of all that decides what is installed."""
    digest = hashlib.sha256()
    for path in (os.path.join("requirements", name + ".txt"), "pyproject.toml"):
        with open(os.path.join(ROOT, path), "rb") as content:
            digest.update(content.read())
    # A .venv does not survive a move.
    digest.update(f"{ROOT} {sys.version}".encode())
    return digest.hexdigest()


def stamp(name):
    return os.path.join(VENV, f"bulkhead-{name}.installed")


def installed(name, wanted):
    if not os.path.exists(PYTHON):
        return False
    try:
        with open(stamp(name)) as content:
            return content.read() == wanted
    except OSError:
        return False


def works(*command):
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def made_here():
    """False for a .venv of another Python, or of a folder that was moved or copied: its commands name paths that are not these."""
    said = {}
    try:
        with open(os.path.join(VENV, "pyvenv.cfg")) as content:
            for line in content:
                name, _, value = line.partition("=")
                said[name.strip()] = value.strip()
    except OSError:
        return True
    version = ".".join(map(str, sys.version_info[:3]))
    return said.get("version", version) == version and said.get("command", VENV).endswith(VENV)


def make_venv():
    if os.path.exists(PYTHON) and made_here() and works(PYTHON, "-m", "pip", "--version"):
        return
    try:
        import ensurepip  # noqa: F401 - Debian ships venv and ensurepip apart from python3
        import venv  # noqa: F401
    except ImportError:
        fail("python3-venv missing: apt-get install python3-venv")
    print("making .venv")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
        fail("python3-venv missing or broken: apt-get install python3-venv")


def pip(*arguments):
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    if subprocess.call(command + list(arguments), cwd=ROOT) != 0:
        fail("pip could not install; what it says stands above")


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        fail(f"usage: python3 scripts/install.py {'|'.join(SETS)}")
    name = sys.argv[1]
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        found = ".".join(map(str, sys.version_info[:2]))
        fail(f"Python 3.11 to 3.14 is needed, {sys.executable} is {found}: choose another with `make PYTHON=python3.12 ...`")
    wanted = fingerprint(name)
    # `test` holds `run`.
    if installed(name, wanted) or (name == "run" and installed("test", fingerprint("test"))):
        return
    make_venv()
    print(f"installing requirements/{name}.txt into .venv")
    sys.stdout.flush()
    pip("--require-hashes", "-r", os.path.join("requirements", name + ".txt"))
    pip("--no-deps", "--no-build-isolation", "-e", ".")
    # Else the first start would compile all of it, in several processes at once.
    subprocess.call([PYTHON, "-m", "compileall", "-q", "services", os.path.join("protos", "gen")], cwd=ROOT)
    with open(stamp(name), "w") as out:
        out.write(wanted)


if __name__ == "__main__":
    main()
