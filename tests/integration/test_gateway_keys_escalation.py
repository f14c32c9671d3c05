"""No key that is made over HTTP, by whomever and however often in a row, may more than whoever made it."""

import random
import time
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
import yaml

from services.common.accounts import LimitSet
from services.common.limits import parse_policies
from services.common.testing import ROOT
from services.gateway import fakes
from services.gateway.surfaces.native.keys_reach import MOST_BY_TOKEN
from tests.integration.oidc_issuer import idp
from tests.integration.real_gateway import answered

SCOPES = ("keys:write", "keys:read", "runs:read", "threads:read", "admin", "*")
TIERS = ("free", "pro", "enterprise")
FILE = yaml.safe_load((ROOT / "k8s/environments/local/config/policies.yaml").read_text())
STEPS = {name: tier.max_steps for name, tier in parse_policies(FILE, policy_set="test").sets["test"].items()}
TRIES = 150


def held(key, scope):
    return scope in key.scopes or "*" in key.scopes


def more(maker, made):
    """What a key may that its maker may not; '' where nothing."""
    if made.tenant != maker.tenant:
        return "another tenant"
    if made.user != maker.user and not held(maker, "admin"):
        return "another user"
    if any(held(made, scope) and not held(maker, scope) for scope in (*SCOPES, "whatever")):
        return "scopes"
    if STEPS[made.tier] > STEPS[maker.tier]:
        return "tier"
    if maker.expires_at and not 0 < made.expires_at <= maker.expires_at:
        return "for longer"
    if any(made.limits.allows(model) and not maker.limits.allows(model) for model in "mn"):
        return "models"
    return "money" if maker.limits.max_budget_microusd is not None else ""


def wish(chance, now):
    """What somebody may try to get."""
    body = {"scopes": chance.sample(SCOPES, chance.choice([0, 1, 1, 2]))}
    if chance.random() < 0.3:
        body["user"] = chance.choice(["ana", "bo"])
    if chance.random() < 0.5:
        body["tier"] = chance.choice(TIERS)
    if chance.random() < 0.4:
        body["expires_at"] = datetime.fromtimestamp(now + chance.choice([60, 3600, 86_400]), UTC).isoformat()
    return body


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_is_asked_for_in_a_row_nobody_gets_more_than_they_have(identities, state_url, seed):
    chance, now = random.Random(seed), time.time()
    accounts, got = [], 0
    limits = (LimitSet(), LimitSet(), LimitSet(models=("m",)), LimitSet(max_budget_microusd=5))
    async with fakes.gateway(identities, state_url) as front:
        for tier in TIERS:
            for bound in limits:
                issued = await front.accounts.create_key(
                    tenant=chance.choice(["acme", "globex"]), user="ana", tier=tier, limits=bound,
                    scopes=("keys:write", *chance.sample(SCOPES[1:], chance.choice([1, 2, 3]))),
                    lifetime=chance.choice([None, timedelta(hours=2)]),
                )  # fmt: skip
                accounts.append((issued.secret, issued.record))
        async with aiohttp.ClientSession(front.url) as http:
            for _ in range(TRIES):
                secret, maker = chance.choice(accounts)
                rotates = chance.random() < 0.3
                target = chance.choice(accounts)[1]
                path = f"/v1/keys/{target.key_id}/rotate" if rotates else "/v1/keys"
                body = {"overlap_ms": 600_000} if rotates else wish(chance, now)
                async with http.post(path, json=body, headers={"x-api-key": secret}) as response:
                    told = await response.json()
                assert response.status in (200, 201, 401, 403, 404), told
                if response.status >= 400:
                    continue
                got += 1
                made = await front.accounts.keys.find(told["key_id"], maker.tenant)
                # A key has its own power already, money too.
                if made.key_id != maker.key_id:
                    assert more(maker, made) == "", (maker, body, made)
                assert (await front.accounts.resolve(told["secret"])).scopes == made.scopes
                # It goes on with what it got.
                accounts.append((told["secret"], made))
    assert got > TRIES / 15


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        (LimitSet(max_budget_microusd=5), "KEY_LIMITED"),
        (LimitSet(requests_per_minute=5), "KEY_LIMITED"),
        (LimitSet(models=("m",), max_parallel=1), "KEY_LIMITED"),
        (LimitSet(models=("m",)), ""),
    ],
)
async def test_what_limits_a_key_it_cannot_shed(identities, state_url, bound, reason):
    async with fakes.gateway(identities, state_url) as front:
        issued = await front.accounts.create_key(tenant="acme", user="ana", team="", tier="pro", scopes=("keys:write",), limits=bound)
        async with aiohttp.ClientSession(front.url, headers={"x-api-key": issued.secret}) as http:
            async with http.post("/v1/keys", json={"scopes": []}) as response:
                told = await response.json()
                assert (response.status, told.get("reason", "")) == ((403, reason) if reason else (201, ""))
            if not reason:
                assert (await front.accounts.keys.find(told["key_id"], "acme")).limits == bound
            # What a key has spent stays with it, so its own secret it may replace.
            rotated = await answered(http.post(f"/v1/keys/{issued.record.key_id}/rotate"), 200)
        assert (await front.accounts.keys.find(issued.record.key_id, "acme")).limits == bound
        assert (await front.accounts.resolve(rotated["secret"])).key_id == issued.record.key_id


async def test_the_team_of_a_key_is_that_of_what_it_makes(identities, state_url):
    async with fakes.gateway(identities, state_url) as front:
        issued = await front.accounts.create_key(tenant="acme", user="ana", team="blue", tier="pro", scopes=("keys:write",))
        async with aiohttp.ClientSession(front.url, headers={"x-api-key": issued.secret}) as http:
            assert (await answered(http.post("/v1/keys", json={"scopes": []}), 201))["team"] == "blue"
            # Keys of the same user outside of the team are not under its limits.
            free = await front.accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=())
            told = await answered(http.post(f"/v1/keys/{free.record.key_id}/rotate"), 403)
            assert told["missing_scopes"] == "admin"


async def test_a_token_makes_keys_of_its_own_user_for_thirty_days_at_most(identities, state_url, tmp_path):
    (tmp_path / "policies.yaml").write_text(yaml.safe_dump({"sets": {"test": {"free": {}, "pro": {"max_steps": 9}}}}))
    async with idp() as issuer:
        entry = {
            "issuer": issuer.url, "jwks_url": issuer.jwks_url, "audiences": ["bulkhead"], "tenant": "acme", "user_prefix": "idp|",
            "scopes": {"chat": ["keys:write", "keys:read", "threads:read"]}, "tier": "pro",
        }  # fmt: skip
        (tmp_path / "oidc.yaml").write_text(yaml.safe_dump({"issuers": [entry]}))
        async with fakes.gateway(identities, state_url, config_dir=tmp_path) as front:
            bearer = {"authorization": f"Bearer {issuer.token()}"}
            async with aiohttp.ClientSession(front.url, headers=bearer) as http:
                made = await answered(http.post("/v1/keys", json={"scopes": ["threads:read"]}), 201)
                record = await front.accounts.keys.find(made["key_id"], "acme")
                assert (record.user, record.tier, record.made_by) == ("idp|mia", "pro", "")
                assert 0 <= time.time() + MOST_BY_TOKEN.total_seconds() - record.expires_at < 60
                later = (datetime.now(UTC) + MOST_BY_TOKEN + timedelta(minutes=5)).isoformat()
                for body, reason in (
                    ({"scopes": [], "expires_at": later}, "KEY_OUTLASTS_CALLER"),
                    ({"scopes": ["runs:read"]}, "SCOPE_MISSING"),
                    ({"scopes": ["*"]}, "SCOPE_MISSING"),
                    ({"scopes": [], "user": "ana"}, "SCOPE_MISSING"),
                ):
                    assert (await answered(http.post("/v1/keys", json=body), 403))["reason"] == reason
                headers = {"idempotency-key": "t"}
                assert (await answered(http.post("/v1/keys", json={"scopes": []}, headers=headers), 201))["secret"]
                assert (await answered(http.post("/v1/keys", json={"scopes": []}, headers=headers), 201))["secret"] is None
                # A key of the same name that never ends is not a token's to take over.
                endless = await front.accounts.create_key(tenant="acme", user="idp|mia", tier="pro", scopes=())
                told = await answered(http.post(f"/v1/keys/{endless.record.key_id}/rotate"), 403)
                assert told["reason"] == "KEY_OUTLASTS_CALLER"
                assert len((await answered(http.get("/v1/keys"), 200))["data"]) == 3
                await answered(http.delete(f"/v1/keys/{made['key_id']}"), 204)
