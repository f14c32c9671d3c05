"""Make an API key in the store of an installation, and print its secret, which is stored nowhere.

    kubectl -n bulkhead exec deploy/bulkhead-gateway -- python /app/create_key.py --tenant acme --user ana

Runs inside the gateway's container, where BULKHEAD_STATE_URL names the store; `--state-url` names another. BULKHEAD_STATE_REPLICAS says
how many replicas must have the key on disk before it is printed.
"""

import argparse
import asyncio
import os
import sys

from services.common.accounts import Accounts
from services.common.errors import Overloaded
from services.common.valkey import connect

# Everything but `admin`.
SCOPES = (
    "runs:read", "runs:write", "threads:read", "threads:write", "approvals:read", "approvals:write", "schedules:read", "schedules:write",
    "documents:read", "documents:write", "memories:read", "memories:write", "blobs:read", "blobs:write", "tools:execute", "models:invoke",
    "webhooks:read", "webhooks:write", "hooks:read", "hooks:write", "keys:read", "keys:write", "erasures:write",
)  # fmt: skip


async def create(state_url: str, tenant: str, user: str, tier: str, scopes: list[str], replicas: int = 0) -> str:
    """The secret of a new key. Raises Overloaded when the store is away, or has too few replicas."""
    client = connect(state_url)
    try:
        issued = await Accounts(client, replicas).create_key(tenant=tenant, user=user, tier=tier, scopes=scopes)
    finally:
        await client.aclose()
    return issued.secret


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--tier", default="pro", help="a tier of policies.yaml (default: %(default)s)")
    parser.add_argument("--scope", action="append", dest="scopes", help="may be repeated; default: all but admin")
    parser.add_argument("--state-url", default=os.environ.get("BULKHEAD_STATE_URL", ""))
    parser.add_argument("--state-replicas", type=int, default=os.environ.get("BULKHEAD_STATE_REPLICAS") or 0)
    asked = parser.parse_args()
    if not asked.state_url:
        parser.error("BULKHEAD_STATE_URL is not set: give --state-url")
    try:
        print(
            asyncio.run(create(asked.state_url, asked.tenant, asked.user, asked.tier, asked.scopes or list(SCOPES), asked.state_replicas))
        )
    except Overloaded as away:
        print(f"create_key: {away}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
