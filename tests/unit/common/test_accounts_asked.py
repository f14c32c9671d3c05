"""Changes of keys that somebody asks for: in one step with what allows them, once under a key, and no secret left behind."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from services.common import testing
from services.common.accounts import Accounts, Asked, DoneBefore, KeyRecord, digest_of
from services.common.accounts import _asked as inner
from services.common.accounts._records import decode, encode
from services.common.errors import Conflict, IdempotencyMismatch, NotFound, Overloaded, PermissionDenied, Unauthenticated

WANTED = KeyRecord("", "acme", "ana", tier="pro", scopes=("runs:read",), name="ci")


def anything(own, key):
    """Allows."""


def asked_by(issued, **more):
    return Asked(**{"tenant": "acme", "allow": anything, "key_id": issued.record.key_id, "digest": digest_of(issued.secret), **more})


@pytest.fixture
async def accounts(valkey):
    return Accounts(valkey)


@pytest.fixture
async def own(accounts):
    return await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=("keys:write",))


async def test_what_was_asked_for_once_is_done_once_and_no_secret_of_it_is_kept(accounts, own, valkey):
    asked = asked_by(own, once="o1", print_="p")
    made = await asyncio.gather(*(accounts.keys.create(WANTED, asked=asked) for _ in range(6)), return_exceptions=True)
    (first,) = [one for one in made if not isinstance(one, DoneBefore)]
    assert {one.key_id for one in made if isinstance(one, DoneBefore)} == {first.record.key_id}
    assert {one.key_id for one in await accounts.list_keys("acme")} == {own.record.key_id, first.record.key_id}
    with pytest.raises(IdempotencyMismatch):
        await accounts.keys.create(WANTED, asked=replace(asked, print_="q"))
    rotated = await accounts.keys.rotate(first.record.key_id, "acme", asked=replace(asked, once="o2"))
    with pytest.raises(DoneBefore):
        await accounts.keys.rotate(first.record.key_id, "acme", asked=replace(asked, once="o2"))
    await accounts.resolve(rotated.secret)
    kept = b""
    for name in await valkey.keys("*"):
        kept += name + (await valkey.get(name) if await valkey.type(name) == b"string" else b"".join(await valkey.smembers(name)))
    assert b"acct:once:" in kept
    for issued in (first, rotated):
        assert issued.secret.removeprefix("bh_").encode() not in kept
    assert 86_000 < await valkey.ttl("acct:once:acme:o1") <= 86_400


async def test_what_is_refused_is_not_done_and_leaves_its_name_free(accounts, own):
    def never(own, key):
        raise PermissionDenied("no")

    asked = asked_by(own, once="o", print_="p", allow=never)
    for call in (
        lambda: accounts.keys.create(WANTED, asked=asked),
        lambda: accounts.keys.rotate(own.record.key_id, "acme", asked=asked),
        lambda: accounts.keys.update(own.record.key_id, "acme", lambda key: replace(key, name="x"), asked=asked),
        lambda: accounts.keys.delete(own.record.key_id, "acme", asked=asked),
    ):
        with pytest.raises(PermissionDenied):
            await call()
    assert await accounts.list_keys("acme") == [own.record]
    await accounts.resolve(own.secret)
    assert (await accounts.keys.create(WANTED, asked=asked_by(own, once="o", print_="other"))).secret


async def test_a_key_that_ends_while_it_asks_has_made_nothing(accounts, own, monkeypatch):
    # Between its admission and the write: in the middle of the step itself.
    ended, admitted = [], inner.admitted

    async def late(pipeline, asked):
        found = await admitted(pipeline, asked)
        if not ended:
            ended.append(await accounts.keys.delete(own.record.key_id, "acme"))
        return found

    monkeypatch.setattr("services.common.accounts._keys.admitted", late)
    with pytest.raises(Unauthenticated):
        await accounts.keys.create(WANTED, asked=asked_by(own))
    assert await accounts.list_keys("acme") == []


@pytest.mark.parametrize("change", [{"blocked": True}, {"expires_at": 1.0}])
async def test_a_key_that_is_blocked_or_over_changes_nothing(accounts, own, change):
    await accounts.keys.update(own.record.key_id, "acme", lambda key: replace(key, **change))
    with pytest.raises(Unauthenticated):
        await accounts.keys.create(WANTED, asked=asked_by(own))
    with pytest.raises(Unauthenticated):
        await accounts.keys.rotate(own.record.key_id, "acme", asked=asked_by(own))


async def test_the_key_of_another_tenant_changes_nothing_in_this_one(accounts):
    other = await accounts.create_key(tenant="globex", user="ana", tier="pro", scopes=())
    with pytest.raises(Unauthenticated):
        await accounts.keys.create(WANTED, asked=asked_by(other))


async def test_a_secret_that_was_replaced_gets_nothing_that_outlives_it(accounts, own):
    rotated = await accounts.keys.rotate(own.record.key_id, "acme", grace=timedelta(hours=1), asked=asked_by(own))
    assert (await accounts.resolve(own.secret)).key_id == own.record.key_id
    for call in (
        lambda: accounts.keys.create(WANTED, asked=asked_by(own)),
        lambda: accounts.keys.rotate(own.record.key_id, "acme", asked=asked_by(own)),
    ):
        with pytest.raises(PermissionDenied) as refused:
            await call()
        assert refused.value.reason == "SECRET_REPLACED"
    await accounts.keys.create(WANTED, asked=asked_by(rotated))


async def test_a_new_secret_without_a_grace_ends_all_that_were_before(accounts, own, valkey):
    listening = Accounts(valkey)
    await listening.start()
    key_id, hour = own.record.key_id, timedelta(hours=1)
    second = await accounts.keys.rotate(key_id, "acme", grace=hour)
    third = await accounts.keys.rotate(key_id, "acme", grace=hour)
    assert set(third.record.earlier) == {digest_of(own.secret), digest_of(second.secret)}
    for issued in (own, second, third):
        await listening.resolve(issued.secret)
    last = await accounts.keys.rotate(key_id, "acme")
    assert last.record.earlier == {}

    async def refused():
        found = []
        for issued in (own, second, third):
            try:
                await listening.resolve(issued.secret)
            except Unauthenticated as error:
                found.append(error.reason)
        return found == ["INVALID_API_KEY"] * 3

    await testing.eventually_async(refused, "only the last secret is left")
    assert (await listening.resolve(last.secret)).key_id == key_id
    await listening.stop()


async def test_of_earlier_secrets_only_those_that_still_work_are_remembered(accounts, own):
    await accounts.keys.rotate(own.record.key_id, "acme", grace=timedelta(milliseconds=1))
    await asyncio.sleep(0.01)
    second = await accounts.keys.rotate(own.record.key_id, "acme", grace=timedelta(hours=1))
    assert len(second.record.earlier) == 1


async def test_what_no_replica_has_is_undone_and_may_be_asked_for_again(pair):
    primary, _, process = pair
    stays, waits = Accounts(primary), Accounts(primary, 1)
    here = await stays.create_key(tenant="acme", user="ana", tier="pro", scopes=())
    asked = asked_by(here, once="o", print_="p")
    with process.standing_still(), pytest.raises(Overloaded):
        await waits.keys.create(WANTED, asked=asked)
    assert await stays.list_keys("acme") == [here.record]
    assert (await waits.keys.create(WANTED, asked=asked)).secret


async def test_a_tenant_has_no_more_keys_than_it_may(accounts, own, monkeypatch):
    monkeypatch.setattr("services.common.accounts._keys.MOST_KEYS", 2)
    made = await asyncio.gather(*(accounts.keys.create(WANTED, asked=asked_by(own)) for _ in range(4)), return_exceptions=True)
    assert sorted(one.reason for one in made if isinstance(one, Conflict)) == ["TOO_MANY_KEYS"] * 3
    # Whoever has the store itself is not bound.
    await accounts.keys.create(WANTED)


async def test_a_record_of_the_version_before_is_read_and_has_no_earlier_secrets(accounts, own):
    raw = encode(own.record).replace(b'"made_by":"",', b"").replace(b'"earlier":{},', b"").replace(b',"earlier":{}', b"")
    assert b"earlier" not in raw
    assert b"made_by" not in raw
    assert decode(KeyRecord, raw) == own.record


async def test_of_others_there_is_nothing_to_change(accounts, own):
    other = await accounts.create_key(tenant="globex", user="ana", tier="pro", scopes=())
    for call in (
        lambda: accounts.keys.rotate(other.record.key_id, "acme", asked=asked_by(own)),
        lambda: accounts.keys.delete(other.record.key_id, "acme", asked=asked_by(own)),
    ):
        with pytest.raises(NotFound):
            await call()
    await accounts.resolve(other.secret)
