"""What is cached of accounts while a process begins to listen to changes."""

import asyncio
from dataclasses import replace

from redis.asyncio.client import PubSub

from services.common import testing
from services.common.accounts import Accounts
from services.common.accounts import _accounts as inner
from services.common.valkey import connect
from tests.unit.common.test_accounts import reason


async def test_a_change_between_asking_to_listen_and_being_heard_is_seen(valkey, _state_server, monkeypatch):
    send, asked, goes = PubSub.execute_command, asyncio.Event(), asyncio.Event()

    async def late(self, *args, **fields):
        async def sent():
            await goes.wait()
            await send(self, *args, **fields)

        # As far as the caller can tell it was sent, and stands in some buffer on its way.
        await self.connect()
        tasks.append(asyncio.create_task(sent()))
        asked.set()

    tasks = []
    monkeypatch.setattr(PubSub, "execute_command", late)
    one, other = Accounts(valkey), Accounts(client := connect(_state_server, timeout_s=testing.PATIENCE_S))
    issued = await one.create_key(tenant="acme", user="ana", tier="pro", scopes=())
    await other.start()
    try:
        await asked.wait()
        assert await reason(other, issued.secret) == ""
        await one.keys.update(issued.record.key_id, "acme", lambda key: replace(key, blocked=True))
        goes.set()

        async def seen():
            return await reason(other, issued.secret) == "BLOCKED_API_KEY"

        await testing.eventually_async(seen, "the change is seen", timeout_s=inner.ACCOUNT_CACHE.total_seconds() - 2)
    finally:
        goes.set()
        await asyncio.gather(*tasks)
        await other.stop()
        await client.aclose()
