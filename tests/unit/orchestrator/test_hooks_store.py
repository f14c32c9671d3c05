"""The contract of HookStore, over the store in memory and over Valkey, alone and in cluster mode, in plain text and sealed."""

from dataclasses import replace

import pytest
import pytest_asyncio

from services.common import testing
from services.common.envelope import opened_envelope
from services.common.errors import Conflict, Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters.erasure_store import ValkeyErasures
from services.orchestrator.adapters.hook_store import ValkeyHooks
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.erasure_records import ErasureRef
from services.orchestrator.hooks.records import Hook
from services.orchestrator.testing.harness import root_keys
from services.orchestrator.testing.memory_hooks import MemoryHooks
from services.orchestrator.webhooks.rotation import Secret

TENANT = "a}b{c/ü %"
SECRET = "whsec_" + "A" * 32


def hook(number=1, user="ana {}", tenant=TENANT, **fields):
    owner = testing.principal_of(tenant, user)
    return Hook(f"hk_{number:032x}", "quick", owner.as_dict(), (Secret(SECRET),), number, **fields)


class Place:
    """A store as two processes see it, and how the erasure of a user begins there."""

    def __init__(self, one, two, erase, client=None):
        self.one, self.two, self.erase, self.client = one, two, erase, client


@pytest_asyncio.fixture(params=["memory", "valkey", "cluster", "sealed"])
async def place(request, tmp_path):
    if request.param == "memory":
        store = MemoryHooks()

        async def erase(user):
            store.erasing.add((TENANT, user))

        yield Place(store, store, erase)
        return
    server = "_cluster_server" if request.param == "cluster" else "_state_server"
    client = connect(request.getfixturevalue(server), timeout_s=testing.PATIENCE_S)
    await client.flushdb()
    await client.function_flush()
    sealing = Sealing(opened_envelope(client, root_keys(tmp_path))) if request.param == "sealed" else None
    erasures = ValkeyErasures(client, "one")

    async def begin(user):
        await erasures.begin(ErasureRef(TENANT, "era_1"), user, "digest", "print")

    yield Place(ValkeyHooks(client, "one", sealing=sealing), ValkeyHooks(client, "two", sealing=sealing), begin, client)
    await client.aclose()


async def test_a_hook_is_kept_once_and_found_by_its_id_alone(place):
    made = hook(thread_id="t", instructions="Ü\0", description="d", by="k")
    assert await place.one.add(TENANT, made, 5) == "new"
    assert await place.two.add(TENANT, hook(description="other"), 5) == "existing"
    for found in (await place.two.find(made.hook_id), await place.two.get(TENANT, made.hook_id)):
        assert found == made
    assert await place.one.find(hook(2).hook_id) is None
    assert await place.one.get("other", made.hook_id) is None
    assert abs(await place.one.now_ms() - await place.two.now_ms()) < 60_000


async def test_a_tenant_has_so_many_and_they_are_listed_by_age(place):
    for number in (3, 1, 2):
        assert await place.one.add(TENANT, hook(number), 3) == "new"
    assert await place.two.add(TENANT, hook(4), 3) == "full"
    assert await place.one.find(hook(4).hook_id) is None
    assert await place.one.add("other", hook(5, tenant="other"), 3) == "new"
    assert [one.created_ms for one in await place.two.of_tenant(TENANT)] == [1, 2, 3]
    assert await place.two.of_tenant("nobody") == []


async def test_a_change_is_made_to_what_was_read_and_to_nothing_else(place):
    await place.one.add(TENANT, hook(), 5)
    read, same = await place.one.find(hook().hook_id), await place.two.find(hook().hook_id)
    after = replace(read, secrets=(Secret("whsec_new", by="r"), Secret(SECRET, 9)))
    assert await place.one.replace(TENANT, read, after)
    assert not await place.two.replace(TENANT, same, replace(same, description="late"))
    assert (await place.two.find(read.hook_id)).secrets == after.secrets
    assert await place.two.remove(TENANT, read.hook_id)
    now_gone = await place.one.replace(TENANT, after, read)
    assert not now_gone
    assert await place.one.find(read.hook_id) is None


async def test_a_removed_hook_is_nowhere(place):
    await place.one.add(TENANT, hook(), 5)
    assert not await place.two.remove("other", hook().hook_id)
    assert await place.two.remove(TENANT, hook().hook_id)
    assert not await place.one.remove(TENANT, hook().hook_id)
    assert (await place.one.find(hook().hook_id), await place.one.of_tenant(TENANT)) == (None, [])
    if place.client is not None:
        assert not await place.client.keys("*hook*"), "no key is left of it"


async def test_a_users_hooks_go_and_come_no_more_while_they_are_erased(place):
    for number, user in ((1, "ana {}"), (2, "bob"), (3, "ana {}")):
        await place.one.add(TENANT, hook(number, user), 5)
    await place.erase("ana {}")
    with pytest.raises(Conflict) as error:
        await place.two.add(TENANT, hook(4), 5)
    assert error.value.reason == "SUBJECT_BEING_ERASED"
    assert await place.two.remove_of(TENANT, "ana {}") == 2
    assert await place.one.remove_of(TENANT, "ana {}") == 0
    assert [one.created_ms for one in await place.one.of_tenant(TENANT)] == [2]
    assert [await place.one.find(hook(number).hook_id) for number in (1, 3, 4)] == [None] * 3


async def test_what_is_stored_names_its_version_and_what_is_sealed_shows_nothing(either, tmp_path):
    plain, sealed = ValkeyHooks(either, "one"), ValkeyHooks(either, "one", sealing=Sealing(opened_envelope(either, root_keys(tmp_path))))
    await plain.add(TENANT, hook(1), 5)
    await sealed.add(TENANT, hook(2, instructions="private words"), 5)
    first, second = [value for key in await either.keys("tn:*hooks-in") for value in sorted((await either.hgetall(key)).items())]
    assert b'"schema_version":1' in first[1]
    assert not any(words in second[1] for words in (b"whsec_", b"private", b"ana", b"quick"))
    for number in (1, 2):
        assert await either.hget(f"hook:{{{hook(number).hook_id}}}", "schema_version") == b"1"
    # Of the version before, which had no keys; and both are found by who has them.
    assert [one.created_ms for one in await sealed.of_tenant(TENANT)] == [1, 2]


async def test_a_hook_whose_key_is_destroyed_is_not_there_and_is_cleared_away(valkey, tmp_path):
    envelope = opened_envelope(valkey, root_keys(tmp_path))
    store = ValkeyHooks(valkey, "one", sealing=Sealing(envelope))
    await store.add(TENANT, hook(1), 5)
    await store.add(TENANT, hook(2, "bob"), 5)
    await envelope.erase(TENANT, "ana {}")
    assert await store.find(hook(1).hook_id) is None
    assert [one.created_ms for one in await store.of_tenant(TENANT)] == [2]
    assert await store.remove_of(TENANT, "nobody") == 1
    assert await valkey.keys(f"*{hook(1).hook_id}*") == []


async def test_a_hook_whose_remover_was_lost_midway_is_removed_by_the_next(either, monkeypatch):
    one, two = ValkeyHooks(either, "one"), ValkeyHooks(either, "two")
    await one.add(TENANT, hook(), 5)
    durable, done = one._durable, []

    async def until_lost(name, *args):
        if done:
            raise Overloaded("the store is away")
        done.append(name)
        return await durable(name, *args)

    monkeypatch.setattr(one, "_durable", until_lost)
    with pytest.raises(Overloaded):
        await one.remove(TENANT, hook().hook_id)
    assert await two.find(hook().hook_id) is None, "it answers nothing any more"
    assert await two.remove(TENANT, hook().hook_id)
    assert not await either.keys("*hook*"), "no key is left of it"
