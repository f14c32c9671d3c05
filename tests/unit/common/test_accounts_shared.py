"""Many callers who need the same record at the same moment."""

import asyncio

import pytest

from services.common.accounts import Accounts
from services.common.errors import Unauthenticated
from services.common.valkey import connect


async def test_many_calls_at_the_moment_when_a_key_comes_of_age_share_one_read(state_url, monkeypatch):
    client = connect(state_url, max_connections=4)
    accounts = Accounts(client)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=["*"])
    for _ in range(3):
        found = await asyncio.gather(*(accounts.resolve(issued.secret) for _ in range(200)))
        assert {principal.user for principal in found} == {"ana"}
        monkeypatch.setattr(accounts, "_known", type(accounts._known)())
        monkeypatch.setattr(accounts, "_held", type(accounts._held)())
    assert not accounts._reads
    await client.aclose()


async def test_a_read_that_began_before_a_revocation_serves_nobody_who_comes_after_it(state_url):
    client = connect(state_url)
    accounts = Accounts(client)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=["*"])
    early = asyncio.create_task(accounts.resolve(issued.secret))
    await asyncio.sleep(0)
    await accounts.revoke("acme", issued.record.key_id)
    with pytest.raises(Unauthenticated):
        await accounts.resolve(issued.secret)
    await asyncio.gather(early, return_exceptions=True)
    with pytest.raises(Unauthenticated):
        await accounts.resolve(issued.secret)
    await client.aclose()
