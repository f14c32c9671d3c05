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
DEFAULT_DATA_DIR = Path(".bulkhead")


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
