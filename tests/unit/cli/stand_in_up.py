"""`bulkhead up` with stand-ins for the services; the stores are the real ones. Takes the arguments of `bulkhead up`.

BULKHEAD_STAND_IN_PATIENCE_S is how long services have to end, in seconds.
"""

import os
import sys
from pathlib import Path

from services.cli.up import run, supervisor
from services.cli.up.environment import Wiring

STAND_IN = Path(__file__).with_name("stand_in.py")


class StandIns(Wiring):
    """Starts stand_in.py wherever a service would be started."""

    def command(self, planned, ports):
        if planned.is_store:
            return super().command(planned, ports)
        return [sys.executable, str(STAND_IN), planned.name]


if __name__ == "__main__":
    run.Wiring = StandIns
    if patience_s := os.environ.get("BULKHEAD_STAND_IN_PATIENCE_S"):
        supervisor.SERVICES_END_S, supervisor.STORES_END_S = float(patience_s), float(patience_s) + 1.4
    sys.argv[1:1] = ["up"]
    from services.cli.__main__ import main

    main()
