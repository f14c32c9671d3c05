"""Accounts on a real Valkey: limits, rotation, pushed changes, old records, floods, and updates that lose nothing."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.accounts import (
    Accounts,
    KeyRecord,
    LimitSet,
    Period,
    PrincipalLimits,
    TeamRecord,
    TenantRecord,
    UserRecord,
    digest_of,
)
from services.common.accounts import _accounts as inner
from services.common.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from services.common.identity import Principal
from services.common.valkey import connect

SMALL = LimitSet(max_budget_microusd=5_000_000, budget_period="30d", models=("main",), model_limits={"main": LimitSet(tokens_per_minute=9)})


@pytest.fixture
async def replicas(state_url):
    """Two processes' accounts, both listening."""
    clients = [connect(state_url) for _ in range(2)]
    made = [Accounts(client) for client in clients]
    for accounts in made:
        await accounts.start()

    async def listening():
        counts = await clients[0].execute_command("PUBSUB", "NUMSUB", "acct:revoked", "acct:changed")
        return counts[1] == counts[3] == 2

    await testing.eventually_async(listening, "both listen")
    yield made
    for accounts, client in zip(made, clients, strict=True):
        await accounts.stop()
        await client.aclose()


async def reason(accounts: Accounts, secret: str) -> str:
    """Why a secret is refused, empty when it is not."""
    try:
        await accounts.resolve(secret)
    except Unauthenticated as error:
        return error.reason
    return ""


async def test_the_limits_of_key_user_team_and_tenant_hold_for_a_principal(valkey):
    accounts = Accounts(valkey)
    issued = await accounts.create_key(tenant="acme", user="ana", team="blue", tier="pro", scopes=(), limits=SMALL)
    await accounts.users.create(UserRecord("acme", "ana", limits=LimitSet(requests_per_minute=1)), "ana")
    await accounts.teams.create(TeamRecord("acme", "blue", limits=LimitSet(tokens_per_day=2)), "blue")
    await accounts.tenants.create(TenantRecord("acme", limits=LimitSet(max_parallel=3)))
    expected = PrincipalLimits(SMALL, LimitSet(requests_per_minute=1), LimitSet(tokens_per_day=2), LimitSet(max_parallel=3))
    assert await accounts.limits(await accounts.resolve(issued.secret)) == expected
    # An internal token names the same holders, in another process, without the secret.
    token = Principal("acme", "ana", issued.record.key_id, "blue", run_id="run_1")
    assert await Accounts(valkey).limits(token) == expected
    # The key's id of another tenant's principal is nobody's.
    assert (await Accounts(valkey).limits(replace(token, tenant="other"))) == PrincipalLimits()
    assert await accounts.limits(Principal("acme", "bob")) == PrincipalLimits(tenant=LimitSet(max_parallel=3))
    # Runs of a deleted key stay within its limits.
    await accounts.revoke("acme", issued.record.key_id)
    assert await Accounts(valkey).limits(token) == expected


async def test_names_never_meet_in_one_record(valkey):
    accounts = Accounts(valkey)
    await accounts.users.create(UserRecord("a:b", "c", name="one"), "c")
    await accounts.users.create(UserRecord("a", "b:c", name="two"), "b:c")
    await accounts.users.create(UserRecord("a", "b%3Ac", name="three"), "b%3Ac")
    await accounts.users.create(UserRecord("a", "/", name="four"), "/")
    found = [(await accounts.users.get(tenant, user)).name for tenant, user in (("a:b", "c"), ("a", "b:c"), ("a", "b%3Ac"), ("a", "/"))]
    assert found == ["one", "two", "three", "four"]
    assert [record.user for record in await accounts.users.list("a")] == ["/", "b%3Ac", "b:c"]


@pytest.mark.parametrize("name", ["", " ", "{acme}", "a}", "a\nb", "a\x00", "x" * 129, "\ud800", "a\u202eb"])
async def test_a_name_that_could_be_taken_for_another_is_refused(valkey, name):
    accounts = Accounts(valkey)
    for fields in ({"tenant": name, "user": "u"}, {"tenant": "t", "user": name}):
        with pytest.raises(InvalidInput):
            await accounts.create_key(tier="free", scopes=(), **fields)
    if name:
        with pytest.raises(InvalidInput):
            await accounts.create_key(tenant="t", user="u", team=name, tier="free", scopes=())
        with pytest.raises(InvalidInput):
            await accounts.teams.create(TeamRecord("t", name), name)
    assert await valkey.keys("*") == []


@pytest.mark.parametrize(
    "wrong",
    [
        LimitSet(max_budget_microusd=-1), LimitSet(max_budget_microusd=10**16), LimitSet(budget_period="1y"), LimitSet(budget_period="0d"),
        LimitSet(requests_per_minute=0), LimitSet(max_parallel=True), LimitSet(tokens_per_day=1.5), LimitSet(models=("",)),
        LimitSet(model_limits={"m": LimitSet(requests_per_minute=-1)}), LimitSet(model_limits={"m": LimitSet(models=("x",))}),
    ],
)  # fmt: skip
async def test_limits_that_make_no_sense_are_refused(valkey, wrong):
    with pytest.raises(InvalidInput):
        await Accounts(valkey).create_key(tenant="t", user="u", tier="free", scopes=(), limits=wrong)


def test_periods_are_a_number_and_a_unit():
    assert [Period.parse(text).seconds for text in ("30s", "30m", "24h", "7d", "1w", "1mo")] == [30, 1800, 86400, 604800, 604800, 2592000]
    for text in ("", "d", "1", "1M", "-1d", "01d", "1.5h", "1 d", "1d ", "1d\n", "999999d", "١d"):
        with pytest.raises(ValueError, match="number and a unit"):
            Period.parse(text)


async def test_records_of_the_version_before_are_read_and_those_after_too(valkey):
    accounts = Accounts(valkey)
    # As schema_version 1 wrote it.
    old = {"key_id": "key_1", "tenant": "acme", "user": "ana", "team": "", "tier": "pro", "scopes": ["a"], "name": "ci", "created_at": 1.5,
           "expires_at": 0.0, "schema_version": 1}  # fmt: skip
    secret = "bh_" + "x" * 43
    await valkey.set(f"acct:key:{digest_of(secret)}", orjson.dumps(old))
    await valkey.set("acct:id:key_1", digest_of(secret))
    await valkey.sadd("acct:keys:acme", "key_1")
    principal = await accounts.resolve(secret)
    assert principal == Principal("acme", "ana", "key_1", "", ("a",), "pro")
    assert await accounts.limits(principal) == PrincipalLimits()
    changed = await accounts.keys.update("key_1", "acme", lambda key: replace(key, limits=SMALL))
    assert (changed.name, changed.limits, changed.created_at) == ("ci", SMALL, 1.5)
    new = orjson.loads(await valkey.get(f"acct:key:{digest_of(secret)}"))
    new |= {"schema_version": 3, "colour": "red", "limits": {**new["limits"], "smell": "none"}}
    await valkey.set(f"acct:key:{digest_of(secret)}", orjson.dumps(new))
    assert (await Accounts(valkey).keys.find("key_1", "acme")).limits == SMALL


async def test_a_rotated_key_has_two_secrets_for_its_grace_and_one_record(replicas, valkey):
    here, there = replicas
    issued = await here.create_key(tenant="acme", user="ana", tier="pro", scopes=(), limits=SMALL)
    key_id = issued.record.key_id
    principal = await there.resolve(issued.secret)
    rotated = await here.keys.rotate(key_id, "acme", grace=timedelta(hours=1))
    assert rotated.record.key_id == key_id
    assert await there.resolve(issued.secret) == await there.resolve(rotated.secret) == principal
    assert [record.key_id for record in await here.list_keys("acme")] == [key_id]
    # The old secret ends by itself in the store.
    assert 3590 < await valkey.ttl(f"acct:key:{digest_of(issued.secret)}") <= 3602
    # A change of the key counts for both secrets.
    await here.keys.update(key_id, "acme", lambda key: replace(key, blocked=True))

    async def both_refused():
        return [await reason(there, secret) for secret in (issued.secret, rotated.secret)] == ["BLOCKED_API_KEY"] * 2

    await testing.eventually_async(both_refused, "both secrets are blocked", timeout_s=5)
    await here.keys.update(key_id, "acme", lambda key: replace(key, blocked=False))
    third = await here.keys.rotate(key_id, "acme", grace=timedelta(hours=1))
    assert await there.resolve(third.secret) == await there.resolve(rotated.secret) == await there.resolve(issued.secret) == principal
    await here.revoke("acme", key_id)

    async def all_gone():
        secrets = (issued.secret, rotated.secret, third.secret)
        return [await reason(there, secret) for secret in secrets] == ["INVALID_API_KEY"] * 3

    await testing.eventually_async(all_gone, "no secret outlives its key", timeout_s=5)


async def test_an_old_secret_ends_with_its_grace(valkey):
    accounts = Accounts(valkey)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=())
    await accounts.keys.rotate(issued.record.key_id, "acme", grace=timedelta(seconds=0.3))
    assert await reason(accounts, issued.secret) == ""
    # The cached entry knows the end: ten seconds of cache do not prolong it.
    await testing.eventually_async(lambda: reason(accounts, issued.secret), "the grace is over", timeout_s=5)


async def test_a_blocked_holder_refuses_all_its_keys_in_the_other_process(replicas):
    here, there = replicas
    issued = await here.create_key(tenant="acme", user="ana", team="blue", tier="pro", scopes=())
    for holders, record, name in (
        (here.users, UserRecord("acme", "ana"), "ana"),
        (here.teams, TeamRecord("acme", "blue"), "blue"),
        (here.tenants, TenantRecord("acme"), ""),
    ):
        assert await reason(there, issued.secret) == ""
        for blocked in (True, False):
            await holders.change("acme", name, lambda old, record=record, blocked=blocked: replace(old or record, blocked=blocked))

            async def is_so(blocked=blocked):
                return (await reason(there, issued.secret) == "BLOCKED_API_KEY") == blocked

            await testing.eventually_async(is_so, "the change arrives", timeout_s=5)


async def test_a_flood_of_unknown_secrets_costs_no_good_key_its_place(valkey, monkeypatch):
    monkeypatch.setattr(inner, "CACHE_SIZE", 5)
    monkeypatch.setattr(inner, "UNKNOWN_SIZE", 5)
    accounts = Accounts(valkey)
    good = [await accounts.create_key(tenant="acme", user=f"u{n}", tier="pro", scopes=()) for n in range(5)]
    for issued in good:
        await accounts.resolve(issued.secret)
    for n in range(50):
        assert await reason(accounts, f"bh_flood{n}") == "INVALID_API_KEY"
    # The same one is not asked for again and again, and the good ones need no store any more.
    before = (await valkey.info("commandstats"))["cmdstat_mget"]["calls"]
    assert await reason(accounts, "bh_flood49") == "INVALID_API_KEY"
    for issued in good:
        await accounts.limits(await accounts.resolve(issued.secret))
    assert (await valkey.info("commandstats"))["cmdstat_mget"]["calls"] == before


async def test_unique_names_are_taken_once_and_free_again(valkey):
    accounts = Accounts(valkey)
    record = KeyRecord("", "acme", "ana", name="ci")
    made = await asyncio.gather(*(accounts.keys.create(record, strict=True) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in made) == 7
    (issued,) = [result for result in made if not isinstance(result, BaseException)]
    assert await accounts.keys.find_name("ci", "acme") == issued.record.key_id
    await accounts.keys.update(issued.record.key_id, "acme", lambda key: replace(key, name="cd"), strict=True)
    second = await accounts.keys.create(record, strict=True)
    with pytest.raises(Conflict):
        await accounts.keys.update(second.record.key_id, "acme", lambda key: replace(key, name="cd"), strict=True)
    await accounts.revoke("acme", issued.record.key_id)
    await accounts.keys.update(second.record.key_id, "acme", lambda key: replace(key, name="cd"), strict=True)


async def test_no_key_slips_into_a_team_that_is_being_ended(valkey):
    accounts = Accounts(valkey)
    record = KeyRecord("", "acme", "ana", "blue")
    with pytest.raises(NotFound):
        await accounts.keys.create(record, strict=True)
    await accounts.teams.create(TeamRecord("acme", "blue"), "blue")
    await accounts.keys.create(record, strict=True)
    await accounts.teams.update("acme", "blue", lambda team: replace(team, blocked=True))
    with pytest.raises(Conflict):
        await accounts.keys.create(record, strict=True)


async def test_a_hundred_changes_at_once_are_all_made_and_take_few_connections(valkey):
    accounts = Accounts(valkey)
    await accounts.teams.create(TeamRecord("acme", "blue"), "blue")
    before = (await valkey.info("clients"))["connected_clients"]

    def with_member(number: int):
        return lambda team: replace(team, members={**team.members, f"u{number}": "user"})

    await asyncio.gather(*(accounts.teams.update("acme", "blue", with_member(number)) for number in range(100)))
    assert len((await accounts.teams.get("acme", "blue")).members) == 100
    assert (await valkey.info("clients"))["connected_clients"] - before <= 8


async def test_a_change_that_fails_writes_nothing(valkey):
    accounts = Accounts(valkey)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=(), limits=SMALL)
    for change in (
        lambda key: replace(key, limits=LimitSet(requests_per_minute=-1)),
        lambda key: replace(key, user="{x}"),
        lambda key: replace(key, metadata={"x": object()}),
    ):
        with pytest.raises(InvalidInput):
            await accounts.keys.update(issued.record.key_id, "acme", change)
    assert await accounts.keys.find(issued.record.key_id, "acme") == issued.record
    with pytest.raises(NotFound):
        await accounts.keys.update(issued.record.key_id, "other", lambda key: replace(key, blocked=True))
    for reference in (issued.record.key_id, issued.secret, digest_of(issued.secret)):
        assert await accounts.keys.find_id(reference, "acme") == issued.record.key_id
        with pytest.raises(NotFound):
            await accounts.keys.find_id(reference, "other")


async def test_a_user_is_erased_without_a_trace(valkey):
    accounts = Accounts(valkey)
    await accounts.teams.create(TeamRecord("acme", "blue", members={"ana": "admin", "bob": "user"}), "blue")
    await accounts.users.create(UserRecord("acme", "ana", email="ana@example.org"), "ana")
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=())
    await accounts.keys.rotate(issued.record.key_id, "acme")
    other = await accounts.create_key(tenant="acme", user="bob", tier="pro", scopes=())
    assert await accounts.erase_user("acme", "ana") == 3
    assert await accounts.erase_user("acme", "ana") == 0
    assert (await accounts.teams.get("acme", "blue")).members == {"bob": "user"}
    await accounts.resolve(other.secret)
    for key in await valkey.keys("*"):
        value = await (valkey.get(key) if await valkey.type(key) == b"string" else valkey.smembers(key))
        assert "ana" not in f"{key}{value}"


STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(
            st.tuples(st.just("rpm"), st.integers(1, 9)),
            st.tuples(st.just("tpm"), st.integers(1, 9)),
            st.tuples(st.just("block"), st.booleans()),
            st.tuples(st.just("rotate"), st.sampled_from([None, timedelta(hours=1)])),
            st.tuples(st.just("member"), st.integers(0, 5)),
            st.tuples(st.just("team"), st.booleans()),
            st.tuples(st.just("resolve"), st.just(None)),
        ),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, together=st.booleans())
def test_whatever_two_replicas_change_in_whatever_order_both_see_one_truth(_state_server, steps, together):
    async def scenario():
        clients = [connect(_state_server, timeout_s=testing.PATIENCE_S) for _ in range(2)]
        await clients[0].flushall()
        replicas = [Accounts(client) for client in clients]
        for accounts in replicas:
            await accounts.start()
        try:
            await _play(replicas, steps, together)
        finally:
            for accounts, client in zip(replicas, clients, strict=True):
                await accounts.stop()
                await client.aclose()

    asyncio.run(scenario())


async def _play(replicas, steps, together) -> None:
    one = replicas[0]
    first = await one.create_key(tenant="acme", user="ana", team="blue", tier="pro", scopes=())
    await one.teams.create(TeamRecord("acme", "blue"), "blue")
    key_id, secrets_ = first.record.key_id, {first.secret: True}
    members: set[str] = set()

    async def step(replica: int, action: str, value: object) -> None:
        accounts = replicas[replica]
        if action == "rpm":
            await accounts.keys.update(key_id, "acme", lambda k: replace(k, limits=replace(k.limits, requests_per_minute=value)))
        elif action == "tpm":
            await accounts.keys.update(key_id, "acme", lambda k: replace(k, limits=replace(k.limits, tokens_per_minute=value)))
        elif action == "block":
            await accounts.keys.update(key_id, "acme", lambda k: replace(k, blocked=value))
        elif action == "rotate":
            issued = await accounts.keys.rotate(key_id, "acme", grace=value)
            secrets_[issued.secret] = True
        elif action == "member":
            members.add(f"u{value}")
            await accounts.teams.update("acme", "blue", lambda t: replace(t, members={**t.members, f"u{value}": "user"}))
        elif action == "team":
            await accounts.teams.update("acme", "blue", lambda t: replace(t, blocked=value))
        else:
            for secret in list(secrets_):
                await reason(accounts, secret)

    if together:
        await asyncio.gather(*(step(replica, *rest) for replica, rest in steps))
    else:
        for replica, rest in steps:
            await step(replica, *rest)
    # Nothing was lost.
    record, team = await one.keys.find(key_id, "acme"), await one.teams.get("acme", "blue")
    assert set(team.members) == members
    for action, attribute in (("rpm", record.limits.requests_per_minute), ("tpm", record.limits.tokens_per_minute)):
        values = [rest[1] for _, rest in steps if rest[0] == action]
        assert attribute in (values if together else values[-1:]) if values else attribute is None
    # Both replicas come to what a process sees that has cached nothing.
    fresh = Accounts(one._client)
    truth = {secret: await reason(fresh, secret) for secret in secrets_}
    limits = await fresh.limits(first.record.principal())
    assert limits.key == record.limits
    assert sum(why == "" for why in truth.values()) == 0 or not (record.blocked or team.blocked)

    async def agreed():
        for accounts in replicas:
            if {secret: await reason(accounts, secret) for secret in secrets_} != truth:
                return False
            if await accounts.limits(first.record.principal()) != limits:
                return False
        return True

    began = time.monotonic()
    await testing.eventually_async(agreed, "both replicas agree", timeout_s=5)
    assert time.monotonic() - began < inner.ACCOUNT_CACHE.total_seconds()
