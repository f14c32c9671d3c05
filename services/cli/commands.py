"""The command line: names, options and help. The work is imported by the command that does it, so that help is quick."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="bulkhead",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def root() -> None:
    """Runs AI agents in production: durable turns, exact money, one trace."""


DataDir = Annotated[Path, typer.Option("--data-dir", envvar="BULKHEAD_DATA_DIR", help="Folder of the data, the logs and dev.env.")]
OwnDataDir = Annotated[Path | None, typer.Option("--data-dir", help="As of `runs`.")]
DEFAULT_DATA_DIR = Path(".bulkhead")


runs_app = typer.Typer(help="The runs: list, show, cancel.", invoke_without_command=True)
keys_app = typer.Typer(help="API keys: create, list, revoke. Needs the state store.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(keys_app, name="keys")
Tenant = Annotated[str, typer.Option(help="Whose keys.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command()
def up(
    only: Annotated[list[str] | None, typer.Option(help="Start this service alone, with the stores that it needs. Repeatable.")] = None,
    replicas: Annotated[list[str] | None, typer.Option(help="SERVICE=N, as orchestrator=2. Repeatable.")] = None,
    models: Annotated[Path | None, typer.Option(help="A models file in LiteLLM's shape, instead of the configured one.")] = None,
    port_base: Annotated[int | None, typer.Option(help="Sixteen ports in a row from here, instead of the fixed ones.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start the stores, the simulator and the five services, and keep them running until Ctrl-C."""
    from services.cli.up.run import Options, up

    options = Options(only=only or (), replicas=replicas or (), models=models, port_base=port_base, data_dir=data_dir)
    raise SystemExit(up(options))


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Markdown and text files, or folders of them.")], data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Give documents to the agents; a file ingested again replaces its version before."""
    from services.cli import connection, ingest

    raise SystemExit(ingest.ingest(connection.find_connection(data_dir), ingest.find_sources(paths)))


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="What to say. Without it: a conversation.")] = None,
    thread: Annotated[str, typer.Option(help="Name of the thread; made at its first message. Default: a new one.")] = "",
    agent: Annotated[str, typer.Option(help="Name of the agent. Default: the first of agents.yaml.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Talk to an agent; the answer is streamed, tool calls and warnings are shown as they happen."""
    from services.cli import chat, connection

    conversation = chat.Conversation(connection.find_connection(data_dir), thread or chat.new_thread_id(), agent, as_json)
    raise SystemExit(chat.converse(conversation) if message is None else chat.say_once(conversation, message))


@runs_app.callback()
def runs(
    context: typer.Context,
    thread: Annotated[str, typer.Option(help="Only the runs of this thread.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The newest runs. `runs show ID` tells all about one, `runs cancel ID` ends one."""
    from services.cli import connection, runs

    context.obj = data_dir
    if context.invoked_subcommand is None:
        runs.list_runs(connection.find_connection(data_dir), limit=limit, thread=thread, as_json=as_json)


@runs_app.command("show")
def runs_show(context: typer.Context, run_id: str, data_dir: OwnDataDir = None) -> None:
    """Everything about one run, as JSON."""
    from services.cli import connection, runs

    runs.show_run(connection.find_connection(data_dir or context.obj), run_id)


@runs_app.command("cancel")
def runs_cancel(context: typer.Context, run_id: str, data_dir: OwnDataDir = None) -> None:
    """Ask for the end of a run."""
    from services.cli import connection, runs

    runs.cancel_run(connection.find_connection(data_dir or context.obj), run_id)


@app.command()
def replay(
    thread: Annotated[str, typer.Argument(help="Id of the thread.")],
    speed: Annotated[
        float | None, typer.Option(min=0.01, max=1000, help="Paced: 1 as it was, 2 twice as fast. Default: all at once.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show everything that happened in a thread, in order."""
    from services.cli import connection, replay

    replay.replay(connection.find_connection(data_dir), thread, speed=speed, as_json=as_json)


@app.command()
def doctor(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Check the services, stores, ports and configuration, a row each with the way out."""
    from services.cli.doctor import examine

    raise SystemExit(examine(data_dir))


@keys_app.command("create")
def keys_create(
    user: Annotated[str, typer.Option(help="Whom calls with the key are made for.")],
    tenant: Tenant = "local",
    tier: Annotated[str, typer.Option(help="free, pro or enterprise: what policies.yaml allows.")] = "free",
    scope: Annotated[list[str] | None, typer.Option(help="A scope, as runs:write. Repeatable. Default: all.")] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int, typer.Option(min=0, help="Days until it expires; 0 for never.")] = 0,
    max_budget: Annotated[str | None, typer.Option(help="US dollars that may be spent on models, as 10 or 0.25.")] = None,
    budget_period: Annotated[str, typer.Option(help="When the budget begins anew, as 24h, 7d or 1mo; without it, it is the total.")] = "",
    rpm: Annotated[int | None, typer.Option(min=1, help="Model calls a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Model calls at the same time.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that may be called. Repeatable. Default: all.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make an API key and print it."""
    from services.cli import keys

    limits = keys.limits(max_budget=max_budget, budget_period=budget_period, rpm=rpm, tpm=tpm, parallel=parallel, models=model or [])
    keys.create(data_dir, tenant=tenant, user=user, tier=tier, scopes=scope or ["*"], name=name, days=days, limits=limits)


@keys_app.command("list")
def keys_list(tenant: Tenant = "local", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The keys of a tenant, without their secrets."""
    from services.cli import keys

    keys.show(data_dir, tenant)


@keys_app.command("revoke")
def keys_revoke(key_id: str, tenant: Tenant = "local", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End a key at once."""
    from services.cli import keys

    keys.revoke(data_dir, tenant, key_id)
