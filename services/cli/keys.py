"""`bulkhead keys`: API keys, through the one package that reads and writes them. It needs the state store itself."""

import asyncio
import datetime
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from services.cli.failure import CommandFailure, Unreachable
from services.cli.rendering import wide_console
from services.cli.up.ports import LOOPBACK
from services.cli.up.workspace import Workspace
from services.common.accounts import Accounts
from services.common.errors import BulkheadError
from services.common.valkey import UNAVAILABLE, connect

T = TypeVar("T")


def create(data_dir: Path, *, tenant: str, user: str, tier: str, scopes: Sequence[str], name: str, days: int) -> None:
    """Makes a key and prints it, the only time that it is shown. Raises CommandFailure."""
    lifetime = datetime.timedelta(days=days) if days else None
    issued = _with_accounts(
        data_dir, lambda accounts: accounts.create_key(tenant=tenant, user=user, tier=tier, scopes=scopes, name=name, lifetime=lifetime)
    )
    Console(stderr=True).print(
        f"{issued.record.key_id}: tier {tier}, scopes {' '.join(scopes)}; the key is not shown again", highlight=False
    )
    print(issued.secret)


def show(data_dir: Path, tenant: str) -> None:
    """Lists the keys of a tenant, without their secrets. Raises CommandFailure."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("KEY", "NAME", "USER", "TIER", "SCOPES", "CREATED", "EXPIRES"):
        table.add_column(title)
    for record in _with_accounts(data_dir, lambda accounts: accounts.list_keys(tenant)):
        expires = _day(record.expires_at) if record.expires_at else "never"
        table.add_row(record.key_id, record.name, record.user, record.tier, " ".join(record.scopes), _day(record.created_at), expires)
    wide_console().print(table)


def revoke(data_dir: Path, tenant: str, key_id: str) -> None:
    """Ends a key at once. Raises CommandFailure."""
    _with_accounts(data_dir, lambda accounts: accounts.revoke(tenant, key_id))
    print(f"{key_id} is revoked")


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def _with_accounts(data_dir: Path, work: Callable[[Accounts], Awaitable[T]]) -> T:
    url = _state_url(data_dir)

    async def run() -> T:
        client = connect(url)
        try:
            return await work(Accounts(client))
        except BulkheadError as error:
            raise CommandFailure(error.message) from None
        except UNAVAILABLE:
            raise Unreachable("the state store does not answer: start it with `make run`, or set BULKHEAD_STATE_URL") from None
        finally:
            await client.aclose()

    return asyncio.run(run())


def _state_url(data_dir: Path) -> str:
    if url := os.environ.get("BULKHEAD_STATE_URL"):
        return url
    with suppress(OSError, ValueError, KeyError):
        port = json.loads(Workspace(data_dir).processes.read_text())["valkey_state-0"]["store"]
        return f"redis://{LOOPBACK}:{port}/0"
    raise Unreachable("no state store is known: start one with `make run`, or set BULKHEAD_STATE_URL")
