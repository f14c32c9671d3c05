"""RateLimit and RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers-10, Retry-After, and which status is for what."""

import re

import aiohttp
import pytest
import yaml
from opentelemetry import trace

from services.common.errors import QuotaExceeded
from services.gateway import fakes
from services.gateway.edge.exchange import Exchange
from services.gateway.edge.limit_headers import tell_of
from services.gateway.fake_log import EXPLODES
from tests.integration.real_gateway import gateway_before

# A list of strings with integer parameters, as structured fields write it (RFC 9651).
MEMBER = r'"[\x20\x21\x23-\x5b\x5d-\x7e]*"(?:;[a-z]+=\d+)*'
LIST = re.compile(rf"{MEMBER}(?:, *{MEMBER})*\Z")


def parsed(field):
    """{policy: parameters} of a field, which has to be a structured list."""
    assert LIST.match(field), field
    found = {}
    for member in re.findall(MEMBER, field):
        name, *parameters = member.split(";")
        found[name.strip('"')] = {key: int(value) for key, value in (one.split("=") for one in parameters)}
    return found


def config(folder, **free):
    (folder / "policies.yaml").write_text(yaml.safe_dump({"sets": {"test": {"free": free, "enterprise": {}}}}))
    return folder


async def session(served, **options):
    return aiohttp.ClientSession(served.url, headers={"x-api-key": await served.issue(tier="free", **options)})


RUN = {"input": "hi", "agent": "assistant"}
SAY = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
JSON, CSV = {"content-type": "application/json"}, {"content-type": "text/csv"}
ANSWERS = [
    (200, "get", "/v1/agents", {}),
    (202, "post", "/v1/threads/t/runs", {"json": RUN}),
    (200, "post", "/v1/threads/t/runs", {"json": RUN | {"stream": True}}),
    (200, "post", "/v1/chat/completions", {"json": SAY}),
    (400, "get", "/v1/threads?limit=0", {}),
    (400, "post", "/v1/threads", {"data": b"{", "headers": JSON}),
    (403, "get", "/v1/memories", {}),
    (404, "get", "/v1/runs/run_none", {}),
    (404, "get", "/v1/models/none", {}),
    (413, "post", "/v1/threads", {"data": b" " * (4 * 1024 * 1024 + 1), "headers": JSON}),
    (415, "post", "/v1/threads", {"data": b"x", "headers": CSV}),
    (422, "post", "/v1/feedback", {"json": {}}),
    (500, "get", f"/v1/threads/{EXPLODES}", {}),
    (503, "post", "/v1/agents/fail/chat", {"json": {"user_input": "OVERLOADED"}}),
]


async def test_every_answer_of_a_limited_route_says_what_is_left_whatever_it_is(identities, state_url, tmp_path):
    limits = config(tmp_path, requests_per_minute=60, requests_per_day=1000)
    async with fakes.gateway(identities, state_url, config_dir=limits) as served:
        async with await session(served, scopes=("threads:read", "threads:write", "runs:read", "runs:write")) as http:
            for number, (status, method, path, options) in enumerate(ANSWERS, 1):
                async with http.request(method, path, **options) as response:
                    await response.read()
                    assert response.status == status, await response.text()
                    assert parsed(response.headers["ratelimit-policy"]) == {
                        "requests_per_minute": {"q": 60, "w": 60},
                        "requests_per_day": {"q": 1000, "w": 86_400},
                    }
                    found = parsed(response.headers["ratelimit"])
                    # One of a minute's 60 comes each second, one of a day's 1000 within 87.
                    assert (found["requests_per_minute"]["t"], found["requests_per_day"]["r"]) == (1, 1000 - number)
                    assert 1 <= found["requests_per_day"]["t"] <= 87
                    assert ("retry-after" in response.headers) == (status == 503)
            async with http.get("/v1/agents", headers={"x-api-key": "bh_" + "x" * 43}) as response:
                assert (response.status, "ratelimit" in response.headers) == (401, False)


async def test_whoever_took_the_last_waits_for_the_next_and_not_for_all_of_them(identities, state_url, tmp_path):
    async with fakes.gateway(identities, state_url, config_dir=config(tmp_path, requests_per_minute=3)) as served:
        async with await session(served) as http:
            for _ in range(3):
                async with http.get("/v1/agents") as response:
                    found = parsed(response.headers["ratelimit"])["requests_per_minute"]
            assert found["r"] == 0
            assert 15 <= found["t"] <= 20


async def test_of_two_limits_that_are_short_the_longer_says_when_to_come_back(identities, state_url, tmp_path):
    limits = config(tmp_path, requests_per_minute=2, requests_per_day=2)
    async with fakes.gateway(identities, state_url, config_dir=limits) as served, await session(served) as http:
        for _ in range(2):
            async with http.get("/v1/agents") as response:
                assert response.status == 200
        async with http.get("/v1/agents") as response:
            found, body = parsed(response.headers["ratelimit"]), await response.json()
        wait_s = int(response.headers["retry-after"])
        assert response.status == 429
        assert 43_000 < wait_s <= 43_200
        assert found["requests_per_minute"]["r"] == found["requests_per_day"]["r"] == 0
        assert found["requests_per_minute"]["t"] <= 30
        assert found["requests_per_day"]["t"] == wait_s
        assert body["violated-policies"] == ["requests_per_minute", "requests_per_day"]
        assert (body["policy"], body["reason"], body["retryable"]) == ("requests_per_day", "QUOTA_EXCEEDED", True)


async def test_beside_a_limit_that_is_short_no_other_names_a_later_time(identities, state_url, tmp_path):
    limits = config(tmp_path, requests_per_minute=1, requests_per_day=100)
    async with fakes.gateway(identities, state_url, config_dir=limits) as served, await session(served) as http:
        for _ in range(2):
            async with http.get("/v1/models") as response:
                found = parsed(response.headers["ratelimit"])
        assert response.status == 429
        assert found["requests_per_day"] == {"r": 99}
        assert found["requests_per_minute"] == {"r": 0, "t": int(response.headers["retry-after"])}


async def test_what_a_scope_refuses_counts_as_well(identities, state_url, tmp_path):
    async with fakes.gateway(identities, state_url, config_dir=config(tmp_path, requests_per_minute=2)) as served:
        async with await session(served, scopes=()) as http:
            seen = []
            for _ in range(4):
                async with http.get("/v1/threads") as response:
                    seen.append(response.status)
    assert seen == [403, 403, 429, 429]


async def test_load_is_503_and_says_when_to_come_back_whoever_refuses(identities, state_url):
    async with gateway_before(identities, state_url, 1) as people:
        http = await people.session()
        for path in ("/v1/agents", "/v1/models", "/v1/memories"):
            async with http.get(path) as response:
                assert response.status == 503
                assert int(response.headers["retry-after"]) >= 1
                assert int(response.headers["retry-after-ms"]) >= 1


async def test_a_refusal_of_a_service_stands_in_the_header_as_well(identities, state_url, tmp_path, monkeypatch):
    async def full(self, request, context):
        raise QuotaExceeded("no place in the queue", retry_after_s=2.5, metadata={"policy": "queued_runs", "limit": "4"})

    monkeypatch.setattr(fakes.FakeOrchestrator, "CreateRun", full)
    async with fakes.gateway(identities, state_url, config_dir=config(tmp_path, requests_per_minute=60)) as served:
        async with await session(served) as http, http.post("/v1/threads/t/runs", json=RUN) as response:
            body = await response.json()
    assert (response.status, response.headers["retry-after"], body["violated-policies"]) == (429, "3", ["queued_runs"])
    assert parsed(response.headers["ratelimit"]) == {"requests_per_minute": {"r": 59, "t": 1}, "queued_runs": {"r": 0, "t": 3}}


def about():
    return Exchange("r", "0" * 32, trace.INVALID_SPAN, {})


def told(exchange):
    return dict(exchange.answer_headers).get(b"ratelimit", b"").decode()


def test_a_limit_that_a_service_refused_by_stands_beside_those_of_the_gateway():
    exchange = about()
    exchange.answer("ratelimit", '"requests_per_minute";r=59;t=1')
    for _ in range(2):
        tell_of(QuotaExceeded("full", retry_after_s=2.5, metadata={"policy": "queued_runs"}), exchange)
    tell_of(QuotaExceeded("full", metadata={"policy": "webhooks"}), exchange)
    assert parsed(told(exchange)) == {"requests_per_minute": {"r": 59, "t": 1}, "queued_runs": {"r": 0, "t": 3}, "webhooks": {"r": 0}}


@pytest.mark.parametrize("policy", ["", 'a";r=9', "a\r\nset-cookie: x=1", "a, b", "ü", "x" * 65])
def test_a_name_that_is_no_name_of_a_policy_is_no_header(policy):
    exchange = about()
    tell_of(QuotaExceeded("full", metadata={"policy": policy}), exchange)
    assert told(exchange) == ""


async def test_where_the_stores_memory_is_full_requests_are_admitted_and_limited(identities, state_url, valkey, tmp_path):
    async with fakes.gateway(identities, state_url, config_dir=config(tmp_path, requests_per_minute=3)) as served:
        async with await session(served) as http:

            async def asked():
                async with http.get("/v1/agents") as response:
                    return response.status

            assert await asked() == 200
            await valkey.config_set("maxmemory", "1mb")
            try:
                assert [await asked() for _ in range(3)] == [200, 200, 429]
            finally:
                await valkey.config_set("maxmemory", 0)
