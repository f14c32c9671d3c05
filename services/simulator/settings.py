"""Settings of the simulator.

BULKHEAD_HTTP_PORT=8090                           # where the providers' APIs and /sim are served
BULKHEAD_SIMULATOR_SCENARIOS=/etc/scenarios       # more scripts, beside those that ship
BULKHEAD_SIMULATOR_REQUIRE_KEY=sim-key          # every other key is refused
BULKHEAD_SIMULATOR_LOG=.bulkhead/served.jsonl     # what was served and billed, a line a request
BULKHEAD_SIMULATOR_FIRST_TOKEN_DELAY_MS=300       # how a real model feels
BULKHEAD_SIMULATOR_TOKENS_PER_S=40
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.common.settings import Port, ServiceSettings


class Settings(ServiceSettings):
    """Settings of the simulator, beside those every service has."""

    service_name: ClassVar[str] = "simulator"

    http_port: Port = Field(8090, description="Port of the providers' APIs and of the control endpoints.")
    metrics_port: Port = Field(9466, description="Port of the Prometheus metrics; 0 turns them off.")
    simulator_scenarios: Path | None = Field(None, description="Folder with more scenarios (*.yaml), which win over those that ship.")
    simulator_log: Path | None = Field(
        None, description="JSONL file that gets a line for each request served; unset keeps them in memory only."
    )
    simulator_require_key: str = Field("", description="The key that every request must bring; empty where any will do.")
    simulator_first_token_delay_ms: float = Field(0, ge=0, le=600_000, description="Wait before the first token, in milliseconds.")
    simulator_tokens_per_s: float = Field(0, ge=0, le=1_000_000, description="Tokens a second; 0 sends them at once.")
