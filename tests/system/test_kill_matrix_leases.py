"""One connection of an owner hangs: its leases are kept over the others, and nobody takes a run from it."""

from contextlib import aclosing

import pytest

from services.common.valkey import connect
from tests.system.kill_site import TALK, two_replicas

pytestmark = pytest.mark.system


async def test_a_heartbeat_that_hangs_on_its_way_costs_no_lease(identities, behind, state_url, tmp_path):
    # A connection is waited for 2 s.
    lease = {"lease_s": 1.8}
    async with two_replicas(identities, behind, state_url, tmp_path, first=lease) as site, aclosing(connect(state_url)) as store:
        runs = [f"kept-{number}" for number in range(3)]
        for run_id in runs:
            await site.streaming(run_id)
        # The pipeline with the heartbeats of all.
        hung = site.first.proxy.hold(b"run_beat_v1", once=True)
        await hung.reached()
        following = site.first.proxy.hold(b"run_beat_v1", f":run:{runs[-1]}\r".encode(), once=True)
        await following.reached()
        seconds, micros = await store.time()
        for run_id in runs:
            lease_until = await store.hget(f"t:{{acme/{site.threads[run_id]}}}:run:{run_id}", "lease_until")
            assert int(lease_until) > seconds * 1000 + micros // 1000
        following.release()
        hung.release()
        for run_id in runs:
            site.models.of(run_id).open()
            run = await site.ended(run_id)
            assert (run.output_text, run.attempt) == (TALK, 1)
        await site.judge()
