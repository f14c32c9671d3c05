"""A key that may read runs, and nothing else, reads logs and goes on with streams: before an orchestrator that is really one."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import PermissionDenied
from services.common.rpc import context as call_context
from services.gateway.fake_log import FakeLog
from services.gateway.fake_orchestrator import FakeOrchestrator
from services.gateway.fakes import frames_of
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration.real_gateway import answered, gateway_before


@pytest.fixture
def settings(identities, behind, state_url, tmp_path):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"))


async def seqs(response) -> list[int]:
    async with response as answer:
        assert answer.status == 200, await answer.text()
        found = await frames_of(answer, lambda frames: frames[-1][1] == "run_finished")
    return [seq for seq, _, _ in found]


async def test_each_route_of_the_log_reads_and_goes_on(identities, settings, state_url):
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        run = await client.wait((await client.start("say one two", thread_id="t")).run_id)
        http = await people.session(scopes=("runs:read",))
        log = [event.seq for event in await client.log(run.run_id)]
        assert len(log) > 3
        for route in (f"/v1/runs/{run.run_id}/events", "/v1/threads/t/events"):
            assert await seqs(http.get(route)) == log
            assert await seqs(http.get(route, headers={"last-event-id": str(log[1])})) == log[2:]
            assert await seqs(http.get(f"{route}?after={log[1]}")) == log[2:]
        whole = await answered(http.get("/replay/t"), 200)
        assert [event["seq"] for event in whole["events"]] == log
        rest = await answered(http.get("/replay/t", headers={"last-event-id": str(log[1])}), 200)
        assert [event["seq"] for event in rest["events"]] == log[2:]
        found = await answered(http.get("/v1/threads/t/snapshot"), 200)
        assert (found["thread"]["thread_id"], found["resume_after"]) == ("t", log[-1])
        told = await answered(http.get("/v1/threads/t"), 403)
        assert told["missing_scopes"] == "threads:read"


SCOPES = [(("runs:read",), True), (("threads:read",), True), (("*",), True), (("runs:write", "threads:write"), False)]


async def shown(may, ask):
    """Whether `ask` is answered with the thread, or with the one scope that is named to whoever has neither."""
    request = pb.GetThreadRequest(thread_id="t")
    if may:
        assert (await ask(request)).thread.thread_id == "t"
        return
    with pytest.raises(PermissionDenied) as refused:
        await ask(request)
    assert refused.value.metadata["missing_scopes"] == "threads:read"


async def test_a_thread_is_shown_to_whoever_may_read_threads_or_runs(identities, settings):
    async with served(settings, identities) as client:
        await client.start("say one", thread_id="t")
        for scopes, may in SCOPES:
            with testing.calling(identities, testing.principal_of(scopes=scopes)):
                await shown(may, client.threads.GetThread)


@pytest.mark.parametrize(("scopes", "may"), SCOPES)
async def test_the_fake_asks_for_the_same(scopes, may):
    log = FakeLog()
    log.make_thread("acme", "t")
    with call_context.bind(call_context.CallContext(principal=testing.principal_of(scopes=scopes))):
        await shown(may, lambda request: FakeOrchestrator(log).GetThread(request, None))
