"""/v1/keys over real HTTP and a real store: what is made, who sees it, what is told once, and what ends when."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import pytest

from services.common import testing
from services.common.valkey import connect
from services.gateway import fakes
from tests.integration.real_gateway import answered

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOWN = {
    "key_id", "name", "user", "team", "tier", "scopes", "hint", "created_at", "expires_at", "blocked", "made_by", "earlier_secret_until",
}  # fmt: skip


@asynccontextmanager
async def of(front, **who):
    """A session with a new key."""
    key = await front.issue(**who)
    async with aiohttp.ClientSession(front.url, headers={"authorization": f"Bearer {key}"}) as session:
        session.key = key
        yield session


async def make(http, status=201, headers=None, **body):
    return await answered(http.post("/v1/keys", json={"scopes": ["threads:read"], **body}, headers=headers), status)


async def asks(url, secret, path="/v1/threads"):
    async with aiohttp.ClientSession(url) as http, http.get(path, headers={"x-api-key": secret}) as response:
        return response.status


async def kept(state_url):
    """All that the store holds of accounts, keys and values."""
    client, found = connect(state_url), []
    async for name in client.scan_iter("*"):
        kind = await client.type(name)
        read = {b"string": client.get, b"set": client.smembers, b"hash": client.hgetall}.get(kind)
        found.append(name + (repr(await read(name)).encode() if read else b""))
    await client.aclose()
    return b"\n".join(found)


async def test_a_key_is_made_and_its_secret_is_told_this_once(ana, front, _state_server):
    async with ana.post("/v1/keys", json={"scopes": ["threads:read"], "name": "ci"}) as response:
        made = await response.json()
        assert response.status == 201, made
        assert (response.headers["cache-control"], response.headers["location"]) == ("no-store", f"/v1/keys/{made['key_id']}")
    secret = made.pop("secret")
    assert set(made) == SHOWN
    assert {name: made[name] for name in ("name", "user", "tier", "scopes", "expires_at", "blocked", "earlier_secret_until")} == {
        "name": "ci", "user": "ana", "tier": "enterprise", "scopes": ["threads:read"], "expires_at": None, "blocked": False,
        "earlier_secret_until": None,
    }  # fmt: skip
    assert secret.endswith(made["hint"])
    assert await asks(front.url, secret) == 200
    assert await asks(front.url, secret, "/v1/runs") == 403
    assert await answered(ana.get(f"/v1/keys/{made['key_id']}"), 200) == made
    listed = await answered(ana.get("/v1/keys?limit=1000"), 200)
    assert made in listed["data"]
    assert secret not in str(listed)
    assert secret.removeprefix("bh_").encode() not in await kept(_state_server)


async def test_under_an_idempotency_key_it_is_made_once_and_a_lost_secret_is_replaced_and_not_told_again(ana, front, _state_server):
    headers = {"idempotency-key": "keys-once"}
    made = await asyncio.gather(*(make(ana, headers=headers, name="once") for _ in range(5)))
    assert len({one["key_id"] for one in made}) == 1
    (secret,) = [one["secret"] for one in made if one["secret"] is not None]
    async with ana.post("/v1/keys", json={"scopes": ["threads:read"], "name": "once"}, headers=headers) as response:
        again = await response.json()
        assert (response.status, response.headers["idempotent-replayed"], again["secret"]) == (201, "true", None)
    assert (await make(ana, 422, headers, name="other"))["reason"] == "IDEMPOTENCY_MISMATCH"
    # Whoever did not get the first answer has the id, and with it another secret.
    path, headers = f"/v1/keys/{again['key_id']}/rotate", {"idempotency-key": "keys-lost"}
    rotated = await answered(ana.post(path, headers=headers), 200)
    assert (await answered(ana.post(path, headers=headers), 200))["secret"] is None
    assert await asks(front.url, rotated["secret"]) == 200
    assert await asks(front.url, secret) == 401
    held = await kept(_state_server)
    assert b"acct:once:" in held
    for told in (secret, rotated["secret"]):
        assert told.removeprefix("bh_").encode() not in held


async def test_the_idempotency_keys_of_users_and_routes_are_apart(ana, front):
    headers = {"idempotency-key": "keys-apart"}
    mine = await make(ana, headers=headers)
    async with of(front, user="bo") as bo, of(front, tenant="globex") as other:
        theirs = [await make(one, headers=headers) for one in (bo, other)]
    assert all(one["secret"] for one in theirs)
    assert mine["key_id"] not in {one["key_id"] for one in theirs}
    path = f"/v1/keys/{mine['key_id']}"
    assert (await answered(ana.patch(path, json={"name": "a"}, headers=headers), 200))["name"] == "a"
    await answered(ana.patch(path, json={"name": "b"}), 200)
    # A repeated one does not undo what came after it.
    assert (await answered(ana.patch(path, json={"name": "a"}, headers=headers), 200))["name"] == "b"
    for _ in range(2):
        await answered(ana.delete(path, headers=headers), 204)
    await answered(ana.delete(path), 404)
    # What was made under it is gone, and is not made anew.
    await answered(ana.post("/v1/keys", json={"scopes": ["threads:read"]}, headers=headers), 404)


async def test_all_keys_come_page_by_page_in_the_order_of_their_making(front):
    async with of(front, tenant="pages") as http:
        made = [(await make(http, name=f"k{n}", user=f"u{n % 2}"))["key_id"] for n in range(5)]
        found, after = [], ""
        while True:
            page = await answered(http.get(f"/v1/keys?limit=2&after={after}"), 200)
            found += [one["key_id"] for one in page["data"]]
            # One that ends between two pages moves no other.
            if len(found) == 2:
                await answered(http.delete(f"/v1/keys/{found[1]}"), 204)
            if (after := page["next_after"]) is None:
                break
        assert found[1:] == made
        mine = await answered(http.get("/v1/keys?user=u1"), 200)
        assert [one["key_id"] for one in mine["data"]] == [made[1], made[3]]
        for bad in ("nonsense", "bmFuIHg=", "x" * 9):
            assert (await answered(http.get(f"/v1/keys?after={bad}"), 400))["errors"][0]["field"] == "after"


async def test_a_new_secret_stands_beside_the_old_one_for_the_overlap_and_alone_without(ana, front):
    made = await make(ana)
    path = f"/v1/keys/{made['key_id']}"
    second = await answered(ana.post(f"{path}/rotate", json={"overlap_ms": 600_000}), 200)
    assert second["earlier_secret_until"]
    assert (await answered(ana.get(path), 200))["earlier_secret_until"] == second["earlier_secret_until"]
    assert [await asks(front.url, one["secret"]) for one in (made, second)] == [200, 200]
    third = await answered(ana.post(f"{path}/rotate"), 200)
    assert (third["key_id"], third["earlier_secret_until"]) == (made["key_id"], None)
    assert [await asks(front.url, one["secret"]) for one in (made, second, third)] == [401, 401, 200]
    # The overlap ends by itself.
    await answered(ana.post(f"{path}/rotate", json={"overlap_ms": 300}), 200)

    async def over():
        return await asks(front.url, third["secret"]) == 401

    await testing.eventually_async(over, "the overlap is over")


async def test_a_secret_that_was_replaced_does_its_work_and_changes_no_key(front):
    async with of(front, scopes=("keys:write", "keys:read", "threads:read")) as http:
        mine = next(one for one in (await answered(http.get("/v1/keys?limit=1000"), 200))["data"] if http.key.endswith(one["hint"]))
        path = f"/v1/keys/{mine['key_id']}"
        rotated = await answered(http.post(f"{path}/rotate", json={"overlap_ms": 600_000}), 200)
        await answered(http.get("/v1/threads"), 200)
        for refused in (http.post(f"{path}/rotate"), http.post("/v1/keys", json={"scopes": []}), http.delete(path)):
            assert (await answered(refused, 403))["reason"] == "SECRET_REPLACED"
        await answered(http.delete(path, headers={"authorization": f"Bearer {rotated['secret']}"}), 204)
        await answered(http.get("/v1/threads"), 401)


async def test_a_key_that_was_ended_is_refused_by_every_replica(ana, front, identities, _state_server):
    made = await make(ana)
    async with fakes.gateway(identities, _state_server) as second:
        # Both have it in memory.
        assert [await asks(url, made["secret"]) for url in (front.url, second.url)] == [200, 200]
        await answered(ana.delete(f"/v1/keys/{made['key_id']}"), 204)
        assert await asks(front.url, made["secret"]) == 401

        async def refused():
            return await asks(second.url, made["secret"]) == 401

        # Less than the ten seconds for which a replica may remember a key: it was told.
        async with asyncio.timeout(9):
            await testing.eventually_async(refused, "the other replica was told")
        await answered(ana.get(f"/v1/keys/{made['key_id']}"), 404)


async def test_a_key_may_end_itself_and_nothing_that_may_more(ana, front):
    strong = await make(ana, scopes=["threads:read", "keys:write"])
    async with of(front, scopes=("keys:write", "keys:read")) as weak:
        path = f"/v1/keys/{strong['key_id']}"
        for method, rest, body in (("DELETE", "", None), ("PATCH", "", {"name": "x"}), ("POST", "/rotate", None)):
            told = await answered(weak.request(method, path + rest, json=body), 403)
            assert told["missing_scopes"] == "threads:read"
        assert await asks(front.url, strong["secret"]) == 200
        own = next(one for one in (await answered(weak.get("/v1/keys?limit=1000"), 200))["data"] if weak.key.endswith(one["hint"]))
        await answered(weak.delete(f"/v1/keys/{own['key_id']}"), 204)
        await answered(weak.get("/v1/keys"), 401)


@pytest.mark.parametrize(
    "who",
    [{"tenant": "globex", "scopes": ("*",)}, {"user": "bo", "scopes": ("keys:read", "keys:write", "threads:read")}],
    ids=["another tenant", "another user"],
)
async def test_the_keys_of_others_are_not_there(ana, front, who):
    mine = await make(ana)
    path = f"/v1/keys/{mine['key_id']}"
    async with of(front, **who) as other:
        for method, rest, body in (("GET", "", None), ("PATCH", "", {"name": "x"}), ("POST", "/rotate", None), ("DELETE", "", None)):
            theirs = await answered(other.request(method, path + rest, json=body), 404)
            nobodys = await answered(other.request(method, f"/v1/keys/key_0000000000000000{rest}", json=body), 404)
            alike = ("type", "title", "status", "detail", "reason")
            assert [theirs[name] for name in alike] == [nobodys[name] for name in alike]
        seen = (await answered(other.get("/v1/keys?limit=1000"), 200))["data"]
        assert mine["key_id"] not in {one["key_id"] for one in seen}
        assert (await answered(other.get("/v1/keys?user=ana&limit=1000"), 200))["data"] == [] or "tenant" in who
    assert await answered(ana.get(path), 200) == {name: mine[name] for name in SHOWN}


async def test_an_administrator_has_the_keys_of_the_tenant_as_far_as_their_own_scopes_go(ana, front):
    weak = await make(ana)
    strong = await make(ana, scopes=["runs:write"])
    async with of(front, user="root", scopes=("admin", "keys:read", "keys:write", "threads:read")) as root:
        assert {weak["key_id"], strong["key_id"]} <= {
            one["key_id"] for one in (await answered(root.get("/v1/keys?limit=1000"), 200))["data"]
        }
        made = await make(root, user="bo")
        assert (made["user"], await asks(front.url, made["secret"])) == ("bo", 200)
        assert (await answered(root.post(f"/v1/keys/{strong['key_id']}/rotate"), 403))["missing_scopes"] == "runs:write"
        await answered(root.delete(f"/v1/keys/{weak['key_id']}"), 204)
    assert await asks(front.url, weak["secret"]) == 401


async def test_a_key_is_renamed_and_ended_earlier_and_never_prolonged(ana, front):
    made = await make(ana, expires_at="2998-01-01T00:00:00Z")
    path = f"/v1/keys/{made['key_id']}"
    changed = await answered(ana.patch(path, json={"name": "b", "expires_at": "2997-01-01T00:00:00Z"}), 200)
    assert (changed["name"], changed["expires_at"]) == ("b", "2997-01-01T00:00:00.000000Z")
    told = await answered(ana.patch(path, json={"name": "c", "expires_at": "2998-01-01T00:00:00Z"}), 403)
    assert told["reason"] == "KEY_OUTLASTS_ITSELF"
    assert (await answered(ana.patch(path, json={}), 200)) == changed
    assert await asks(front.url, made["secret"]) == 200
    await answered(ana.patch(path, json={"expires_at": "1970-01-01T00:00:00Z"}), 200)
    assert await asks(front.url, made["secret"]) == 401


async def test_what_no_replica_of_the_store_has_is_not_made(identities, _state_server):
    async with fakes.gateway(identities, _state_server, state_replicas=1) as alone:
        async with aiohttp.ClientSession(alone.url, headers=alone.headers()) as http:
            assert (await make(http, 503, name="lonely"))["reason"] == "STORE_UNAVAILABLE"
            assert "lonely" not in str(await answered(http.get("/v1/keys?limit=1000"), 200))


def but(**fields):
    return {"scopes": [], **fields}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/keys", {}, 422, "scopes"),
        ("/v1/keys", but(surprise=1), 422, "surprise"),
        ("/v1/keys", but(tenant="globex"), 422, "tenant"),
        ("/v1/keys", but(key="bh_mine"), 422, "key"),
        ("/v1/keys", but(scopes="runs:read"), 422, "scopes"),
        ("/v1/keys", but(scopes=["a b"]), 422, "scopes.0"),
        ("/v1/keys", but(scopes=[""]), 422, "scopes.0"),
        ("/v1/keys", but(scopes=["\u00e4"]), 422, "scopes.0"),
        ("/v1/keys", but(scopes=[f"s{n}" for n in range(65)]), 422, "scopes"),
        ("/v1/keys", but(name="x" * 257), 422, "name"),
        ("/v1/keys", but(name="a\nb"), 400, "name"),
        ("/v1/keys", but(user=""), 422, "user"),
        ("/v1/keys", but(user="{acme}"), 400, "user"),
        ("/v1/keys", but(tier="platinum"), 400, "tier"),
        ("/v1/keys", but(expires_at="2020-01-01T00:00:00Z"), 400, "expires_at"),
        ("/v1/keys", but(expires_at="1970-01-01T00:00:00Z"), 400, "expires_at"),
        ("/v1/keys", but(expires_at=1_900_000_000), 422, "expires_at"),
        ("/v1/keys/key_1/rotate", {"surprise": 1}, 422, "surprise"),
        ("/v1/keys/key_1/rotate", {"overlap_ms": -1}, 422, "overlap_ms"),
        ("/v1/keys/key_1/rotate", {"overlap_ms": 7 * 86_400_000 + 1}, 422, "overlap_ms"),
        ("/v1/keys/key_1/rotate", {"overlap_ms": 1.5}, 422, "overlap_ms"),
        ("/v1/keys/a%20b/rotate", None, 400, "key_id"),
    ],
)
async def test_what_is_wrong_is_named(ana, path, body, status, field):
    told = await answered(ana.post(path, json=body), status)
    assert told["errors"][0]["field"] == field


async def test_a_key_that_ends_makes_none_that_outlasts_it(front):
    issued = await front.accounts.create_key(
        tenant="acme", user="ana", tier="pro", scopes=("keys:write", "threads:read"), lifetime=timedelta(hours=1)
    )
    async with aiohttp.ClientSession(front.url, headers={"x-api-key": issued.secret}) as http:
        made = await make(http)
        own = await front.accounts.keys.find(issued.record.key_id, "acme")
        record = await front.accounts.keys.find(made["key_id"], "acme")
        assert (record.expires_at, record.made_by) == (own.expires_at, own.key_id)
        assert (await make(http, 403, expires_at="2998-01-01T00:00:00Z"))["reason"] == "KEY_OUTLASTS_CALLER"
