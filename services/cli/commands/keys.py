"""`bulkhead keys`."""

from typing import Annotated

import typer

from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Tenant

app = typer.Typer(help="API keys: create, list, revoke. Needs the state store.", no_args_is_help=True)


@app.command("create")
def keys_create(
    user: Annotated[str, typer.Option(help="Whom calls with the key are made for.")],
    tenant: Tenant = "local",
    tier: Annotated[str, typer.Option(help="free, pro or enterprise: what policies.yaml allows.")] = "free",
    scope: Annotated[
        list[str] | None, typer.Option(help="As runs:write or admin. Repeatable. Default: what a product's user needs.")
    ] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int, typer.Option(min=0, help="Days until it expires; 0 for never.")] = 0,
    max_budget: Annotated[str | None, typer.Option(help="US dollars that may be spent on models, as 10 or 0.25.")] = None,
    budget_period: Annotated[str, typer.Option(help="When the budget begins anew, as 24h, 7d or 1mo; without it, it is the total.")] = "",
    rpm: Annotated[int | None, typer.Option(min=1, help="Model calls a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Model calls at the same time.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that may be called. Repeatable. Default: all.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make an API key and print it."""
    from services.cli import keys

    limits = keys.limits(max_budget=max_budget, budget_period=budget_period, rpm=rpm, tpm=tpm, parallel=parallel, models=model or [])
    scopes = scope or keys.DEFAULT_SCOPES
    keys.create(data_dir, tenant=tenant, user=user, tier=tier, scopes=scopes, name=name, days=days, limits=limits, as_json=as_json)


@app.command("list")
def keys_list(tenant: Tenant = "local", as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The keys of a tenant, without their secrets."""
    from services.cli import keys

    keys.show(data_dir, tenant, as_json=as_json)


@app.command("revoke")
def keys_revoke(key_id: str, tenant: Tenant = "local", as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End a key at once."""
    from services.cli import keys

    keys.revoke(data_dir, tenant, key_id, as_json=as_json)
