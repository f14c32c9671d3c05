"""Options and arguments that commands share."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands import completing

DEFAULT_DATA_DIR = Path(".bulkhead")

DataDir = Annotated[Path, typer.Option("--data-dir", envvar="BULKHEAD_DATA_DIR", help="Folder of the data, the logs and dev.env.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON: one object a line.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
GoOn = Annotated[bool, typer.Option("--continue", help="Also start a run that goes on from there, where that is within a run.")]
Tenant = Annotated[str, typer.Option(help="Whose keys.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept with the decision.")]

RunId = Annotated[str, typer.Argument(help="Id of the run.", autocompletion=completing.runs)]
ThreadId = Annotated[str, typer.Argument(help="Id of the thread.", autocompletion=completing.threads)]
OfThread = Annotated[str, typer.Option("--thread", help="Of this thread alone.", autocompletion=completing.threads)]
ApprovalId = Annotated[str, typer.Argument(help="Id of the approval, with its slashes.", autocompletion=completing.approvals)]
WebhookId = Annotated[str, typer.Argument(help="Id of the webhook.", autocompletion=completing.webhooks)]
ScheduleId = Annotated[str, typer.Argument(help="Id of the schedule.", autocompletion=completing.schedules)]
MemoryId = Annotated[str, typer.Argument(help="Id of the memory.", autocompletion=completing.memories)]
Agent = Annotated[str, typer.Option(help="Name of the agent. Default: the first of agents.yaml.", autocompletion=completing.agents)]
Label = Annotated[list[str] | None, typer.Option(help="NAME=VALUE. Repeatable.")]
NewName = Annotated[str, typer.Option("--name", help="Id of the new thread. Default: made by the service.")]
After = Annotated[int | None, typer.Option(min=0, help="Begin behind the event of this number.")]
