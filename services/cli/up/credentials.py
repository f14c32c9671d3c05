"""What `up` makes once and keeps: the keys of the internal tokens, the root keys of personal data, and the API key in `dev.env`."""

import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from services.cli.failure import CommandFailure
from services.cli.up.environment import ISSUERS
from services.cli.up.workspace import write_private

TENANT, USER, TIER, SCOPES = "local", "developer", "enterprise", ("*",)


def ensure_identity_keys(folder: Path) -> None:
    """Private keys of every issuer and the public key set; those that are there are kept. Raises OSError, ValueError."""
    if all((folder / name).exists() for name in ("jwks.json", *(f"{issuer}.pem" for issuer in ISSUERS))):
        return
    # Imported here: after the first start nobody waits for it.
    from services.common.identity import generate_keys

    generate_keys(folder, list(ISSUERS))


def ensure_root_keys(path: Path) -> None:
    """Root keys that personal data is encrypted with from now on; those that are there are kept. Raises OSError."""
    if not path.exists():
        made = {"id": datetime.now(UTC).strftime("%Y-%m"), "key": base64.b64encode(os.urandom(32)).decode()}
        write_private(path, json.dumps({"keys": [made]}))


async def refuse_encrypted(path: Path, state_url: str) -> None:
    """For a missing file of root keys. Raises CommandFailure where data is encrypted already, of which a new one would open nothing."""
    from services.common.envelope import KEY_TABLES
    from services.common.valkey import UNAVAILABLE, connect

    client = connect(state_url)
    try:
        async for _ in client.scan_iter(match=KEY_TABLES, count=10_000):
            raise CommandFailure(
                f"{path} is missing, and data is encrypted with it: put it back, or move {path.parent.parent} away to begin anew"
            )
    except UNAVAILABLE as error:
        raise CommandFailure(f"whether data is encrypted cannot be told: {error}") from None
    finally:
        await client.aclose()


async def ensure_api_key(state_url: str, known: str) -> str:
    """`known` when it is still valid, else a new key of the enterprise tier with every scope. Raises CommandFailure without the store."""
    from services.common.accounts import Accounts
    from services.common.errors import BulkheadError, Unauthenticated
    from services.common.valkey import connect

    client = connect(state_url)
    try:
        accounts = Accounts(client)
        if known:
            try:
                await accounts.resolve(known)
            except Unauthenticated:
                known = ""
        if known:
            return known
        issued = await accounts.create_key(tenant=TENANT, user=USER, tier=TIER, scopes=SCOPES, name="bulkhead up")
        return issued.secret
    except BulkheadError as error:
        raise CommandFailure(f"no API key could be made: {error.message}") from None
    finally:
        await client.aclose()


def write_dev_env(path: Path, *, url: str, llm_url: str, api_key: str) -> None:
    """What scripts, the other commands and the openai SDK need; readable by this user only. An empty URL is of nothing that runs."""
    known = {"BULKHEAD_URL": url, "BULKHEAD_LLM_URL": llm_url, "BULKHEAD_API_KEY": api_key}
    write_private(path, "".join(f"{name}={value}\n" for name, value in known.items() if value))
