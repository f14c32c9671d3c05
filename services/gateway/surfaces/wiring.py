"""What every surface is made from."""

from dataclasses import dataclass

from services.common.accounts import Accounts
from services.common.audit import KeyAudit
from services.common.config import ConfigFile
from services.common.limits import Policies
from services.gateway.adapters.backends import Backends
from services.gateway.following import Follower
from services.gateway.settings import Settings
from services.gateway.streaming import OpenStreams


@dataclass(frozen=True, slots=True)
class Wiring:
    """The parts that the composition root hands to the surfaces."""

    backends: Backends
    follower: Follower
    streams: OpenStreams
    settings: Settings
    accounts: Accounts
    policies: ConfigFile[Policies]
    key_audit: KeyAudit
