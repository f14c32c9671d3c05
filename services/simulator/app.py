"""Composition root of the simulator."""

from pathlib import Path

from services.common.health import Health
from services.common.http import UvicornListener
from services.common.rpc.server import Service
from services.common.settings import StartRefused
from services.simulator import metrics, scenarios
from services.simulator.served_log import ServedLog
from services.simulator.settings import Settings
from services.simulator.simulator import Simulator
from services.simulator.surfaces.http import HttpApp
from services.simulator.surfaces.protocol import ResettableProtocol

SHIPPED_SCENARIOS = Path(__file__).parent / "scenarios"


def build(settings: Settings) -> Service:
    """Wire the simulator; raises StartRefused with every problem of the scenarios and of the log file."""
    problems: list[str] = []
    more = [settings.simulator_scenarios] if settings.simulator_scenarios else []
    book = scenarios.ScenarioBook()
    try:
        book = scenarios.load([SHIPPED_SCENARIOS, *more])
    except scenarios.BadScenarios as error:
        problems.extend(error.problems)
    served = ServedLog()
    try:
        served = ServedLog.to_file(settings.simulator_log)
    except OSError as error:
        problems.append(f"BULKHEAD_SIMULATOR_LOG: {settings.simulator_log} cannot be written: {error.strerror}")
    if problems:
        raise StartRefused(problems)
    simulator = Simulator(
        served,
        book,
        first_token_delay_ms=settings.simulator_first_token_delay_ms,
        tokens_per_s=settings.simulator_tokens_per_s,
        required_key=settings.simulator_require_key,
    )
    metrics.observe(served)
    health = Health({})
    app = HttpApp(simulator, ready=lambda: health.ready)

    async def release() -> None:
        app.release()

    async def close_log() -> None:
        served.close()

    listener = UvicornListener(app, settings.host, settings.http_port, http=ResettableProtocol)
    return Service("simulator", listeners=(listener,), drain=(release,), close=(close_log,), health=health)
