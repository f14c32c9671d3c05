"""A network that loses its ways between three servers of the store, their three sentinels, and the orchestrators.

Each server has a sentinel beside it, two of which must agree. Whoever is left with fewer gets nothing acknowledged; the others go on, with
another primary where they need one. When the network is whole again there is one history: nothing that was acknowledged is lost, runs
and writes of all other kinds. What was seen stands in docs/durability.md.
"""

import asyncio
import time

import pytest

from scripts import chaos_load
from services.orchestrator.testing.replica_set import replica_set
from tests.system.store_trial import another_primary, trial, whole

pytestmark = [pytest.mark.system, pytest.mark.timeout(170)]
# Longer than a primary takes writes that no replica has acknowledged lately.
LASTS_S = 3.0


@pytest.fixture(autouse=True)
def judged_soon(monkeypatch):
    """No process stands still here, so no write comes late."""
    monkeypatch.setattr(chaos_load, "JUDGED_AFTER_S", 2.0)


@pytest.fixture
def members(tmp_path):
    """The first node is the primary."""
    with replica_set(tmp_path / "set", sentinels=3, clients=["one", "two"]) as made:
        yield made


def tried_on(members, identities, folder):
    return trial(identities, members.urls, folder, others=True, state_replicas=1)


def stays(members, node):
    """That no other one became the primary."""
    assert members.primary() is node


async def test_the_primary_and_an_orchestrator_on_the_smaller_side(identities, members, tmp_path):
    lost = members.nodes[0]
    async with tried_on(members, identities, tmp_path) as tried:
        began = time.monotonic()
        with tried.asked_at(tried.replicas[1]):
            members.network.part({"n0", "s0", "one"})
            async with tried.accepts_none(tried.one):
                await another_primary(members, lost)
                promoted_s = time.monotonic() - began
                await tried.accepts_at(tried.two)
                accepted_s = time.monotonic() - began
                await asyncio.sleep(LASTS_S)
                assert lost.info()["role"] == "master", "nobody can have told it"
            members.network.heal()
            healed = time.monotonic()
            await tried.accepts_at(tried.one)
            both_s = time.monotonic() - healed
            print(f"promoted {promoted_s:.1f} s, accepted {accepted_s:.1f} s after the cut; at both {both_s:.1f} s after it was mended")
            await whole(members)
        assert members.primary() is not lost
        await tried.accepts()


async def test_a_replica_on_its_own_and_one_whose_answers_are_lost(identities, members, tmp_path):
    primary, replica, other = members.nodes
    async with tried_on(members, identities, tmp_path) as tried:
        members.network.part({"n1", "s1"})
        await tried.accepts()
        await asyncio.sleep(LASTS_S)
        for client in (tried.one, tried.two):
            await tried.accepts_at(client)
        members.network.heal()
        await whole(members)
        # It gets what is written and cannot say so; its word is not needed while the other one's is heard.
        members.network.cut({replica.name}, {primary.name})
        await asyncio.sleep(LASTS_S)
        await tried.accepts()
        members.network.cut({other.name}, {primary.name})
        async with tried.accepts_none(tried.one), tried.accepts_none(tried.two):
            await asyncio.sleep(LASTS_S)
        members.network.heal()
        await tried.accepts()
        await whole(members)
        stays(members, primary)


async def test_sentinels_that_hear_nothing_of_each_other(identities, members, tmp_path):
    lost = members.nodes[0]
    async with tried_on(members, identities, tmp_path) as tried:
        alone = [{"s0"}, {"s1"}, {"s2"}]
        for one in alone:
            for other in alone:
                if one != other:
                    members.network.cut(one, other)
        await asyncio.sleep(LASTS_S)
        await tried.accepts()
        lost.process.kill()
        async with tried.accepts_none(tried.one), tried.accepts_none(tried.two):
            # Each of them knows, and none has the others' vote.
            await asyncio.sleep(LASTS_S)
            stays(members, lost)
        members.network.heal()
        await another_primary(members, lost)
        await tried.accepts()
        await asyncio.to_thread(lost.start)
        await whole(members)


async def test_a_primary_that_reaches_its_replicas_and_that_no_client_reaches(identities, members, tmp_path):
    primary = members.nodes[0]
    async with tried_on(members, identities, tmp_path) as tried:
        members.network.cut({"one"}, {"n0"})
        async with tried.accepts_none(tried.one):
            await tried.accepts_at(tried.two)
            await asyncio.sleep(LASTS_S)
        members.network.heal()
        await tried.accepts_at(tried.one)
        stays(members, primary)
        # Nor does a sentinel: another one is promoted while it is still at work, with nobody who asks anything of it.
        members.network.cut({"one", "two", "s0", "s1", "s2"}, {"n0"})
        await another_primary(members, primary)
        assert primary.info()["role"] == "master"
        for client in (tried.one, tried.two):
            await tried.accepts_at(client)
        members.network.heal()
        await whole(members)
        await tried.accepts()
    assert await asyncio.to_thread(primary.info)
