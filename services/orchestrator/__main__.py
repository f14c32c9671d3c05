"""Starts the orchestrator."""

from services.common.rpc.server import serve
from services.common.settings import load
from services.orchestrator.app import build
from services.orchestrator.settings import Settings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    serve(load(Settings), build)


if __name__ == "__main__":
    main()
