"""Generate the Python code of protos/ into protos/gen/python (checked in, never edited).

`--check` generates into a temporary folder and fails when the checked-in code differs.
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protos"
TARGET = SOURCE / "gen" / "python"


def generate(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(SOURCE)) for path in (SOURCE / "bulkhead").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{SOURCE}", f"-I{well_known}", f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("protoc failed")
    for stub in target.rglob("*_pb2_grpc.py"):
        if "common" in stub.parts:  # common.v1 has messages only
            stub.unlink()


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*.py*") if "__pycache__" not in path.parts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the checked-in code is out of date")
    if not parser.parse_args().check:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = files(fresh) | files(TARGET)
        stale = [
            n
            for n in sorted(names)
            if not (fresh / n).exists() or not (TARGET / n).exists() or not filecmp.cmp(fresh / n, TARGET / n, shallow=False)
        ]
    for name in stale:
        print(f"out of date: protos/gen/python/{name}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
