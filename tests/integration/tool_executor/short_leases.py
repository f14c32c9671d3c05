"""The tool executor with leases so short that a test can wait for the end of one. Run as a program it is the whole service."""

import runpy
from collections.abc import Callable
from typing import Any

from services.tool_executor import claims, execution

LEASE_S = 2.0


def shorten(put: Callable[[Any, str, float], None] = setattr) -> None:
    """Makes leases short in this process; `put` sets an attribute of a module."""
    put(execution, "LEASE_S", LEASE_S)
    put(execution, "LEASE_MARGIN_S", 1.0)
    put(claims, "RENEW_EVERY_S", 0.5)


if __name__ == "__main__":
    shorten()
    runpy.run_module("services.tool_executor", run_name="__main__", alter_sys=True)
