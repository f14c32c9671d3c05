"""Tokens of outside issuers at the gateway: whose they are, what is no token of theirs, and what happens to keys."""

import asyncio
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
import yaml
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from services.common import testing
from services.common.accounts import UserRecord
from services.common.identity import Minter, Principal
from services.gateway import fakes
from services.gateway.oidc import _fetching, _keys, _tokens
from tests.integration.oidc_issuer import OTHER_RSA_KEY, encoded, idp, jwk

SCOPES = {"chat": ["runs:write"], "read": ["runs:read", "threads:read"]}
POLICIES = {"sets": {"test": {"free": {"requests_per_minute": 1000}, "enterprise": {"requests_per_minute": 5000}}}}


def write(folder, *issuers):
    (folder / "policies.yaml").write_text(yaml.safe_dump(POLICIES))
    (folder / "oidc.yaml").write_text(yaml.safe_dump({"issuers": list(issuers)}))
    return folder


def entry(issuer, **more):
    made = {"issuer": issuer.url, "jwks_url": issuer.jwks_url, "audiences": ["bulkhead"], "tenant": "acme", "scopes": SCOPES, **more}
    return {name: value for name, value in made.items() if value is not None}


@pytest.fixture
async def issuer():
    async with idp() as made:
        yield made


@pytest.fixture
async def trusting(identities, state_url, tmp_path):
    """Makes gateways that take tokens of issuers."""

    @asynccontextmanager
    async def make(*issuers):
        async with fakes.gateway(identities, state_url, config_dir=write(tmp_path, *issuers)) as served:
            async with aiohttp.ClientSession(served.url) as served.http:
                yield served

    return make


async def ask(served, token, path="/v1/threads"):
    async with served.http.get(path, headers={"authorization": f"Bearer {token}"}) as response:
        return response.status, await response.json(), response.headers


async def status_of(served, token, path="/v1/threads"):
    return (await ask(served, token, path))[0]


# --- whose it is ---


async def test_its_claims_say_who_asks_and_what_they_may(issuer, trusting):
    claims = {"tier": "plan.name", "tenant": "org", "scopes": "roles", "team": "https://example.com/team"}
    who = entry(issuer, tenant=None, tenants={"o-1": "globex"}, claims=claims, tiers={"gold": "enterprise"}, user_prefix="idp|")
    async with trusting(who) as served:
        rich = {"org": "o-1", "plan": {"name": "gold"}, "roles": ["chat", "read", "admin", 7], "https://example.com/team": "blue"}
        status, _, headers = await ask(served, issuer.token(**rich))
        assert (status, "q=5000" in headers["ratelimit-policy"]) == (200, True)
        found = served.calls("ListThreads")[-1].principal
        assert found == Principal("globex", "idp|mia", team="blue", scopes=("runs:write", "runs:read", "threads:read"), tier="enterprise")
        _, _, headers = await ask(served, issuer.token(org="o-1", roles=["read"], plan={"name": "platinum"}))
        assert "q=1000" in headers["ratelimit-policy"]
        status, told, headers = await ask(served, issuer.token(org="o-1", roles=["chat", "threads:read", "*"]))
        assert (status, told["missing_scopes"]) == (403, "threads:read")
        assert 'error="insufficient_scope"' in headers["www-authenticate"]


@pytest.mark.parametrize(("kid", "algorithm"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")])
async def test_each_algorithm_that_is_taken_by_default(issuer, trusting, kid, algorithm):
    async with trusting(entry(issuer)) as served:
        assert await status_of(served, issuer.token(kid, algorithm)) == 200
        assert await status_of(served, issuer.token(kid, algorithm, aud=["other", "bulkhead"], header={"typ": "at+jwt"})) == 200


async def test_keys_of_the_api_work_beside_tokens_and_without_any_issuer(issuer, trusting):
    async with trusting(entry(issuer)) as served:
        assert await status_of(served, served.key) == 200
    async with trusting() as served:
        status, told, _ = await ask(served, issuer.token())
        assert (status, told["reason"]) == (401, "INVALID_API_KEY")
        assert await status_of(served, served.key) == 200
    assert len(issuer.asked) == 0


async def test_where_its_keys_are_its_discovery_document_says(trusting):
    async with idp("/realms/acme") as issuer, trusting(entry(issuer, jwks_url=None)) as served:
        assert await status_of(served, issuer.token()) == 200
        assert issuer.asked == ["/realms/acme/.well-known/openid-configuration", "/realms/acme/jwks"]


async def test_who_is_blocked_here_is_refused_with_a_good_token(issuer, trusting):
    async with trusting(entry(issuer)) as served:
        token = issuer.token()
        assert await status_of(served, token) == 200
        await served.accounts.users.create(UserRecord("acme", "mia", blocked=True), "mia")

        async def refused():
            status, told, _ = await ask(served, token)
            return (status, told.get("reason")) == (401, "BLOCKED_ACCOUNT")

        await testing.eventually_async(refused, "the user is blocked")


# --- what is no token ---


def forged(issuer, other, identities):
    """(what it is, token, reason)."""
    now = int(time.time())
    good, (head, body, signature) = issuer.token(), issuer.token().split(".")
    weak = rsa.generate_private_key(65537, 1024)
    issuer.shown += [jwk(OTHER_RSA_KEY, "enc", use="enc"), jwk(OTHER_RSA_KEY, "pinned", alg="PS256"), jwk(weak, "weak")]
    issuer.shown.append({"kty": "oct", "kid": "shared", "k": encoded(b"s" * 32), "alg": "HS256", "use": "sig"})
    minter = Minter.from_file(identities.signing_key("gateway"), "gateway")
    invalid = [
        *((f"alg {name}", issuer.unsigned(name)) for name in ("none", "None", "NONE", "nOnE", "")),
        ("alg none with a signature", issuer.unsigned("none", b"x" * 256)),
        ("its signature taken away", f"{head}.{body}."),
        ("HMAC with the public key", issuer.by_secret(issuer.public_pem())),
        ("HMAC with the public key, bare", issuer.by_secret(issuer.public_pem().strip())),
        ("HMAC with a secret of the key set", issuer.by_secret(b"s" * 32, "shared")),
        ("HMAC with nothing", issuer.by_secret(b"")),
        ("another key under its name", issuer.token(key=OTHER_RSA_KEY)),
        ("another's key under its name", other.token(iss=issuer.url)),
        ("a key of the other issuer", other.token("theirs", key=OTHER_RSA_KEY, iss=issuer.url)),
        ("its own key for the other issuer", issuer.token(iss=other.url)),
        ("a key of another kind", issuer.token("ec", "RS256", key=OTHER_RSA_KEY)),
        ("a key for encryption", issuer.token("enc", key=OTHER_RSA_KEY)),
        ("a key for another algorithm", issuer.token("pinned", key=OTHER_RSA_KEY)),
        ("a key that is too short", issuer.token("weak", key=weak)),
        ("an algorithm that is not taken", issuer.token("rsa", "RS512")),
        ("its key in its own header", issuer.token("mine", key=OTHER_RSA_KEY, header={"jwk": jwk(OTHER_RSA_KEY, "mine")})),
        ("a key set in its own header", issuer.token("mine", key=OTHER_RSA_KEY, header={"jku": f"{other.url}/attack"})),
        ("no name of a key, of several", issuer.token(key=OTHER_RSA_KEY, header={"kid": None})),
        ("a name of a key that is none", f"{encoded({'alg': 'RS256', 'kid': ['rsa']})}.{body}.{signature}"),
        ("a path as name of a key", issuer.token("../../dev/null", key=OTHER_RSA_KEY)),
        ("what must be understood and is not", issuer.token(header={"crit": ["exp"]})),
        ("a token for something else", issuer.token(header={"typ": "logout+jwt"})),
        ("zeros for a signature", f"{encoded({'alg': 'ES256', 'kid': 'ec'})}.{body}.{encoded(b'0' * 64)}"),
        ("other claims under its signature", f"{head}.{encoded(issuer.claims(sub='root'))}.{signature}"),
        ("another audience", issuer.token(aud="somebody")),
        ("no audience", issuer.token(aud=None)),
        ("an audience that is none", issuer.token(aud=[])),
        ("another issuer", issuer.token(iss="https://evil.example")),
        ("nearly its issuer", issuer.token(iss=f"{issuer.url}/")),
        ("no issuer", issuer.token(iss=None)),
        ("not yet", issuer.token(nbf=now + 90)),
        ("from the future", issuer.token(iat=now + 90)),
        ("no end", issuer.token(exp=None)),
        ("an end that is none", issuer.token(exp="never")),
        ("nobody", issuer.token(sub=None)),
        ("nobody by name", issuer.token(sub="")),
        ("a name that cannot be", issuer.token(sub="{acme}:root")),
        ("a name with a line break", issuer.token(sub="a\nb")),
        ("an internal token", minter.mint(testing.principal_of())),
        ("no JSON", f"{encoded(b'no')}.{body}.{signature}"),
        ("a list for claims", f"{head}.{encoded([1])}.{signature}"),
        ("nested", f"{head}.{encoded(b'[' * 9000)}.{signature}"),
        ("empty", ".."),
        ("long", good + "x" * 20_000),
    ]
    expired = [("expired", issuer.token(exp=now - 31)), ("expired long ago", issuer.token(exp=1))]
    return [(*one, "INVALID_TOKEN") for one in invalid] + [(*one, "EXPIRED_TOKEN") for one in expired]


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_what_is_no_token_of_an_issuer_is_nobodys(issuer, trusting, identities):
    async with idp() as other, trusting(entry(issuer), entry(other, tenant="globex")) as served:
        other.shown = [jwk(OTHER_RSA_KEY, "rsa"), jwk(OTHER_RSA_KEY, "theirs")]
        other.keys["rsa"] = OTHER_RSA_KEY
        found = {}
        for what, token, reason in forged(issuer, other, identities):
            status, told, headers = await ask(served, token)
            if (status, told.get("reason")) != (401, reason) or token in str(told) or "invalid_token" not in headers["www-authenticate"]:
                found[what] = (status, told)
        assert found == {}
        assert served.log.seen == []
        assert "/attack" not in other.asked
        # The same issuers' own tokens are good all the while.
        assert (await status_of(served, issuer.token()), await status_of(served, other.token())) == (200, 200)
        assert served.calls("ListThreads")[-1].principal.tenant == "globex"


async def test_clocks_may_differ_by_what_is_configured_and_no_more(issuer, trusting):
    now = int(time.time())
    async with trusting(entry(issuer, clock_skew_s=60)) as served:
        for times in ({"exp": now - 50}, {"nbf": now + 50}, {"iat": now + 50}):
            assert await status_of(served, issuer.token(**times)) == 200
        for times in ({"exp": now - 70}, {"nbf": now + 90}, {"iat": now + 90}):
            assert await status_of(served, issuer.token(**times)) == 401


async def test_a_token_ends_while_it_is_remembered(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_tokens, "REMEMBERED_S", 3600.0)
    async with trusting(entry(issuer, clock_skew_s=0)) as served:
        token = issuer.token(exp=int(time.time()) + 2)
        assert await status_of(served, token) == 200

        async def ended():
            status, told, _ = await ask(served, token)
            return (status, told.get("reason")) == (401, "EXPIRED_TOKEN")

        await testing.eventually_async(ended, "it has ended")


# --- keys ---


async def test_a_key_that_is_new_is_looked_for_and_a_flood_of_names_looks_no_more_often(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_keys, "LOOK_EVERY_S", 0.0)
    async with trusting(entry(issuer)) as served:
        assert await status_of(served, issuer.token()) == 200
        issuer.shown = [jwk(OTHER_RSA_KEY, "next")]
        assert await status_of(served, issuer.token("next", key=OTHER_RSA_KEY)) == 200
        # The key that is gone signs nothing any more.
        assert await status_of(served, issuer.token(jti="another")) == 401
        monkeypatch.setattr(_keys, "LOOK_EVERY_S", 3600.0)
        before = len(issuer.asked)
        flood = [issuer.token(f"guess-{number}", key=OTHER_RSA_KEY) for number in range(40)]
        assert set(await asyncio.gather(*(status_of(served, token) for token in flood))) == {401}
        assert len(issuer.asked) == before


async def test_a_token_that_names_no_key_is_taken_where_there_is_no_question_which(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_keys, "LOOK_EVERY_S", 0.0)
    async with trusting(entry(issuer)) as served:
        assert await status_of(served, issuer.token(header={"kid": None})) == 200
        issuer.shown.append(jwk(OTHER_RSA_KEY, "another"))
        assert await status_of(served, issuer.token("new", key=OTHER_RSA_KEY)) == 401
        assert await status_of(served, issuer.token(header={"kid": None}, jti="now there are two")) == 401


async def test_of_many_who_come_at_once_one_looks(issuer, trusting):
    async with trusting(entry(issuer)) as served:
        tokens = [issuer.token(jti=str(number)) for number in range(20)]
        assert set(await asyncio.gather(*(status_of(served, token) for token in tokens))) == {200}
    assert issuer.asked == ["/jwks"]


async def test_keys_that_cannot_be_had_are_503_and_never_401(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_keys, "LOOK_EVERY_S", 0.0)
    issuer.answer = 500
    async with trusting(entry(issuer)) as served:
        for token in (issuer.token(), issuer.token("unknown", key=OTHER_RSA_KEY)):
            status, told, headers = await ask(served, token)
            assert (status, told["reason"], told["retryable"]) == (503, "ISSUER_UNREACHABLE", True)
            assert int(headers["retry-after"]) >= 1
            assert "www-authenticate" not in headers
        # What needs no key of theirs is told from it.
        assert await status_of(served, issuer.unsigned("none")) == 401
        assert await status_of(served, served.key) == 200
        issuer.answer = None
        assert await status_of(served, issuer.token()) == 200
        issuer.answer = 500
        assert await status_of(served, issuer.token(jti="known key")) == 200
        assert await status_of(served, issuer.token("unknown", key=OTHER_RSA_KEY)) == 503


async def test_known_keys_serve_while_the_issuer_is_away_and_are_looked_at_again(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_keys, "LOOK_EVERY_S", 0.0)
    async with trusting(entry(issuer)) as served:
        assert await status_of(served, issuer.token()) == 200
        issuer.answer, before = 500, len(issuer.asked)
        monkeypatch.setattr(_keys.time, "monotonic", lambda real=time.monotonic: real() + 3700)
        assert await status_of(served, issuer.token(jti="1")) == 200

        async def looked():
            return len(issuer.asked) > before

        await testing.eventually_async(looked, "they are looked at again")
        assert await status_of(served, issuer.token(jti="2")) == 200
        monkeypatch.setattr(_keys.time, "monotonic", lambda real=time.monotonic: real() + 25 * 3600)
        assert await status_of(served, issuer.token(jti="3")) == 503


async def redirect(request):
    raise web.HTTPFound("/elsewhere")


async def drip(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(40):
        await response.write(b" ")
        await asyncio.sleep(0.05)
    return response


BAD = {
    "redirect": redirect,
    "drip": drip,
    "no JSON": lambda _: _told(b"<html>"),
    "a list": lambda _: _told(b"[]"),
    "no keys": lambda _: _told(b'{"keys": {}}'),
    "large": lambda _: _told(b'{"keys": [' + b" " * 600_000 + b"]}"),
    "too many keys": lambda _: _told(b'{"keys": [' + b"1," * 200 + b"1]}"),
    "deep": lambda _: _told(b"[" * 100_000),
}


async def _told(body):
    return web.Response(body=body)


async def test_an_answer_that_is_no_key_set_is_none(issuer, trusting, monkeypatch):
    monkeypatch.setattr(_keys, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(_fetching, "TIMEOUT_S", 0.5)
    async with trusting(entry(issuer)) as served:
        for what, answer in BAD.items():
            issuer.answer = answer
            status, told, _ = await ask(served, issuer.token())
            assert (what, status, told["reason"]) == (what, 503, "ISSUER_UNREACHABLE")
    assert "/elsewhere" not in issuer.asked


ODD = [
    None, "key", {}, {"kty": "RSA"}, {"kty": ["RSA"]},
    *({**jwk(OTHER_RSA_KEY, "odd"), **odd} for odd in (
        {"alg": "none"}, {"alg": ["RS256"]}, {"alg": 5}, {"key_ops": 5}, {"key_ops": True}, {"key_ops": {}}, {"n": 5}, {"n": "", "e": ""},
        {"use": ["sig"]}, {"kty": "EC", "crv": "P-256", "x": [], "y": 1}, {"kty": "OKP", "crv": {}, "x": "AA"},
    )),
]  # fmt: skip


async def test_an_odd_entry_of_a_key_set_spoils_no_other(issuer, trusting):
    issuer.shown = [*ODD, *issuer.shown]
    async with trusting(entry(issuer)) as served:
        for kid, algorithm in (("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")):
            assert await status_of(served, issuer.token(kid, algorithm)) == 200
        assert await status_of(served, issuer.token("odd", key=OTHER_RSA_KEY)) == 401


async def test_a_discovery_document_of_another_issuer_leads_nowhere(issuer, trusting):
    async def elsewhere(request):
        return web.json_response({"issuer": "https://evil.example", "jwks_uri": issuer.jwks_url})

    issuer.answer = elsewhere
    async with trusting(entry(issuer, jwks_url=None)) as served:
        assert await status_of(served, issuer.token()) == 503
    assert issuer.asked == ["/.well-known/openid-configuration"]


async def test_issuers_follow_the_file(issuer, trusting, tmp_path, monkeypatch):
    monkeypatch.setattr(_tokens, "REMEMBERED_S", 3600.0)
    async with trusting(entry(issuer)) as served:
        token = issuer.token()
        assert await status_of(served, token) == 200
        write(tmp_path, entry(issuer, tenant="globex"))

        async def moved():
            return await status_of(served, token) == 200 and served.calls("ListThreads")[-1].principal.tenant == "globex"

        await testing.eventually_async(moved, "the user is of the other tenant")
        write(tmp_path)

        async def refused():
            return await status_of(served, token) == 401

        await testing.eventually_async(refused, "nobody's tokens are taken")
