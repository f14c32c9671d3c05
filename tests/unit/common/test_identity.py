"""Internal tokens: what a verifier accepts, and what it must not."""

import base64
import json
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.approval import Approval
from services.common.errors import PermissionDenied, Unauthenticated
from services.common.identity import Minter, Principal, Verifier, generate_keys

PRINCIPAL = Principal("acme", "ana", "key_1", "blue", ("runs:write",), "pro", "run_1")


def test_a_token_carries_the_whole_principal(identities):
    token = Minter.from_file(identities.signing_key("gateway"), "gateway").mint(PRINCIPAL)
    assert identities.verifier.verify(token) == PRINCIPAL


def test_no_token_lives_longer_than_five_minutes(identities):
    claims = jwt.decode(identities.token(PRINCIPAL), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] <= 300
    assert claims["exp"] - time.time() >= 110


def test_a_token_that_claims_a_longer_life_is_refused(identities):
    key = Minter.from_file(identities.signing_key("gateway"), "gateway")
    claims = {"iss": "x", "aud": "bulkhead", "iat": int(time.time()), "exp": int(time.time()) + 3600, "tenant": "a", "sub": "b"}
    token = jwt.encode(claims, key._key, algorithm="EdDSA", headers={"kid": key._kid})
    with pytest.raises(Unauthenticated):
        identities.verifier.verify(token)


def test_expired_foreign_and_unsigned_tokens_are_refused(identities, tmp_path):
    generate_keys(tmp_path, ["stranger"])
    foreign = Minter.from_file(tmp_path / "stranger.pem", "stranger").mint(PRINCIPAL)
    minter = Minter.from_file(identities.signing_key("gateway"), "gateway")
    old = {"iss": "x", "aud": "bulkhead", "iat": 1_000_000, "exp": 1_000_100, "tenant": "a", "sub": "b"}
    expired = jwt.encode(old, minter._key, algorithm="EdDSA", headers={"kid": minter._kid})
    unsigned = jwt.encode(
        {**old, "exp": int(time.time()) + 60, "iat": int(time.time())}, "", algorithm="none", headers={"kid": minter._kid}
    )
    public = json.loads(identities.keys_file.read_text())["keys"][0]
    confused = jwt.encode({**old, "exp": int(time.time()) + 60}, public["x"] * 2, algorithm="HS256", headers={"kid": public["kid"]})
    for token in (foreign, expired, unsigned, confused, "", "a.b.c", "nonsense"):
        with pytest.raises(Unauthenticated):
            identities.verifier.verify(token)


@given(st.data())
def test_a_token_of_which_any_character_was_changed_is_refused(identities, data):
    token = identities.token(PRINCIPAL)
    # The last character of a signature holds bits that stand for nothing.
    place = data.draw(st.integers(0, len(token) - 2))
    other = data.draw(st.sampled_from("ABCxyz019-_.=+/ \n\u00e9").filter(lambda found: found != token[place]))
    for changed in (token[:place] + other + token[place + 1 :], token[:place] + token[place + 1 :], token[:place] + "!" + token[place:]):
        with pytest.raises(Unauthenticated):
            identities.verifier.verify(changed)


@pytest.mark.parametrize(
    ("claims", "headers"),
    [
        ({"aud": "other"}, {}),
        ({"aud": None}, {}),
        ({"exp": None}, {}),
        ({"iat": None}, {}),
        ({"iss": None}, {}),
        ({"iss": "orchestrator"}, {}),
        ({"exp": "soon"}, {}),
        # Seconds from now, when the test runs.
        ({"iat": 60.5}, {}),
        ({"iat": 60, "exp": 90}, {}),
        ({}, {"crit": ["x"], "x": 1}),
        ({}, {"kid": None}),
    ],
)
def test_what_a_token_must_say_and_must_not(identities, claims, headers):
    """Signed with a key of ours all the same."""
    minter, now = Minter.from_file(identities.signing_key("gateway"), "gateway"), int(time.time())
    claims = {name: now + value if isinstance(value, int | float) else value for name, value in claims.items()}
    said = {"iss": "gateway", "aud": "bulkhead", "iat": now - 5, "exp": now + 60, "tenant": "a", "sub": "b"}

    def signed(claims, headers):
        parts = ({"alg": "EdDSA", "kid": minter._kid} | headers, said | claims)
        parts = [json.dumps({key: value for key, value in part.items() if value is not None}).encode() for part in parts]
        text = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
        return f"{text}.{base64.urlsafe_b64encode(minter._key.sign(text.encode())).decode().rstrip('=')}"

    assert identities.verifier.verify(signed({}, {})).tenant == "a"
    with pytest.raises(Unauthenticated):
        identities.verifier.verify(signed(claims, headers))


def test_rotation_both_keys_hold_during_the_overlap_and_the_old_one_ends(tmp_path):
    generate_keys(tmp_path, ["old"])
    verifier = Verifier.from_file(tmp_path / "jwks.json")
    old = Minter.from_file(tmp_path / "old.pem", "old").mint(PRINCIPAL)
    generate_keys(tmp_path, ["old", "new"])
    new = Minter.from_file(tmp_path / "new.pem", "new").mint(PRINCIPAL)
    verifier._looked_at = 0.0
    assert verifier.verify(new) == verifier.verify(old) == PRINCIPAL
    keys = json.loads((tmp_path / "jwks.json").read_text())["keys"]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": keys[1:]}))
    verifier._looked_at = 0.0
    assert verifier.verify(new) == PRINCIPAL
    with pytest.raises(Unauthenticated):
        verifier.verify(old)


def test_a_key_signs_for_the_issuers_that_it_names_and_one_that_names_none_for_anybody(tmp_path):
    generate_keys(tmp_path, ["gateway", "orchestrator"])
    verifier = Verifier.from_file(tmp_path / "jwks.json")
    own, posing = (Minter.from_file(tmp_path / "gateway.pem", issuer) for issuer in ("gateway", "orchestrator"))
    approval = Approval("acme", "r", "r/1/0", "wipe", "1", "d", ("bo",))
    assert verifier.verify(own.mint(PRINCIPAL)) == PRINCIPAL
    for doing in (lambda: verifier.verify(posing.mint(PRINCIPAL)), lambda: Approval.verified(verifier, approval.sign(posing))):
        with pytest.raises(Unauthenticated) as caught:
            doing()
        assert caught.value.reason == "TOKEN_INVALID"
    assert Approval.verified(verifier, approval.sign(Minter.from_file(tmp_path / "orchestrator.pem", "orchestrator"))) == approval
    keys = json.loads((tmp_path / "jwks.json").read_text())["keys"]
    unbound = [{name: value for name, value in key.items() if name != "issuers"} for key in keys]
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": unbound}))
    verifier = Verifier.from_file(tmp_path / "jwks.json")
    assert Approval.verified(verifier, approval.sign(posing)) == approval
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**key, "issuers": "gateway"} for key in keys]}))
    with pytest.raises(ValueError, match="is not a JWKS"):
        Verifier.from_file(tmp_path / "jwks.json")


def test_a_key_set_caught_half_written_keeps_the_last_good_one(tmp_path):
    generate_keys(tmp_path, ["one"])
    verifier = Verifier.from_file(tmp_path / "jwks.json")
    token = Minter.from_file(tmp_path / "one.pem", "one").mint(PRINCIPAL)
    (tmp_path / "jwks.json").write_text('{"keys": [')
    verifier._looked_at = 0.0
    assert verifier.verify(token) == PRINCIPAL


@given(
    st.lists(st.sampled_from(["a:read", "a:write", "b:read"]), max_size=3),
    st.lists(st.sampled_from(["a:read", "a:write", "b:read"]), max_size=3),
)
def test_require_passes_exactly_when_every_scope_is_held(held, asked):
    principal = Principal("t", "u", scopes=tuple(held))
    if set(asked) <= set(held):
        principal.require(*asked)
    else:
        with pytest.raises(PermissionDenied) as caught:
            principal.require(*asked)
        assert set(caught.value.metadata["missing_scopes"].split(", ")) == set(asked) - set(held)
    Principal("t", "u", scopes=("*",)).require(*asked)


def test_a_verifier_whose_clock_is_a_little_behind_takes_new_tokens(identities):
    token = Minter.from_file(identities.signing_key("gateway"), "gateway").mint(PRINCIPAL)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["iat"] <= time.time() - 4
    assert claims["exp"] - claims["iat"] == 300


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"keys": []}', '{"keys": [{"kty": "OKP"}]}', '{"keys": [7]}'])
def test_a_key_set_that_cannot_be_used_is_a_value_error_that_names_the_file(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(ValueError, match=r"jwks\.json"):
        Verifier.from_file(tmp_path / "jwks.json")


def test_a_header_nested_without_end_is_a_bad_token_and_no_crash(identities):
    header = base64.urlsafe_b64encode(b"[" * 6000).decode().rstrip("=")
    with pytest.raises(Unauthenticated):
        identities.verifier.verify(f"{header}.e30.e30")
