"""Starts the tool executor: `python -m services.tool_executor`."""

from services.common.rpc.server import serve
from services.common.settings import load
from services.tool_executor.app import build
from services.tool_executor.settings import Settings


def main() -> None:
    """Reads the settings and serves until SIGTERM."""
    serve(load(Settings), build)


if __name__ == "__main__":
    main()
