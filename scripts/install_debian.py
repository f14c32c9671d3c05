"""Install what the system tier of the tests needs and PyPI does not have, from Debian's packages.

Does nothing where the programs are there; ends with status 1 and one clear line where they cannot be had.
"""

import os
import shutil
import subprocess
import sys

# Program -> Debian package.
PROGRAMS = {
    "chromium": "chromium",
    "promtool": "prometheus",
    "bwrap": "bubblewrap",
    "ip": "iproute2",
    "unshare": "util-linux",
}
TRIES = 3


def missing(programs: dict[str, str]) -> dict[str, str]:
    return {program: package for program, package in programs.items() if shutil.which(program, path=search_path()) is None}


def search_path() -> str:
    # Debian keeps `ip` where users do not look.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def apt_get(*arguments: str) -> bool:
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    command = [*root, *environment, "apt-get", "-q", "-o", "Dpkg::Use-Pty=0", *arguments]
    for _ in range(TRIES):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return True
    print((done.stdout + done.stderr)[-3000:], file=sys.stderr)
    return False


def main(programs: dict[str, str] = PROGRAMS) -> int:
    wanted = missing(programs)
    if not wanted:
        return 0
    packages = sorted(set(wanted.values()))
    hint = f"install {' '.join(packages)} by hand, then repeat"
    if shutil.which("apt-get") is None:
        print(f"{', '.join(wanted)} missing and there is no apt-get: {hint}", file=sys.stderr)
        return 1
    if os.geteuid() != 0 and shutil.which("sudo") is None:
        print(f"{', '.join(wanted)} missing, and neither root nor sudo: {hint}", file=sys.stderr)
        return 1
    print(f"apt-get install {' '.join(packages)}", flush=True)
    if not apt_get("update") or not apt_get("install", "-y", "--no-install-recommends", *packages) or missing(programs):
        print(f"apt-get could not install {' '.join(packages)}: {hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
