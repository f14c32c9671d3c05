"""`bulkhead keys` against a real store."""

import json
import subprocess
from contextlib import asynccontextmanager

import pytest

from services.cli import keys
from services.cli.failure import UsageProblem
from services.common import testing
from services.common.accounts import Accounts, LimitSet
from services.common.valkey import connect


@pytest.fixture
def bulkhead(state_url, monkeypatch):
    """Runs the command on the store."""
    monkeypatch.setenv("BULKHEAD_STATE_URL", state_url)

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(testing.python("-m", "services.cli", "keys", *args), capture_output=True, text=True)

    return run


async def test_a_key_is_made_with_limits_and_the_list_shows_them(bulkhead, state_url):
    limits = ("--max-budget", "10.25", "--budget-period", "30d", "--rpm", "60", "--tpm", "1000", "--parallel", "3")
    made = bulkhead("create", "--user", "ana", "--name", "ci", *limits, "--model", "main", "--model", "backup")
    assert (made.returncode, made.stderr.count("not shown again")) == (0, 1)
    client = connect(state_url)
    try:
        accounts = Accounts(client)
        principal = await accounts.resolve(made.stdout.strip())
        assert (await accounts.limits(principal)).key == LimitSet(
            max_budget_microusd=10_250_000,
            budget_period="30d",
            requests_per_minute=60,
            tokens_per_minute=1000,
            max_parallel=3,
            models=("main", "backup"),
        )
    finally:
        await client.aclose()
    bulkhead("create", "--user", "bob", "--max-budget", "0.000001")
    shown = bulkhead("list").stdout
    for text in ("$10.25 each 30d", "60 rpm, 1000 tpm, 3 parallel", "main backup", "$0.000001"):
        assert text in shown
    assert made.stdout.strip() not in shown


async def test_a_key_without_scopes_serves_a_products_user_and_administers_nothing(bulkhead, state_url):
    async with accounts_of(state_url) as accounts:
        before = await accounts.create_key(tenant="local", user="old", tier="free", scopes=("*",))
        plain = await accounts.resolve(bulkhead("create", "--user", "ana").stdout.strip())
        named = await accounts.resolve(bulkhead("create", "--user", "ana", "--scope", "admin", "--scope", "runs:read").stdout.strip())
        needed = ["runs:write", "runs:read", "threads:write", "memories:read", "documents:read", "tools:execute", "models:invoke"]
        needed += ["blobs:read", "blobs:write"]
        assert plain.missing(needed) == []
        withheld = ["admin", "*", "erasures:write", "webhooks:read", "webhooks:write", "documents:write"]
        assert plain.missing(withheld) == withheld
        assert set(named.scopes) == {"admin", "runs:read"}
        assert (await accounts.resolve(before.secret)).scopes == ("*",)


@asynccontextmanager
async def accounts_of(state_url):
    client = connect(state_url)
    try:
        yield Accounts(client)
    finally:
        await client.aclose()


def test_a_name_with_brackets_is_shown_as_it_is(bulkhead):
    names = ("[/red]", "[bold]")
    for name in names:
        assert bulkhead("create", "--user", "ana", "--name", name).returncode == 0
    assert {row.split()[1] for row in bulkhead("list").stdout.splitlines()[1:]} == set(names)


def test_a_refusal_of_the_store_has_the_status_that_the_gateways_would_have(bulkhead):
    wrong = bulkhead("create", "--user", "ana", "--name", "a\x1b[2J")
    assert (wrong.returncode, wrong.stderr) == (2, "bulkhead: name: must be at most 256 printable characters\n")
    assert bulkhead("revoke", "key_nobody").returncode == 1


def test_limits_that_make_no_sense_are_one_line_and_make_no_key(bulkhead):
    for wrong in (("--max-budget", "ten"), ("--rpm", "0"), ("--tenant", "{a}")):
        done = bulkhead("create", "--user", "ana", *wrong)
        assert done.returncode in (1, 2), wrong
        assert wrong[0].strip("-") in done.stderr
        assert "Traceback" not in done.stderr
    assert bulkhead("list").stdout.count("key_") == 0


@pytest.mark.parametrize(
    "wrong",
    [{"max_budget": text} for text in ("-1", "nan", "inf", "1e20", "0.0000001", "")]
    + [{"max_budget": "1", "budget_period": "soon"}, {"budget_period": "1d"}],
)
def test_a_budget_is_exact_dollars_and_a_period(wrong):
    given = {"max_budget": None, "budget_period": "", "rpm": None, "tpm": None, "parallel": None, "models": ()}
    with pytest.raises(UsageProblem, match=f"--{[*wrong][-1].replace('_', '-')}"):
        keys.limits(**{**given, **wrong})


def test_keys_are_told_as_json_and_the_secret_only_when_it_is_made(bulkhead):
    limits = ("--max-budget", "2", "--rpm", "60", "--model", "main")
    made = json.loads(bulkhead("create", "--user", "ana", "--scope", "runs:read", "--days", "1", *limits, "--json").stdout)
    (listed,) = (json.loads(line) for line in bulkhead("list", "--json").stdout.splitlines())
    assert made.pop("secret").startswith("bh_")
    assert listed == made
    assert (made["scopes"], made["max_budget_microusd"], made["requests_per_minute"]) == (["runs:read"], 2_000_000, 60)
    assert made["expires_at"] > made["created_at"]
    assert json.loads(bulkhead("revoke", made["key_id"], "--json").stdout) == {"key_id": made["key_id"], "revoked": True}
    assert bulkhead("list", "--json").stdout == ""
