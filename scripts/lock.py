"""Resolve pyproject.toml into the hashed locks under requirements/.

One lock a set of extras: `run` for `make run`, `test` for the tests, and one for each service image. The locks name no
index: whoever installs decides where packages come from, and the hashes decide what may be installed.

Needs `uv` on the PATH (`pip install uv`); it is a tool of the maintainer and no dependency of the project.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "run": ["run"],
    "test": ["test"],
    "gateway": ["gateway"],
    "orchestrator": ["orchestrator"],
    "llm-gateway": ["llm-gateway"],
    "tool-executor": ["tool-executor"],
    "memory": ["memory"],
    "simulator": ["simulator"],
    "devstores": ["embedded"],
}


def main() -> int:
    out = ROOT / "requirements"
    out.mkdir(exist_ok=True)
    # The widest lock first: it constrains the others, so that an image runs the very versions that were tested.
    for name in sorted(LOCKS, key=lambda n: n != "test"):
        extras = [arg for extra in LOCKS[name] for arg in ("--extra", extra)]
        constraint = [] if name == "test" else ["--constraint", str(out / "test.txt")]
        command = ["uv", "pip", "compile", "pyproject.toml", *extras, *constraint, "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header", "-q"]
        done = subprocess.run([*command, "-o", str(out / f"{name}.txt")], cwd=ROOT, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
