"""Audit records of keys over HTTP: each change has one, which says who did what to which key and has nobody's words."""

from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import orjson
import pytest
import structlog

from services.common.audit import AuditStream, user_hash
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.gateway import fakes
from tests.integration.real_gateway import answered


@asynccontextmanager
async def audited(identities, state_url, **settings):
    """A gateway that keeps records, a session at it, and what reads them."""
    client = connect(state_url)
    async with (
        fakes.gateway(identities, state_url, **settings) as served,
        aiohttp.ClientSession(served.url, headers=served.headers()) as http,
    ):

        async def records():
            return [orjson.loads(entry.record) for entry in await AuditStream(client, timedelta(days=1)).read("acme")]

        yield served, http, records
    await client.aclose()


async def test_each_change_of_a_key_has_a_record_that_says_who_and_what(identities, state_url):
    async with audited(identities, state_url, audit_days=400) as (served, http, records):
        body = {"scopes": ["threads:read"], "name": "Marzipan", "user": "bo", "expires_at": "2099-01-01T00:00:00Z"}
        made = await answered(http.post("/v1/keys", json=body, headers={"x-request-id": "request-1"}), 201)
        path = f"/v1/keys/{made['key_id']}"
        await answered(http.patch(path, json={"name": "Nougat"}), 200)
        rotated = await answered(http.post(f"{path}/rotate", json={}), 200)
        await answered(http.delete(path), 204)
        # What was refused has changed nothing.
        await answered(http.delete(path), 404)
        await answered(http.post("/v1/keys", json={"scopes": ["*"], "tier": "none"}), 400)
        found = await records()
        own = (await served.accounts.list_keys("acme"))[0].key_id
        assert [one["action"] for one in found] == ["made", "changed", "rotated", "ended"]
        assert found[0] == {
            "schema_version": 1, "kind": "key", "action": "made", "user_hash": user_hash("acme", "ana"), "key_id": own,
            "tier": "enterprise", "tenant": "acme", "request_id": "request-1", "target_key": made["key_id"],
            "target_user_hash": user_hash("acme", "bo"), "target_tier": "enterprise", "target_scopes": ["threads:read"],
            "target_expires_ms": 4_070_908_800_000, "target_blocked": False, "retention_class": "standard",
        }  # fmt: skip
        for said in (made["secret"], rotated["secret"], "Marzipan", "Nougat", "bo", "ana"):
            assert f'"{said}"' not in orjson.dumps(found).decode()


async def test_a_request_that_comes_again_has_one_record_also_where_its_first_was_lost(identities, state_url, monkeypatch):
    append = AuditStream.append
    away = [True]

    async def sometimes(self, *about, **more):
        if away[0]:
            raise Overloaded("the store is away")
        return await append(self, *about, **more)

    monkeypatch.setattr(AuditStream, "append", sometimes)
    async with audited(identities, state_url, audit_days=400) as (_, http, records):
        once = {"idempotency-key": "audit-once"}
        with structlog.testing.capture_logs() as lines:
            made = await answered(http.post("/v1/keys", json={"scopes": []}, headers=once), 201)
        assert [line["action"] for line in lines if line["event"] == "audit_lost"] == ["made"]
        assert await records() == []
        away[0] = False
        for _ in range(2):
            assert (await answered(http.post("/v1/keys", json={"scopes": []}, headers=once), 201))["key_id"] == made["key_id"]
        assert [(one["action"], one["target_key"]) for one in await records()] == [("made", made["key_id"])]


@pytest.mark.parametrize("days", [0])
async def test_without_days_to_keep_them_there_are_none(identities, state_url, days):
    async with audited(identities, state_url, audit_days=days) as (_, http, records):
        await answered(http.post("/v1/keys", json={"scopes": []}), 201)
        assert await records() == []
