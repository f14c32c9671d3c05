"""docs/model-admin.md names every admin request and every limit."""

import re

from services.common.accounts import NO_LIMITS, Accounts
from services.common.audit import KeyAudit
from services.common.testing import ROOT
from services.common.valkey import connect
from services.llm_gateway.adapters.ledger import Ledger
from services.llm_gateway.model_port.admin import AdminSurface
from services.llm_gateway.model_port.admin_access import PortKeys
from services.llm_gateway.model_port.admin_views import limits_view
from services.llm_gateway.registry import Registry

PAGE = (ROOT / "docs/model-admin.md").read_text(encoding="utf-8")


async def test_the_page_names_every_route_and_no_other():
    client = connect("redis://127.0.0.1:1/0")
    surface = AdminSurface(PortKeys(Accounts(client)), lambda: Registry({}), Ledger(client), KeyAudit(None))
    assert set(re.findall(r"`((?:GET|POST) /[^`?]*)`", PAGE)) == {f"{route.method} {route.path}" for route in surface.routes()}
    await client.aclose()


def test_the_page_names_every_limit():
    assert [name for name in limits_view(NO_LIMITS) if f"`{name}`" not in PAGE] == []
