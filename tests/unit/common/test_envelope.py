"""Envelope: sealed per subject, opened by whoever has the root key, unreadable once the subject's key is destroyed."""

import base64
import json
import os
import time
from asyncio import gather

import pytest
import pytest_asyncio

from services.common.envelope import Envelope, RootKeys, is_sealed
from services.common.errors import Internal, Overloaded
from services.common.testing import eventually_async
from services.common.valkey import connect

ROOTS = {name: base64.b64encode(os.urandom(32)).decode() for name in ("old", "new", "other")}


def key_file(path, *names):
    path.write_text(json.dumps({"keys": [{"id": name, "key": ROOTS[name]} for name in names]}))
    return path


@pytest_asyncio.fixture
async def client(state_url):
    made = connect(state_url)
    yield made
    await made.aclose()


@pytest.fixture
def roots(tmp_path):
    return RootKeys.from_file(key_file(tmp_path / "roots.json", "old"))


@pytest.fixture
def envelope(client, roots):
    return Envelope(client, roots)


async def test_what_is_sealed_opens_for_another_process_and_is_nowhere_in_the_store(client, roots, envelope):
    sealed = await envelope.seal("acme", "ana", "event", b'{"text": "swordfish"}')
    assert is_sealed(sealed)
    assert b"swordfish" not in sealed
    assert await Envelope(client, roots).open("acme", "event", sealed) == b'{"text": "swordfish"}'
    assert await envelope.open("acme", "event", b'{"plain": 1}') == b'{"plain": 1}'
    names = b"".join([name + await client.dump(name) for name in await client.keys("*")])
    assert b"ana" not in names


async def test_an_erased_key_opens_nothing_and_others_stay(client, roots, envelope):
    other = Envelope(client, roots, max_age_s=0.2)
    mine, yours = await envelope.seal("acme", "ana", "event", b"m"), await envelope.seal("acme", "bob", "event", b"y")
    elsewhere = await envelope.seal("zeta", "ana", "event", b"e")
    assert await other.open("acme", "event", mine) == b"m"
    assert await envelope.erase("acme", "ana") == 1
    assert await envelope.open("acme", "event", mine) is None
    deadline = time.monotonic() + 5
    while await other.open("acme", "event", mine) is not None:
        assert time.monotonic() < deadline
    assert await other.open("acme", "event", yours) == b"y"
    assert await other.open("zeta", "event", elsewhere) == b"e"
    assert await envelope.erase("acme", "ana") == 0
    anew = await envelope.seal("acme", "ana", "event", b"again")
    assert await envelope.open("acme", "event", anew) == b"again"
    assert await envelope.open("acme", "event", mine) is None


async def test_what_was_moved_or_changed_does_not_open(envelope):
    sealed = await envelope.seal("acme", "ana", "event", b"x")
    with pytest.raises(Internal, match="not what was written"):
        await envelope.open("acme", "message", sealed)
    with pytest.raises(Internal, match="not what was written"):
        await envelope.open("acme", "event", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    # In the table of another tenant there is no such key.
    assert await envelope.open("zeta", "event", sealed) is None


async def test_root_keys_overlap_and_the_old_one_can_go(client, tmp_path, envelope):
    sealed = await envelope.seal("acme", "ana", "event", b"x")
    both = Envelope(client, RootKeys.from_file(key_file(tmp_path / "both.json", "new", "old")))
    assert await both.open("acme", "event", sealed) == b"x"
    alone = Envelope(client, RootKeys.from_file(key_file(tmp_path / "alone.json", "new")))
    with pytest.raises(Overloaded) as missing:
        await alone.open("acme", "event", sealed)
    assert missing.value.reason == "ENVELOPE_KEY_MISSING"
    assert await both.rewrap() == 1
    assert await both.rewrap() == 0
    assert await alone.open("acme", "event", sealed) == b"x"


async def test_two_processes_that_make_a_key_at_once_make_one(client, roots):
    envelopes = [Envelope(client, roots) for _ in range(8)]
    sealed = await gather(*(e.seal("acme", "ana", "event", b"%d" % n) for n, e in enumerate(envelopes)))
    assert len({blob[1:17] for blob in sealed}) == 1
    assert await gather(*(envelopes[0].open("acme", "event", blob) for blob in sealed)) == [b"%d" % n for n in range(8)]


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', '{"keys": [{"id": "a", "key": "c2hvcnQ="}]}', '{"keys": [{"id": "a"}]}'])
def test_a_file_that_holds_no_keys_is_refused_by_name(tmp_path, content):
    path = tmp_path / "roots.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"roots\.json"):
        RootKeys.from_file(path)


async def test_a_tenant_whose_key_cannot_be_unwrapped_keeps_no_other_from_being_wrapped_anew(client, tmp_path, envelope):
    await gather(*(envelope.seal(tenant, "ana", "event", b"x") for tenant in ("acme", "damaged", "zeta")))
    missing = RootKeys.from_file(key_file(tmp_path / "other.json", "other"))
    await Envelope(client, missing).seal("foreign", "ana", "event", b"x")
    record = json.loads(await client.hget("envelope:{damaged}", "tenant"))
    await client.hset("envelope:{damaged}", "tenant", json.dumps({**record, "key": "00" * 60}))
    rotated = Envelope(client, RootKeys.from_file(key_file(tmp_path / "both.json", "new", "old")))
    assert await rotated.rewrap() == 2
    assert await rotated.rewrap() == 0


async def test_a_destroyed_key_is_at_hand_elsewhere_for_a_time_and_that_is_told_once(client, roots):
    here, there = (Envelope(client, roots, max_age_s=0.3) for _ in range(2))
    assert await here.at_hand_s("acme", "ana") is None
    sealed = await there.seal("acme", "ana", "event", b"x")
    await here.erase("acme", "ana")
    assert 0 < await here.at_hand_s("acme", "ana") <= 0.3
    lost = await there.seal("acme", "ana", "event", b"lost")
    assert lost[1:17] == sealed[1:17]

    async def over():
        return await here.at_hand_s("acme", "ana") == 0

    await eventually_async(over, "nobody has it at hand")
    anew = await there.seal("acme", "ana", "event", b"anew")
    assert await here.open("acme", "event", anew) == b"anew"
    assert await here.at_hand_s("acme", "ana") is None
