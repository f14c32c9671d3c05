"""An orchestrator process that faults strike: killed, stopped, cut off from its store, and brought back."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from services.common import testing
from services.common.valkey import SENTINELS
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import Client, command, dialed, settings_for
from services.orchestrator.testing.store_proxy import StoreProxy, before_store


class Replica:
    """A process under one name for all of its lives, its proxy before the store (none where sentinels lead to it), and a caller of it."""

    proxy: StoreProxy
    client: Client
    process: testing.Process

    def __init__(
        self,
        name: str,
        identities: testing.Identities,
        behind: Fakes,
        config: Path,
        folder: Path,
        state_url: str,
        *,
        module: str = "services.orchestrator",
        **settings: Any,
    ) -> None:
        """`module` is what its lives run."""
        self.name, self._identities, self._behind, self._config, self._folder = name, identities, behind, config, folder
        self._state_url, self._module, self._fields = state_url, module, settings
        self.lives = 0

    @asynccontextmanager
    async def there(self, *, later: bool = False) -> AsyncIterator["Replica"]:
        """Started and ready, unless it is started `later`; ended afterwards."""
        # Sentinels name the primary's own address, so what is behind them has no proxy before it.
        direct = self._state_url.startswith(SENTINELS)
        async with nullcontext() if direct else before_store(self._state_url) as proxy:
            if proxy is not None:
                self.proxy = proxy
            url = self._state_url if proxy is None else proxy.url
            self.settings = settings_for(self._identities, self._behind, url, self._config, instance=self.name, **self._fields)
            if not later:
                self.start()
            try:
                async with dialed(self.settings, self._identities) as self.client:
                    if not later:
                        await self.ready()
                    yield self
            finally:
                if self.lives:
                    # A stopped process hears no SIGTERM, and one that is cut off waits for its store.
                    self.process.kill()

    def start(self) -> None:
        """Begins a life."""
        self.lives += 1
        self.process = command(self.settings, self._folder / f"{self.name}.log", self._module)

    async def ready(self) -> None:
        """Returns when it would be sent calls."""
        await testing.wait_ready(f"127.0.0.1:{self.settings.grpc_port}")

    async def leave(self) -> None:
        """Ends a life as a rollout does. Returns when the process has ended in good order."""
        self.process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.process.wait) == 0

    def strike(self, fault: str) -> None:
        """kill, stop, cut or freeze."""
        if fault == "kill":
            self.process.kill()
        elif fault == "stop":
            self.process.signal(signal.SIGSTOP)
        elif fault == "cut":
            self.proxy.cut()
        else:
            self.proxy.freeze()

    def mend(self) -> None:
        """Ends whatever struck it but a kill."""
        if self.process.running():
            self.process.signal(signal.SIGCONT)
        if hasattr(self, "proxy"):
            self.proxy.restore()

    async def back(self) -> None:
        """As `mend`; a process that was killed lives again under its old name. Returns when it is ready."""
        self.mend()
        if not self.process.running():
            self.start()
        await self.ready()
