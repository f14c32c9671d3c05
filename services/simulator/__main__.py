"""`python -m services.simulator` starts the simulator."""

from services.common.rpc.server import serve
from services.common.settings import load
from services.simulator.app import build
from services.simulator.settings import Settings

if __name__ == "__main__":
    serve(load(Settings), build)
