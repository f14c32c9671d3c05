"""The admin API as LiteLLM's scripts use it: two replicas of a model port over one store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.common import testing
from services.common.accounts import Accounts, LimitSet
from services.common.audit import AuditStream, KeyAudit
from services.common.health import Health
from services.common.http import UvicornListener
from services.common.valkey import connect
from services.llm_gateway.model_port.admin import AdminSurface
from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.app import ModelPort
from tests.integration.llm_gateway.admin_book import Lines, registry

MASTER = "sk-master-1234"
DAY_MS = 86_400_000
MARCH_1 = 1_772_323_200_000  # 2026-03-01T00:00:00Z

WRONG = [
    ("max_budget", -1), ("max_budget", "10"), ("max_budget", True), ("max_budget", 1e300), ("max_budget", [1]), ("soft_budget", -0.1),
    ("budget_duration", "30"), ("budget_duration", "soon"), ("budget_duration", "0d"), ("budget_duration", "-1d"),
    ("budget_duration", 30),
    
    ("duration", "1y"), ("rpm_limit", 0), ("rpm_limit", 1.5), ("rpm_limit", "5"), ("rpm_limit", 10**18), ("tpm_limit", -5),
    ("max_parallel_requests", {}), ("models", "main"), ("models", [1]), ("models", ["*"]), ("models", ["x" * 300]), ("metadata", []),
    ("metadata", {"x": "y" * 20_000}), ("key_alias", "a\r\nb"), ("key_alias", "x" * 300), ("user_id", "a{b}"), ("user_id", "x" * 200),
    ("user_id", "a\r\nset-cookie: x"), ("tenant", "{x}"), ("scopes", ["a b"]), ("scopes", "admin"), ("model_max_budget", {"m": -1}),
    ("model_max_budget", {"m": {"budget_limit": 1, "oops": 2}}), ("model_rpm_limit", {"m": 0}), ("model_rpm_limit", [1]),
    ("key_type", "read_only"), ("key", "sk-mine"), ("guardrails", ["x"]), ("budget_id", "b"), ("aliases", {"a": "b"}),
    ("allowed_routes", ["/x"]), ("max_budgt", 5), ("team_id", 5), ("blocked", "yes"),
]  # fmt: skip


@pytest_asyncio.fixture
async def ports(state_url) -> AsyncIterator[SimpleNamespace]:
    """Two replicas; `call(method, path, body, key=, replica=)` answers status and JSON."""
    clients, accounts, listeners, urls, book, models = [], [], [], [], Lines(), registry()
    for _ in range(2):
        client = connect(state_url)
        mine, audit = Accounts(client), KeyAudit(AuditStream(client, timedelta(days=1)))
        await mine.start()
        keys = PortKeys(mine, master_key=MASTER)
        port = ModelPort(lambda: models, [AdminSurface(keys, lambda: models, book, audit)], keys, Health({}))
        listener = UvicornListener(port, "127.0.0.1", 0)
        await listener.start()
        clients.append(client)
        accounts.append(mine)
        listeners.append(listener)
        urls.append(f"http://127.0.0.1:{listener.bound_port}")
    await testing.eventually_async(lambda: _subscribed(clients[0]), "both replicas listen")
    async with aiohttp.ClientSession() as http:

        async def call(method: str, path: str, body: Any = None, *, key: str = MASTER, replica: int = 0, **headers: str) -> tuple[int, Any]:
            data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
            sent = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
            async with http.request(method, urls[replica] + path, data=data, headers=sent) as answer:
                return answer.status, orjson.loads(await answer.read())

        yield SimpleNamespace(call=call, accounts=accounts, book=book, clients=clients, http=http, urls=urls)
    for listener, mine, client in zip(listeners, accounts, clients, strict=True):
        await listener.close()
        await mine.stop()
        await client.aclose()


async def _subscribed(client: Any) -> bool:
    counts = await client.execute_command("PUBSUB", "NUMSUB", "acct:revoked", "acct:changed")
    return counts[1] == 2 and counts[3] == 2


async def generated(ports: Any, **body: Any) -> dict[str, Any]:
    status, answer = await ports.call("POST", "/key/generate", body)
    assert status == 200, answer
    return answer


async def test_a_key_is_generated_with_limits_and_read_back_as_it_was_given(ports):
    asked = {
        "key_alias": "ci",
        "user_id": "bob",
        "models": ["main"],
        "max_budget": 10.1,
        "soft_budget": 8,
        "budget_duration": "30d",
        "rpm_limit": 60,
        "tpm_limit": 1000,
        "tpd_limit": 5000,
        "max_parallel_requests": 3,
        "model_max_budget": {"main": {"budget_limit": 0.3, "time_period": "1d"}},
        "model_rpm_limit": {"other": 5},
        "duration": "1h",
        "metadata": {"app": "x"},
        "send_invite_email": True,
    }
    made = await generated(ports, **asked)
    assert made["key"].startswith("bh_")
    assert made["unsupported"] == ["send_invite_email"]
    status, info = await ports.call("GET", f"/key/info?key={made['key']}", replica=1)
    assert status == 200
    for name in set(asked) - {"duration", "send_invite_email"}:
        assert info["info"][name] == asked[name], name
    assert made["key"] not in orjson.dumps(info).decode()
    limits = (await ports.accounts[1].keys.find(made["token"], "default")).limits
    # 10.1 is no binary fraction: it is 10,100,000 micro-USD all the same.
    assert (limits.max_budget_microusd, limits.soft_budget_microusd, limits.budget_period) == (10_100_000, 8_000_000, "30d")
    assert limits.model_limits == {
        "main": LimitSet(max_budget_microusd=300_000, budget_period="1d"),
        "other": LimitSet(requests_per_minute=5),
    }
    assert (await ports.call("GET", "/v1/models", key=made["key"]))[0] == 200


async def test_an_update_changes_what_it_names_and_null_takes_a_limit_away(ports):
    made = await generated(ports, max_budget=5, rpm_limit=10, model_max_budget={"main": 1}, model_rpm_limit={"main": 7})
    principal = await ports.accounts[1].resolve(made["key"])
    assert (await ports.accounts[1].limits(principal)).key.requests_per_minute == 10
    status, answer = await ports.call(
        "POST", "/key/update", {"key": made["key"], "max_budget": None, "tpm_limit": 9, "model_max_budget": {}}
    )
    assert status == 200, answer
    expected = LimitSet(tokens_per_minute=9, requests_per_minute=10, model_limits={"main": LimitSet(requests_per_minute=7)})

    async def arrived():
        return (await ports.accounts[1].limits(principal)).key == expected

    await testing.eventually_async(arrived, "the other replica has the new limits", timeout_s=5)


async def test_blocked_unblocked_regenerated_and_deleted_keys_count_at_once_in_the_other_replica(ports):
    made = await generated(ports, max_budget=5)

    async def status_of(secret: str) -> int:
        return (await ports.call("GET", "/v1/models", key=secret, replica=1))[0]

    async def eventually(secret: str, status: int) -> None:
        async def is_so():
            return await status_of(secret) == status

        await testing.eventually_async(is_so, f"the other replica answers {status}", timeout_s=5)

    assert await status_of(made["key"]) == 200
    assert (await ports.call("POST", "/key/block", {"key": made["key"]}))[1]["blocked"] is True
    await eventually(made["key"], 401)
    assert (await ports.call("POST", "/key/unblock", {"key": made["token"]}))[0] == 200
    await eventually(made["key"], 200)
    status, fresh = await ports.call("POST", "/key/regenerate", {"key": made["key"], "grace_period": "1h", "rpm_limit": 3})
    assert (status, fresh["token"], fresh["max_budget"], fresh["rpm_limit"]) == (200, made["token"], 5.0, 3)
    assert await status_of(made["key"]) == await status_of(fresh["key"]) == 200
    status, last = await ports.call("POST", f"/key/{fresh['key']}/regenerate", {})
    assert status == 200
    await asyncio.gather(eventually(fresh["key"], 401), eventually(made["key"], 401))  # the second had a grace left
    assert await status_of(last["key"]) == 200
    status, ended = await ports.call("POST", "/key/delete", {"keys": [last["key"]]})
    assert (status, ended) == (200, {"deleted_keys": [made["token"]]})
    await eventually(last["key"], 401)
    assert (await ports.call("GET", f"/key/info?key={made['token']}"))[0] == 404


async def test_keys_are_listed_in_pages_and_found_by_their_holders_and_names(ports):
    for number in range(5):
        await generated(ports, key_alias=f"k{number}", user_id="ana" if number % 2 else "bob")
    status, page = await ports.call("GET", "/key/list?size=2&page=3&return_full_object=true")
    assert (status, page["total_count"], page["total_pages"]) == (200, 5, 3)
    assert [key["key_alias"] for key in page["keys"]] == ["k4"]
    assert (await ports.call("GET", "/key/list?user_id=ana"))[1]["total_count"] == 2
    assert (await ports.call("POST", "/key/generate", {"key_alias": "k0"}))[0] == 409
    assert (await ports.call("POST", "/key/delete", {"key_aliases": ["k0"]}))[0] == 200
    assert (await ports.call("POST", "/key/generate", {"key_alias": "k0"}))[0] == 200
    for wrong in ("size=0", "page=x", "size=1000", "return_full_object=maybe", "page=%00", "page=-1"):
        assert (await ports.call("GET", f"/key/list?{wrong}"))[0] == 400


async def test_only_administrators_and_the_master_key_administrate(ports):
    plain = await generated(ports, user_id="ana")
    admin = await generated(ports, user_id="root", key_type="management")
    foreign = await generated(ports, user_id="eve", tenant="other", scopes=["admin", "models:invoke"])
    for method, path in (
        ("POST", "/key/generate"), ("POST", "/key/update"), ("POST", "/key/delete"), ("POST", "/key/regenerate"), ("POST", "/team/new"),
        ("POST", "/user/new"), ("POST", "/tenant/update"), ("GET", "/spend/logs"), ("GET", "/key/list"), ("GET", "/user/info"),
        ("GET", "/team/list"), ("GET", "/global/spend/report"),
    ):  # fmt: skip
        status, answer = await ports.call(method, path, {} if method == "POST" else None, key=plain["key"])
        assert (status, answer["error"]["code"]) == (403, "insufficient_scope"), path
    # Its own record, and no other's; whether there is another is not told either.
    assert (await ports.call("GET", "/key/info", key=plain["key"]))[1]["info"]["user_id"] == "ana"
    assert (await ports.call("GET", f"/key/info?key={plain['key']}", key=plain["key"]))[0] == 200
    other = await ports.call("GET", f"/key/info?key={admin['token']}", key=plain["key"])
    nobody = await ports.call("GET", "/key/info?key=key_0123456789abcdef", key=plain["key"])
    assert other[0] == nobody[0] == 403
    assert other[1] == nobody[1]
    # Another tenant's keys are not there, for whatever is asked.
    for path, body in (("/key/update", {"rpm_limit": 5}), ("/key/block", {}), ("/key/regenerate", {})):
        assert (await ports.call("POST", path, {"key": plain["key"], **body}, key=foreign["key"]))[0] == 404
        assert (await ports.call("POST", path, {"key": plain["key"], "tenant": "default", **body}, key=foreign["key"]))[0] == 403
    assert (await ports.call("POST", "/key/delete", {"keys": [plain["token"]]}, key=foreign["key"]))[0] == 404
    assert (await ports.call("POST", "/tenant/update", {"max_budget": 1}, key=admin["key"]))[0] == 403
    # An administrator gives what it holds: no more scopes, no other tier.
    for body in ({"scopes": ["*"]}, {"scopes": ["models:invoke"]}, {"tier": "enterprise"}, {"tenant": "other"}):
        answer = await ports.call(
            "POST", "/key/generate", {"key_type": "management", **body} if "scopes" not in body else body, key=admin["key"]
        )
        assert answer[0] == 403, answer
    for path in ("/key/update", "/key/regenerate", "/key/unblock"):
        body = {"key": plain["token"], **({} if path.endswith("unblock") else {"rpm_limit": 9})}
        assert (await ports.call("POST", path, body, key=admin["key"]))[0] == 403
    assert (await ports.call("POST", "/key/update", {"key": admin["key"], "scopes": ["admin", "models:invoke"]}, key=admin["key"]))[
        0
    ] == 403
    assert (await ports.call("POST", "/key/block", {"key": plain["token"]}, key=admin["key"]))[0] == 200
    for wrong in ("sk-master-123", "sk-master-12345", "", "sk-master-1234x", "é" * 40):
        status = (await ports.call("GET", "/key/list", key=wrong))[0] if wrong.isascii() else 401
        assert status == 401


async def test_what_is_wrong_is_named_and_makes_no_key(ports):
    for field, value in WRONG:
        status, answer = await ports.call("POST", "/key/generate", {field: value})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), (field, value, answer)
        assert answer["error"]["message"].startswith(field), answer
        assert str(answer["error"]["param"]).startswith(field), answer
    assert await ports.accounts[0].list_keys("default") == []


async def test_bodies_that_are_none_are_refused(ports):
    for raw, status in (
        (b"", 400), (b"{", 400), (b"[]", 400), (b'{"max_budget": NaN}', 400), (b'{"max_budget": Infinity}', 400), (b"\xff\xfe", 400),
        (b'{"max_budget": 1e999}', 400), (b"[" * 100_000, 400), (b'{"metadata":' + b'{"a":' * 600 + b"1" + b"}" * 601, 400),
        (orjson.dumps({f"f{n}": 1 for n in range(1000)}), 400), (b" " * (11 * 1024 * 1024), 413),
    ):  # fmt: skip
        answer = await ports.call("POST", "/key/generate", raw)
        assert answer[0] == status, (raw[:40], answer)
    assert (await ports.call("POST", "/key/generate", {}, **{"content-type": "text/plain"}))[0] == 415
    assert (await ports.call("GET", "/key/generate"))[0] == 405
    for path in ("/key/update", "/key/block", "/key/regenerate", "/key/delete", "/team/update", "/team/delete", "/user/update"):
        status, answer = await ports.call("POST", path, {})
        assert (status, "needed" in answer["error"]["message"] or "must be" in answer["error"]["message"]) == (400, True), path
    for reference in ("bh_nobody", "key_nobody", "0" * 64, "x", "key_*", "../x"):
        assert (await ports.call("POST", "/key/block", {"key": reference}))[0] == 404


async def test_concurrent_updates_through_two_replicas_lose_nothing(ports):
    made = await generated(ports)
    team = (await ports.call("POST", "/team/new", {"team_alias": "blue"}))[1]["team_id"]
    facets = {"rpm_limit": 11, "tpm_limit": 12, "tpd_limit": 13, "max_parallel_requests": 14, "max_budget": 15.0, "soft_budget": 16.0}
    calls = [
        ports.call("POST", "/key/update", {"key": made["token"], name: value}, replica=number % 2)
        for number, (name, value) in enumerate(facets.items())
    ]
    calls += [
        ports.call("POST", "/team/member_add", {"team_id": team, "member": {"user_id": f"u{n}", "role": "user"}}, replica=n % 2)
        for n in range(12)
    ]
    answers = await asyncio.gather(*calls)
    assert [status for status, _ in answers] == [200] * len(answers)
    info = (await ports.call("GET", f"/key/info?key={made['token']}"))[1]["info"]
    assert {name: info[name] for name in facets} == facets
    members = (await ports.call("GET", f"/team/info?team_id={team}", replica=1))[1]["team_info"]["members"]
    assert sorted(members) == sorted(f"u{n}" for n in range(12))


async def test_a_teams_limits_hold_for_its_keys_and_end_with_it(ports):
    status, team = await ports.call(
        "POST",
        "/team/new",
        {"team_id": "blue", "team_alias": "Blue", "max_budget": 2, "budget_duration": "1mo", "models": ["main"],
         "members_with_roles": [{"role": "admin", "user_id": "ana"}]},
    )  # fmt: skip
    assert (status, team["max_budget"], team["admins"]) == (200, 2.0, ["ana"])
    assert (await ports.call("POST", "/team/new", {"team_id": "blue"}))[0] == 409
    assert (await ports.call("POST", "/key/generate", {"team_id": "nobody"}))[0] == 404
    key = await generated(ports, team_id="blue", user_id="bob")
    principal = await ports.accounts[1].resolve(key["key"])
    limits = await ports.accounts[1].limits(principal)
    assert limits.team == LimitSet(max_budget_microusd=2_000_000, budget_period="1mo", models=("main",))
    assert (limits.allows("main"), limits.allows("other")) == (True, False)
    assert (await ports.call("POST", "/team/update", {"team_id": "blue", "models": []}))[1]["data"]["models"] == []

    async def opened():
        return (await ports.accounts[1].limits(principal)).allows("other")

    await testing.eventually_async(opened, "the change of the team arrives", timeout_s=5)
    assert [t["team_id"] for t in (await ports.call("GET", "/team/list?user_id=ana"))[1]] == ["blue"]
    member = {"team_id": "blue", "member": [{"user_id": "bob", "role": "user"}]}
    assert (await ports.call("POST", "/team/member_add", {**member, "max_budget_in_team": 5}))[0] == 400
    assert (await ports.call("POST", "/team/member_add", {"team_id": "blue", "member": {"user_email": "a@b.c", "role": "user"}}))[0] == 400
    assert (await ports.call("POST", "/team/member_add", member))[1]["members"] == ["ana", "bob"]
    status, without = await ports.call("POST", "/team/member_delete", {"team_id": "blue", "user_id": "bob"})
    assert (status, without["deleted_keys"]) == (200, [key["token"]])
    assert (await ports.call("POST", "/team/member_delete", {"team_id": "blue", "user_id": "bob"}))[0] == 404
    key = await generated(ports, team_id="blue", user_id="ana")
    assert (await ports.call("GET", "/v1/models", key=key["key"], replica=1))[0] == 200
    status, ended = await ports.call("POST", "/team/delete", {"team_ids": ["blue"]})
    assert (status, ended) == (200, {"deleted_teams": ["blue"], "deleted_keys": [key["token"]]})

    async def refused():
        return (await ports.call("GET", "/v1/models", key=key["key"], replica=1))[0] == 401

    await testing.eventually_async(refused, "keys of a deleted team are refused", timeout_s=5)
    assert (await ports.call("GET", "/team/info?team_id=blue"))[0] == 404


@pytest.mark.parametrize(("kind", "made"), [("key", "/key/generate"), ("team", "/team/new"), ("user", "/user/new"), ("tenant", "")])
async def test_names_notes_and_blocks_are_changed_alike_for_all_kinds(ports, kind, made):
    first = (await ports.call("POST", made, {f"{kind}_alias": "old", "metadata": {"a": 1}}))[1] if made else {}
    named = {"key": {"key": first.get("token")}, "tenant": {}}.get(kind, {f"{kind}_id": first.get(f"{kind}_id")})
    for changes in [{f"{kind}_alias": a, "metadata": m, "blocked": b} for a, m, b in (("new", {"b": 2}, True), (None, {}, False))]:
        status, answer = await ports.call("POST", f"/{kind}/update", {**named, **changes})
        assert (status, {name: answer.get("data", answer).get(name) for name in changes}) == (200, changes), answer


async def test_users_and_tenants_hold_limits_and_can_be_blocked(ports):
    status, user = await ports.call(
        "POST", "/user/new", {"user_id": "ana", "user_email": "ana@example.org", "max_budget": 1, "duration": "1d"}
    )
    assert (status, user["max_budget"], user["user_email"]) == (200, 1.0, "ana@example.org")
    assert (await ports.call("POST", "/user/new", {"user_id": "ana"}))[0] == 409
    assert "key" not in (await ports.call("POST", "/user/new", {"user_id": "bob", "auto_create_key": False}))[1]
    principal = await ports.accounts[1].resolve(user["key"])
    assert (await ports.call("POST", "/user/update", {"user_id": "ana", "max_budget": 3}))[1]["data"]["max_budget"] == 3.0
    assert (await ports.call("POST", "/tenant/update", {"max_budget": 100, "budget_duration": "1d"}))[0] == 200

    async def arrived():
        limits = await ports.accounts[1].limits(principal)
        return (limits.user.max_budget_microusd, limits.tenant.max_budget_microusd) == (3_000_000, 100_000_000)

    await testing.eventually_async(arrived, "limits of user and tenant arrive", timeout_s=5)
    info = (await ports.call("GET", "/user/info?user_id=ana"))[1]
    assert (info["user_info"]["max_budget"], len(info["keys"]), info["teams"]) == (3.0, 1, [])
    assert (await ports.call("GET", "/user/info?user_id=nobody"))[0] == 404
    assert (await ports.call("GET", "/tenant/info"))[1]["max_budget"] == 100.0
    assert (await ports.call("POST", "/user/block", {"user_id": "ana"}))[0] == 200

    async def refused():
        status, answer = await ports.call("GET", "/v1/models", key=user["key"], replica=1)
        return status == 401 and answer["error"]["code"] == "blocked_api_key"

    await testing.eventually_async(refused, "a blocked user's keys are refused", timeout_s=5)


async def test_spend_is_listed_summed_and_reported(ports):
    key = await generated(ports, user_id="ana")
    ports.book.add(MARCH_1 + 1000, 2_000_000_000, key=key["token"])
    ports.book.add(MARCH_1 + DAY_MS, 500_000_000, key=key["token"], model="other", team="blue")
    ports.book.add(MARCH_1 + DAY_MS + 5, 1, user="bob", metadata={"tag": "x"})
    ports.book.add(MARCH_1, 7, tenant="other")
    rows = (await ports.call("GET", f"/spend/logs?api_key={key['key']}"))[1]
    assert [(row["spend"], row["model"], row["total_tokens"]) for row in rows] == [(0.5, "other", 7), (2.0, "main", 7)]
    assert rows[1]["startTime"] == "2026-03-01T00:00:00.750000+00:00"
    assert len((await ports.call("GET", "/spend/logs?user_id=bob"))[1]) == 1
    page = (await ports.call("GET", "/spend/logs?page=2&page_size=2"))[1]
    assert (page["next_cursor"], [row["spend"] for row in page["data"]]) == (None, [1e-9])
    assert [row["request_id"] for row in (await ports.call("GET", "/spend/logs?request_id=c1"))[1]] == ["c1"]
    days = (await ports.call("GET", "/spend/logs?start_date=2026-03-01&end_date=2026-03-02"))[1]
    assert [(day["startTime"], day["spend"], day["models"]) for day in days] == [
        ("2026-03-01", 2.0, {"main": 2.0}),
        ("2026-03-02", 0.500000001, {"main": 1e-9, "other": 0.5}),
    ]
    single = (await ports.call("GET", "/spend/logs?start_date=2026-03-01&end_date=2026-03-01&summarize=false"))[1]
    assert [row["spend"] for row in single] == [2.0]
    report = (await ports.call("GET", "/global/spend/report?start_date=2026-03-02&end_date=2026-03-02"))[1]
    assert [(team["team_name"], team["total_spend"]) for team in report[0]["teams"]] == [("", 1e-9), ("blue", 0.5)]
    assert (await ports.call("GET", f"/key/info?key={key['token']}"))[1]["info"]["spend"] == 2.5
    for query in (
        "start_date=x",
        "start_date=2026-03-02&end_date=2026-03-01",
        "start_date=2026-02-30",
        "summarize=si",
        "page=0",
        "summarize=true",
        "page=11&page_size=1000",
        "start_date=2026-01-01&end_date=2027-02-01",
        "start_date=2026-01-01&end_date=2026-01-02&request_id=c1&summarize=true",
    ):
        assert (await ports.call("GET", f"/spend/logs?{query}"))[0] == 400, query
    assert (await ports.call("GET", "/global/spend/report"))[0] == 400
    assert (await ports.call("GET", "/global/spend/report?start_date=2026-03-02&end_date=2026-03-02&group_by=x"))[0] == 400
    assert (await ports.call("GET", "/spend/logs?tenant=other"))[1][0]["spend"] == 7e-9


async def test_model_info_shows_prices_and_no_secret_of_the_models_a_key_may_call(ports):
    key = await generated(ports, models=["main"])
    status, answer = await ports.call("GET", "/model/info", key=key["key"])
    assert status == 200
    assert [(entry["model_name"], entry["model_info"]["input_cost_per_token"]) for entry in answer["data"]] == [("main", 2.5e-6)]
    everything = (await ports.call("GET", "/v1/model/info"))[1]
    assert [entry["model_info"]["input_cost_per_token"] for entry in everything["data"]] == [2.5e-6, None]
    text = orjson.dumps(everything).decode()
    assert "sk-upstream" not in text
    assert "pw@up" not in text
    assert (await ports.call("GET", "/model/info?litellm_model_id=d2", key=key["key"]))[0] == 404
