"""`bulkhead approvals`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, ApprovalId, AsJson, DataDir, Limit, OfThread, Reason, Yes

app = typer.Typer(help="What runs ask of people: list, show, approve, reject, edit, delegate, answer.", no_args_is_help=True)
OfRun = Annotated[str, typer.Option("--run", help="Of this run alone.", autocompletion=completing.runs)]
Digest = Annotated[str, typer.Option(help="arguments_digest as `show` has it: with other arguments nothing is decided.")]


class State(StrEnum):
    """How an approval stands."""

    OPEN = "open"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    ANSWERED = "answered"


class Outcome(StrEnum):
    """What became of a call of which nobody knows."""

    DONE = "done"
    FAILED = "failed"
    RETRY = "retry"
    CANCEL_RUN = "cancel_run"


@app.command("list")
def approvals_list(
    run: OfRun = "",
    thread: OfThread = "",
    state: Annotated[State | None, typer.Option(help="In this state alone.")] = None,
    mine: Annotated[bool, typer.Option("--decidable", help="Those alone that you may decide now.")] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The newest approvals that you may decide, have decided or asked for."""
    from services.cli import approvals, connection

    found = connection.find_connection(data_dir)
    approvals.list_approvals(found, limit=limit, run=run, thread=thread, state=state or "", decidable=mine, as_json=as_json)


@app.command("show")
def approvals_show(approval_id: ApprovalId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Everything about one approval, as JSON; with `--json` on one line."""
    from services.cli import approvals, connection

    approvals.show_approval(connection.find_connection(data_dir), approval_id, as_json=as_json)


@app.command("approve")
def approvals_approve(
    approval_id: ApprovalId,
    reason: Reason = "",
    digest: Digest = "",
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have the call made with the arguments as they stand."""
    from services.cli import approvals, connection

    found = connection.find_connection(data_dir)
    approvals.decide(found, approval_id, _decision("approve", reason, digest), as_json=as_json, sure=yes or bool(digest))


@app.command("reject")
def approvals_reject(
    approval_id: ApprovalId, reason: Reason = "", digest: Digest = "", as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Have the call not made; the model is told the reason."""
    from services.cli import approvals, connection

    approvals.decide(connection.find_connection(data_dir), approval_id, _decision("reject", reason, digest), as_json=as_json)


@app.command("edit")
def approvals_edit(
    approval_id: ApprovalId,
    arguments: Annotated[str, typer.Option(help="What the tool is given instead, as a JSON object.")],
    reason: Reason = "",
    digest: Digest = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have the call made with other arguments."""
    from services.cli import approvals, connection

    decision = _decision("edit", reason, digest, arguments=approvals.from_json(arguments, "--arguments"))
    approvals.decide(connection.find_connection(data_dir), approval_id, decision, as_json=as_json)


@app.command("delegate")
def approvals_delegate(
    approval_id: ApprovalId,
    user: Annotated[str, typer.Option(help="Who decides instead.")] = "",
    scope: Annotated[str, typer.Option(help="Whoever holds this scope decides instead.")] = "",
    reason: Reason = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Pass your right to decide on, to a user or to whoever holds a scope."""
    from services.cli import approvals, connection
    from services.cli.failure import UsageProblem

    if bool(user) == bool(scope):
        raise UsageProblem("name one of --user and --scope")
    decision = _decision("delegate", reason, "", to={"user": user} if user else {"scope": scope})
    approvals.decide(connection.find_connection(data_dir), approval_id, decision, as_json=as_json)


@app.command("answer")
def approvals_answer(
    approval_id: ApprovalId,
    outcome: Annotated[Outcome, typer.Argument(help="It was done, it failed, make it again, or cancel the run.")],
    result: Annotated[str | None, typer.Option(help="With done: what the call resulted in, as JSON.")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Tell what became of a call of unknown outcome."""
    from services.cli import approvals, connection
    from services.cli.failure import UsageProblem

    if (outcome is Outcome.DONE) != (result is not None):
        raise UsageProblem("--result goes with `done`, and only with it")
    more = {"result": approvals.from_json(result, "--result")} if result is not None else {}
    approvals.decide(connection.find_connection(data_dir), approval_id, _decision(outcome, reason, "", **more), as_json=as_json)


def _decision(verb: str, reason: str, digest: str, **more: Any) -> dict[str, Any]:
    said = {"reason": reason, "arguments_digest": digest}
    return {"verb": str(verb), **{name: text for name, text in said.items() if text}, **more}
