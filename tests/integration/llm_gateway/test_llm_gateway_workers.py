"""Several processes on the model port: load is shared, one that dies is replaced, and none outlives the first."""

import asyncio
import re
import signal
import socket

import aiohttp
import psutil
import pytest
import yaml

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect

WORKERS = 2


class Fleet:
    """A gateway with workers, as a process."""

    def __init__(self, process: testing.Process, port: int, metrics: int, key: str) -> None:
        self.process, self.url, self.metrics, self.key = process, f"http://127.0.0.1:{port}", metrics, key

    @property
    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]

    async def ask(self) -> int:
        """The status of one request on a connection of its own, 0 for a connection that was refused or reset."""
        try:
            async with aiohttp.ClientSession(headers={"authorization": f"Bearer {self.key}"}) as http:
                async with http.get(self.url + "/v1/models") as answer:
                    await answer.read()
                    return answer.status
        except aiohttp.ClientError:
            return 0

    async def served(self) -> list[int]:
        """How many requests each process has served, by what its metrics port says; -1 for one that does not answer."""
        found = []
        async with aiohttp.ClientSession() as http:
            for number in range(WORKERS):
                try:
                    async with http.get(f"http://127.0.0.1:{self.metrics + number}/metrics") as answer:
                        text = await answer.text()
                except aiohttp.ClientError:
                    found.append(-1)
                    continue
                counts = re.findall(r'^bulkhead_http_server_duration_seconds_count\{.*route="/v1/models".*\} (\d+)', text, re.M)
                found.append(sum(int(float(count)) for count in counts))
        return found

    async def all_serve(self) -> None:
        async def asked() -> bool:
            await asyncio.gather(*(self.ask() for _ in range(12)))
            return min(await self.served()) > 0

        await testing.eventually_async(asked, "every worker serves", every_s=0.1)


@pytest.fixture
async def fleet(identities, state_url, tmp_path, sim, models):
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(models(sim.url)))
    http_port, grpc_port, metrics = testing.free_port(), testing.free_port(), testing.free_port_base(WORKERS)
    client = connect(state_url)
    issued = await Accounts(client).create_key(tenant="acme", user="ana", tier="enterprise", scopes=["*"])
    await client.aclose()
    environment = {
        "BULKHEAD_ENV": "test", "BULKHEAD_GRPC_PORT": str(grpc_port), "BULKHEAD_HTTP_PORT": str(http_port),
        "BULKHEAD_METRICS_PORT": str(metrics), "BULKHEAD_CONFIG_DIR": str(tmp_path), "BULKHEAD_STATE_URL": state_url,
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file), "BULKHEAD_HTTP_WORKERS": str(WORKERS), "BULKHEAD_DRAIN_GRACE_S": "60",
    }  # fmt: skip
    process = testing.Process(testing.python("-m", "services.llm_gateway"), env=environment, log=tmp_path / "gateway.log")
    try:
        testing.wait_for_port(http_port, process)
        made = Fleet(process, http_port, metrics, issued.secret)
        await made.all_serve()
        yield made
    finally:
        process.stop()


async def test_a_worker_that_is_killed_is_replaced_while_the_others_serve(fleet):
    first = fleet.workers
    assert len(first) == WORKERS - 1
    assert min(await fleet.served()) > 0
    first[0].kill()
    testing.eventually(lambda: not first[0].is_running() or first[0].status() == psutil.STATUS_ZOMBIE, "the worker is dead")
    statuses = [await fleet.ask() for _ in range(30)]
    assert statuses.count(200) == 30
    await testing.eventually_async(
        lambda: len(fleet.workers) == WORKERS - 1 and first[0].pid not in [w.pid for w in fleet.workers], "the worker is replaced"
    )
    await fleet.all_serve()
    assert '"event":"worker_ended"' in fleet.process.output()


async def test_all_drain_on_sigterm_and_streams_under_way_end_whole(fleet, sim):
    # Long enough for all of them to be under way at once, however slowly they begin, and shorter than the grace.
    await sim.order({"tokens_per_s": 40})
    body = {"model": "main", "stream": True, "messages": [{"role": "user", "content": "Write 300 words about ships."}]}
    workers = fleet.workers

    async def stream() -> bytes:
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {fleet.key}"}) as http:
            async with http.post(fleet.url + "/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                return await answer.read()

    streams = [asyncio.create_task(stream()) for _ in range(8)]

    async def under_way() -> bool:
        return await sim.in_flight() == len(streams)

    await testing.eventually_async(under_way, "all streams under way")
    fleet.process.signal(signal.SIGTERM)
    for whole in await asyncio.gather(*streams):
        assert whole.endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(fleet.process.wait) == 0
    testing.eventually(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), "no worker is left")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(fleet.url.rpartition(":")[2])))


async def test_no_worker_outlives_the_first_process(fleet):
    workers = fleet.workers
    fleet.process.signal(signal.SIGKILL)
    testing.eventually(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), "no worker is left")


def test_a_port_that_a_stranger_shares_is_still_taken(identities, state_url, tmp_path, models):
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(models("http://127.0.0.1:1")))
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        environment = {
            "BULKHEAD_ENV": "test", "BULKHEAD_GRPC_PORT": str(testing.free_port()), "BULKHEAD_CONFIG_DIR": str(tmp_path),
            "BULKHEAD_HTTP_PORT": str(stranger.getsockname()[1]), "BULKHEAD_METRICS_PORT": "0", "BULKHEAD_STATE_URL": state_url,
            "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file), "BULKHEAD_HTTP_WORKERS": "2",
        }  # fmt: skip
        process = testing.Process(testing.python("-m", "services.llm_gateway"), env=environment, log=tmp_path / "gateway.log")
        try:
            assert process.wait() == 1
            assert "BULKHEAD_HTTP_PORT" in process.output()
        finally:
            process.stop()
