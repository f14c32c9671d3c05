"""Runs that wait, as callers see them: a queue with places, starts that lie ahead, priorities."""

import time
from collections import Counter

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.errors import InvalidInput, Overloaded, QuotaExceeded
from services.orchestrator.adapters.store import Store
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config

OK, QUEUED, RUNNING, CANCELLED = pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_QUEUED, pb.RUN_STATUS_RUNNING, pb.RUN_STATUS_CANCELLED
POLICIES = "sets: {test: {free: {concurrent_runs: 1, queued_runs: 2, delayed_runs: 1}, enterprise: {}}}"


@pytest.fixture
def settings(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    (config / "policies.yaml").write_text(POLICIES)
    return settings_for(identities, behind, state_url, config)


@pytest.fixture
def caller(identities, settings):
    return lambda: served(settings, identities, testing.principal_of(tier="free"))


def ahead(seconds):
    at = Timestamp()
    at.FromMilliseconds(int((time.time() + seconds) * 1000))
    return at


async def test_runs_beyond_the_limit_wait_with_a_place_and_start_in_turn(caller, behind):
    async with caller() as client:
        behind.models.gate.close()
        first = await client.start("say one and more")
        second = await client.start("say two and more")
        urgent = await client.start("say three and more", priority=5)
        assert (first.status, second.status, urgent.status) == (RUNNING, QUEUED, QUEUED)
        assert [run.queue_position for run in (first, second, urgent)] == [0, 1, 1]
        assert (await client.get(second.run_id)).queue_position == 2
        with pytest.raises(QuotaExceeded) as caught:
            await client.start("say four and more")
        assert caught.value.metadata["policy"] == "queued_runs"
        assert caught.value.retry_after_s >= 1.0
        (queued,) = await client.log(second.run_id)
        assert (queued.type, data_of(queued)["queue_position"]) == ("run_queued", 1)
        behind.models.gate.open()
        ended = [await client.wait(run.run_id) for run in (first, urgent, second)]
        assert [run.status for run in ended] == [OK] * 3
        starts = [run.started_at.ToMilliseconds() for run in ended]
        assert starts == sorted(starts)
        assert {run.queue_position for run in ended} == {0}
        assert (await client.wait((await client.start("say five")).run_id)).output_text == "five"


async def test_a_run_that_was_accepted_is_answered_although_the_store_then_goes_away(caller, behind, monkeypatch):
    async def away(*args, **kwargs):
        raise Overloaded("away", reason="STORE_UNAVAILABLE")

    async with caller() as client:
        behind.models.gate.close()
        first = await client.start("say one and more")
        with monkeypatch.context() as lost:
            for name in ("place", "wake", "settle"):
                lost.setattr(Store, name, away)
            second = await client.start("say two and more")
            assert (second.status, second.queue_position) == (QUEUED, 0)
            await client.cancel("run_early")
            third = await client.start("say three", run_id="run_early")
            assert third.status == CANCELLED
        assert (await client.get(second.run_id)).queue_position == 1
        behind.models.gate.open()
        assert [(await client.wait(run.run_id)).status for run in (first, second)] == [OK] * 2


async def test_a_waiting_run_that_is_cancelled_gives_its_place_up(caller, behind):
    async with caller() as client:
        behind.models.gate.close()
        first, second, third = [await client.start(f"say {word} and more") for word in ("one", "two", "three")]
        assert (await client.cancel(second.run_id)).run.status == CANCELLED
        assert (await client.get(third.run_id)).queue_position == 1
        fourth = await client.start("say four and more")
        assert fourth.queue_position == 2
        behind.models.gate.open()
        for run in (first, third, fourth):
            assert (await client.wait(run.run_id)).status == OK


async def test_a_delayed_run_starts_at_its_time_over_a_restart(caller):
    async with caller() as client:
        run = await client.start("say later", start_at=ahead(1.5))
        assert (run.status, run.queue_position) == (QUEUED, 0)
        with pytest.raises(QuotaExceeded) as caught:
            await client.start("say later", start_at=ahead(60))
        assert caught.value.metadata["policy"] == "delayed_runs"
        now = await client.start("say now")
        assert (await client.wait(now.run_id)).status == OK
        assert (await client.get(run.run_id)).status == QUEUED
    async with caller() as client:
        ended = await client.wait(run.run_id)
        assert (ended.status, ended.output_text) == (OK, "later")
        assert ended.started_at.ToMilliseconds() >= ended.start_at.ToMilliseconds() == run.start_at.ToMilliseconds()
        assert types(await client.log(run.run_id))[:2] == ["run_queued", "run_started"]


async def test_a_delayed_run_is_cancelled_at_once_and_one_of_the_past_starts_at_once(caller):
    async with caller() as client:
        run = await client.start("say later", start_at=ahead(3600))
        cancelled = (await client.cancel(run.run_id)).run
        assert (cancelled.status, cancelled.attempt) == (CANCELLED, 0)
        assert types(await client.log(run.run_id)) == ["run_queued", "run_cancelled"]
        past = await client.start("say now", start_at=ahead(-3600))
        assert past.status == RUNNING
        assert (await client.wait(past.run_id)).status == OK


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", 11), ("priority", -11), ("start_at", ahead(400 * 86_400))],
)
async def test_priorities_and_starts_out_of_bounds_are_refused(caller, field, value):
    async with caller() as client:
        with pytest.raises(InvalidInput) as caught:
            await client.start("say hi", **{field: value})
        assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_run_does_not_slip_past_those_that_wait_for_the_same_room(identities, behind, state_url, settings):
    small = settings.model_copy(update={"max_active_runs": 1})
    async with served(small, identities, testing.principal_of(tier="enterprise")) as client:
        behind.models.gate.close()
        first = await client.start("say zero and more")
        waiting = [await client.start(f"say {word} and more") for word in ("one", "two", "three")]
        assert [run.status for run in (first, *waiting)] == [RUNNING, *[QUEUED] * 3]

        async def in_line():
            return [(await client.get(run.run_id)).queue_position for run in waiting] == [1, 2, 3]

        await testing.eventually_async(in_line, "what a full replica took by mistake is back in its place")
        behind.models.gate.open()
        late = [await client.start("say late and more") for _ in range(5)]
        ended = [await client.wait(run.run_id) for run in (first, *waiting, *late)]
        starts = [run.started_at.ToMilliseconds() for run in ended]
        assert starts == sorted(starts)


async def test_a_tenant_that_offers_fifty_times_as_much_leaves_others_their_service(identities, behind, settings):
    """Jain's index of what the others get of the workers, of which there are few, while the flood goes on."""
    workers, others, each = 4, [f"tenant-{number}" for number in range(5)], 8
    async with served(settings.model_copy(update={"max_active_runs": workers}), identities) as client:

        async def offer(tenant, count):
            client.principal = testing.principal_of(tenant)
            return [await client.start("say one and more") for _ in range(count)]

        async def starts(tenant):
            client.principal = testing.principal_of(tenant)
            with client.calling():
                runs = (await client.runs.ListRuns(pb.ListRunsRequest(page_size=1000))).runs
            return [(run.started_at.ToMilliseconds(), tenant) for run in runs if run.HasField("started_at")]

        behind.models.gate.close()
        await offer("greedy", each * 50)
        runs = [(tenant, run) for tenant in others for run in await offer(tenant, each)]
        behind.models.gate.open()
        for tenant, run in runs:
            client.principal = testing.principal_of(tenant)
            assert (await client.wait(run.run_id)).status == OK
        started = sorted([start for tenant in ("greedy", *others) for start in await starts(tenant)])
        # What was taken before anybody else was there is nobody's share; then turns go round until the others have had theirs.
        service = Counter(tenant for _, tenant in started[workers : workers + (len(others) + 1) * (each - 1)])
        shares = [service[tenant] for tenant in others]
        assert all(shares), service
        assert sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares)) >= 0.95, service
        assert service["greedy"] <= each + 1, service
