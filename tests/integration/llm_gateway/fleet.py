"""Gateways as real processes that share one store, and a store that can be slow."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from services.common import testing


class Replica:
    """One gateway process; keeps its ports when it is started again."""

    def __init__(self, identities: testing.Identities, state_url: str, folder: Path, number: int, settings: Mapping[str, Any]) -> None:
        self.grpc_port, self.http_port = testing.free_port(), testing.free_port()
        self.process: testing.Process | None = None
        self.ready = False
        self._log = folder / f"gateway-{number}.log"
        self._env = {
            "BULKHEAD_ENV": "test", "BULKHEAD_LOG_FORMAT": "json", "BULKHEAD_GRPC_PORT": str(self.grpc_port),
            "BULKHEAD_HTTP_PORT": str(self.http_port), "BULKHEAD_METRICS_PORT": "0", "BULKHEAD_CONFIG_DIR": str(folder),
            "BULKHEAD_STATE_URL": state_url, "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file), "BULKHEAD_DRAIN_GRACE_S": "5",
            **{f"BULKHEAD_{name.upper()}": str(value) for name, value in settings.items()},
        }  # fmt: skip

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """Of the model port."""
        return f"http://127.0.0.1:{self.http_port}"

    async def start(self) -> None:
        """Starts it, and returns when it is ready."""
        self.process = testing.Process(testing.python("-m", "services.llm_gateway"), env=self._env, log=self._log)
        await testing.wait_ready(self.address)
        self.ready = True

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.ready = False
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM."""
        self.ready = False
        if self.process is not None:
            self.process.stop()

    def output(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace")


@asynccontextmanager
async def replicas(
    identities: testing.Identities, state_url: str, folder: Path, content: Mapping[str, Any], count: int = 2, **settings: Any
) -> AsyncIterator[list[Replica]]:
    """So many gateways over the models of a mapping, all ready."""
    (folder / "models.yaml").write_text(yaml.safe_dump(dict(content)))
    made = [Replica(identities, state_url, folder, number, settings) for number in range(count)]
    try:
        await asyncio.gather(*(replica.start() for replica in made))
        yield made
    finally:
        await asyncio.gather(*(asyncio.to_thread(replica.stop) for replica in made))


class Lag:
    """A TCP proxy before a store. `seconds` is how long each piece is held back, on its way there and on its way back."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.seconds = 0.0
        self.url = ""
        self._tasks: set[asyncio.Task] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            there = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.close()
            return
        pumps = [asyncio.create_task(self._pump(reader, there[1])), asyncio.create_task(self._pump(there[0], writer))]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
            self._tasks.discard(pump)
        there[1].close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while read := await reader.read(65536):
                if self.seconds:
                    await asyncio.sleep(self.seconds)
                writer.write(read)
                await writer.drain()

    def end(self) -> None:
        """Ends the connections."""
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def lagging(url: str) -> AsyncIterator[Lag]:
    """A proxy before the store at `url`."""
    lag = Lag(url)
    server = await asyncio.start_server(lag.serve, "127.0.0.1", 0)
    lag.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield lag
    finally:
        lag.end()
        server.close()
