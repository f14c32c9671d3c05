"""`python -m services.memory` runs the memory service."""

from services.common.rpc.server import serve
from services.common.settings import load
from services.memory.app import build
from services.memory.settings import Settings


def main() -> None:
    """Reads the settings and serves until told to stop."""
    serve(load(Settings), build)


if __name__ == "__main__":
    main()
