"""`bulkhead runs plan`: the plan of a run as it stands, and another in its place."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from services.cli.client import Api, ask, segment
from services.cli.connection import Connection
from services.cli.failure import CommandFailure, UsageProblem
from services.cli.rendering import note, print_answer, print_json, print_table

TITLES = ("STEP", "STATUS", "TITLE")
STYLES = {"done": "green", "in_progress": "cyan", "failed": "red", "skipped": "dim"}
# What a plan that is put in place of another may say of its steps.
STATUSES = ("pending", "in_progress", "done", "skipped")
Step = Mapping[str, Any]


def show_plan(connection: Connection, run_id: str, *, as_json: bool = False) -> None:
    """The plan as the events of the run tell it. Raises CommandFailure."""
    plan = ask(connection, lambda api: _plan(api, run_id))
    if as_json:
        print_json({"run_id": run_id, "version": plan["version"], "steps": plan["steps"]})
        return
    print_table(TITLES, (_row(number, step) for number, step in enumerate(plan["steps"], 1)), "the plan has no steps")
    note(f"version {plan['version']}")


def change_plan(connection: Connection, run_id: str, change: "Change", *, version: int | None = None, as_json: bool = False) -> None:
    """Puts the plan with `change` in place of the one that stands, unless that is another than `version`, or than the one it was made of.
    Raises CommandFailure."""

    async def put(api: Api) -> Any:
        plan = {"version": version, "steps": ()} if change.steps is not None and version is not None else await _plan(api, run_id)
        body = {"version": version or plan["version"], "steps": change.of(plan["steps"])}
        return await api.put(f"/v1/runs/{segment(run_id)}/plan", body)

    answer = ask(connection, put)
    print_answer(answer, f"{run_id}: taken as change {answer['number']}, which the run reads before its next step", as_json)


class Change:
    """What is to be different: marks and titles of steps by their numbers, steps that go, steps that come behind the others; or `steps`,
    the whole plan. Numbers are those that `show_plan` shows."""

    def __init__(
        self,
        *,
        marks: Sequence[str] = (),
        titles: Sequence[str] = (),
        removed: Sequence[int] = (),
        added: Sequence[str] = (),
        steps: Sequence[Step] | None = None,
    ) -> None:
        """`marks` are NUMBER=STATUS, `titles` NUMBER=TITLE. Raises UsageProblem."""
        self._marks = dict(_numbered(pair, "--mark") for pair in marks)
        self._titles = dict(_numbered(pair, "--title") for pair in titles)
        self._removed, self._added, self.steps = set(removed), tuple(added), steps
        if wrong := [status for status in self._marks.values() if status not in STATUSES]:
            raise UsageProblem(f"--mark: {wrong[0]!r} is none of {', '.join(STATUSES)}")
        if steps is not None and (marks or titles or removed or added):
            raise UsageProblem("--steps is the whole plan: nothing else of it can be named beside it")

    def __bool__(self) -> bool:
        return self.steps is not None or bool(self._marks or self._titles or self._removed or self._added)

    def of(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """The plan that comes of these steps. Raises UsageProblem."""
        if self.steps is not None:
            return [dict(step) for step in self.steps]
        named = {*self._marks, *self._titles, *self._removed}
        if wrong := [number for number in sorted(named) if not 1 <= number <= len(steps)]:
            raise UsageProblem(f"there is no step {wrong[0]}: the plan has {len(steps)}")
        made = []
        for number, step in enumerate(steps, 1):
            if number in self._removed:
                continue
            status = self._marks.get(number, step["status"])
            if status not in STATUSES:
                raise UsageProblem(f"step {number} is {status}, which no plan may be given: say --mark {number}=skipped or another")
            made.append({"title": self._titles.get(number, step["title"]), "status": status})
        return made + [{"title": title, "status": "pending"} for title in self._added]


async def _plan(api: Api, run_id: str) -> dict[str, Any]:
    """The last plan that the log tells of. Raises CommandFailure where there is none."""
    run = await api.get(f"/v1/runs/{segment(run_id)}")
    log = await api.get(f"/replay/{segment(run['thread_id'])}", after=max(0, run["first_seq"] - 1))
    plans = [event["data"] for event in log["events"] if event["type"] == "plan_updated" and event["run_id"] == run_id]
    if not plans:
        raise CommandFailure(f"{run_id} has no plan: its agent ({run['agent']}) makes none, or has made none yet")
    return plans[-1]


def _numbered(pair: str, option: str) -> tuple[int, str]:
    number, equals, value = pair.partition("=")
    if not equals or not value or not (number.isascii() and number.isdigit()):
        raise UsageProblem(f"{option} {pair}: must be NUMBER=VALUE, as 2=…")
    return int(number), value


def _row(number: int, step: Step) -> Sequence[Any]:
    """A step as TITLES."""
    return str(number), Text(str(step["status"]), style=STYLES.get(str(step["status"]), "")), step["title"]
