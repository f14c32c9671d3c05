"""A run that was accepted and owned in one step, and that too few replicas took."""

import pytest

from services.common.errors import Overloaded
from services.orchestrator.adapters.store import Store
from services.orchestrator.testing.runs import CANCELLED, QUEUED, new_ref, spec

LEASE_S, CRASHES = 60.0, 3


@pytest.mark.parametrize("on_busy", ["", "reject"])
async def test_it_is_nobodys_and_has_lost_no_owner(valkey, on_busy):
    store = Store(valkey, "one", 1)
    ref = new_ref()
    reservation = await store.reserve(ref, "ana", 0, "", "")
    with pytest.raises(Overloaded):
        await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED), LEASE_S, on_busy)
    # There is no replica to wait for; whoever claims it does not wait.
    other = Store(valkey, "two")
    assert (await other.run(ref)).status == "queued"
    claim = await other.claim(ref, LEASE_S, CRASHES)
    assert (claim.verdict, claim.record.crashes) == ("claimed", 0)
