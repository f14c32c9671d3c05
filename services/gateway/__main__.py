"""Starts the gateway: `python -m services.gateway`."""

from services.common.rpc.server import serve
from services.common.settings import load
from services.gateway.app import build
from services.gateway.settings import Settings


def main() -> None:
    """Reads the settings and serves until SIGTERM."""
    serve(load(Settings), build)


if __name__ == "__main__":
    main()
