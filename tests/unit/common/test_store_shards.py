"""A store whose keys are spread over several primaries: refused in plain words where it is met, and never worked with by halves."""

import json
import subprocess
from contextlib import ExitStack, contextmanager

import pytest
import redis
from redis.crc import key_slot

from services.cli.up.credentials import ensure_identity_keys, ensure_root_keys
from services.cli.up.environment import Wiring
from services.cli.up.plan import make_plan
from services.cli.up.workspace import Workspace
from services.common import embedded, testing
from services.common.accounts import Accounts
from services.common.errors import Overloaded
from services.common.limits import Bucket, TokenBuckets
from services.common.settings import StartRefused
from services.common.testing import ROOT, eventually
from services.common.valkey import SeveralShards, connect, ping, refuse_shards
from services.orchestrator.testing.stores import cluster_of_one

SLOTS = 16384


@contextmanager
def cluster(folder, shards):
    """URLs of the primaries of a real cluster, each with its share of the slots."""
    ports, buses = ([testing.free_port() for _ in range(shards)] for _ in range(2))
    with ExitStack() as stack:
        nodes = []
        for port, bus in zip(ports, buses, strict=True):
            (folder / str(port)).mkdir()
            command = [*embedded.valkey_state_command(port, folder / str(port)), "--cluster-enabled", "yes", "--cluster-port", str(bus)]
            process = testing.Process(command, log=folder / f"{port}.log")
            stack.callback(process.stop)
            testing.wait_for_port(port, process)
            nodes.append(stack.enter_context(redis.Redis(port=port)))
        for at, node in enumerate(nodes):
            node.execute_command("CLUSTER ADDSLOTSRANGE", SLOTS * at // shards, SLOTS * (at + 1) // shards - 1)
            # Without it the bus is looked for 10,000 above the port.
            nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", ports[at], buses[at])
        for node in nodes:
            told = lambda node=node: node.cluster("INFO")  # noqa: E731
            eventually(lambda told=told: (told()["cluster_state"], told()["cluster_size"]) == ("ok", str(shards)), "the cluster is formed")
        yield [f"redis://127.0.0.1:{port}/0" for port in ports]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as urls:
        yield urls


@pytest.fixture
async def client(shards):
    made = connect(shards[0])
    yield made
    await made.aclose()


async def test_several_shards_are_refused_at_the_start_and_are_never_ready(client):
    with pytest.raises(StartRefused) as refused:
        await refuse_shards(client)
    (problem,) = refused.value.problems
    assert problem.startswith("BULKHEAD_STATE_URL: the store is a cluster of 3 shards")
    with pytest.raises(SeveralShards) as told:
        await ping(client)
    assert told.value.shards == 3


async def test_who_meets_another_shard_while_it_works_is_told_that_the_store_is_away(client):
    """As where slots were moved to another server after the start: no defect of ours, and nothing is taken for done."""
    elsewhere = next(key for n in range(1_000) if key_slot((key := f"{{{n}}}:x").encode()) >= SLOTS // 3)
    with pytest.raises(Overloaded) as refused:
        await TokenBuckets(client).take([Bucket(elsewhere, 1, 60.0, "p")])
    assert refused.value.reason == "STORE_UNAVAILABLE"
    asked = {str(n): Accounts(client).list_keys(str(n)) for n in range(20)}
    found = {}
    for tenant, call in asked.items():
        try:
            found[tenant] = await call
        except Overloaded as error:
            found[tenant] = error.reason
    # Those of this shard are answered, all others are refused.
    assert [] in found.values()
    assert set(map(str, found.values())) == {"[]", "STORE_UNAVAILABLE"}


async def test_one_shard_is_a_store_like_any_other_and_one_that_is_away_is_told_by_readiness(state_url):
    with cluster_of_one() as url:
        for each in (url, state_url):
            made = connect(each)
            await refuse_shards(made)
            assert await ping(made)
            await made.aclose()
    away = connect(f"redis://127.0.0.1:{testing.free_port()}/0")
    await refuse_shards(away)
    await away.aclose()


async def test_who_may_not_ask_for_the_shape_of_the_store_may_use_it(valkey, state_url):
    await valkey.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-cluster", "-info")
    made = connect(state_url.replace("redis://", "redis://plain:secret@"))
    await refuse_shards(made)
    assert await ping(made)
    await made.aclose()
    await valkey.execute_command("ACL", "DELUSER", "plain")


@pytest.mark.system
@pytest.mark.parametrize("service", ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory"])
def test_no_service_starts_on_several_shards(shards, tmp_path, service):
    workspace = Workspace(tmp_path / "data")
    workspace.open()
    ensure_identity_keys(workspace.keys)
    ensure_root_keys(workspace.envelope_keys)
    workspace.addresses.write_text(json.dumps({}))
    wiring = Wiring(workspace, make_plan(port_base=testing.free_port_base()), ROOT / "k8s/environments/local/config", {}, None)
    planned = wiring.plan.first(service)
    env = {**wiring.variables(planned, planned.ports), "BULKHEAD_STATE_URL": shards[1], "PATH": "/usr/bin"}
    env.pop("BULKHEAD_CACHE_URL")
    ended = subprocess.run(wiring.command(planned, planned.ports), env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "BULKHEAD_STATE_URL: the store is a cluster of 3 shards" in ended.stderr
