"""Accounts while their store is away."""

import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.common.valkey import connect


async def test_without_a_store_everything_is_an_overload():
    client = connect(f"redis://127.0.0.1:{testing.free_port()}/0")
    accounts = Accounts(client)
    principal = Principal("a", "u", "key_1")
    calls = (
        lambda: accounts.limits(principal),
        lambda: accounts.create_key(tenant="a", user="u", tier="free", scopes=()),
        lambda: accounts.keys.update("key_1", "a", lambda key: key),
        lambda: accounts.keys.rotate("key_1", "a"),
        lambda: accounts.keys.find("key_1", "a"),
        lambda: accounts.keys.find_name("x", "a"),
        lambda: accounts.teams.list("a"),
        lambda: accounts.teams.get("a", "x"),
        lambda: accounts.teams.delete("a", "x"),
    )
    for call in calls:
        with pytest.raises(Overloaded):
            await call()
    await client.aclose()
