"""Where a workflow stands: one place in its steps for the flow and for each branch, what the steps gave, and how often each was visited.

All of it stands in the checkpoint, under `PART`. Moving from step to step is a matter of this state alone, so that the move, the
result that led to it and the events that tell of it are one write.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

import orjson

from services.orchestrator.turn.guarding import question
from services.orchestrator.turn.state import RunStopped, Turn
from services.orchestrator.workflows.definition import (
    MOST_STEPS,
    PASSING,
    ChoiceStep,
    EndStep,
    ParallelStep,
    Placed,
    WaitStep,
)
from services.orchestrator.workflows.expressions import ExpressionError

PART = "workflow"
# What is kept of a step stands in every checkpoint after it: of one step, and of all.
MOST_OUTPUT_BYTES = 65_536
MOST_KEPT_BYTES = 1_048_576
# So many steps in a row that take no work: conditions that only look at each other come to nothing new, and hold up all other runs.
# Without a round there are no more than there are steps.
MOST_MOVES = MOST_STEPS
# The place of the flow itself; that of a branch is called "step/branch".
FLOW = ""
REASON = "WORKFLOW_FAILED"
Place = dict[str, Any]


def now_ms() -> int:
    """Milliseconds since 1970, by the clock of this machine."""
    return int(time.time() * 1000)


def calls_at_work(parts: Mapping[str, Any]) -> int:
    """Model calls that a checkpoint announces, by the parts of its state: one of each place whose step is numbered."""
    return sum("number" in place for place in parts.get(PART, {}).get("at", {}).values())


class Flow:
    """The workflow of a turn, as its state has it."""

    def __init__(self, turn: Turn) -> None:
        workflow = turn.agent.workflow
        assert workflow is not None, "checked when the agent was loaded"
        self.turn, self.workflow = turn, workflow
        self.part: dict[str, Any] = turn.state.parts.setdefault(PART, {})
        self._ahead: list[tuple[str, str]] = []

    @property
    def places(self) -> dict[str, Place]:
        """By name of the place: the step there, when it was entered, and what the step keeps while it is at work."""
        found: dict[str, Place] = self.part["at"]
        return found

    def step(self, place: str) -> Any:
        """The step at a place."""
        return self._placed(self.places[place]["step"]).step

    def _placed(self, name: str) -> Placed:
        return self.workflow.by_name[name]

    # --- moving ---

    def begin(self) -> None:
        """Enters the first step."""
        self.part.update(at={}, results={}, visits={}, calls={}, open=[])
        self._move(FLOW, self.workflow.steps[0].name)

    def done(self, place: str, output: Any) -> None:
        """The step there has its result."""
        size = len(orjson.dumps(output))
        if size > MOST_OUTPUT_BYTES or size + len(orjson.dumps(self.part["results"])) > MOST_KEPT_BYTES:
            most = f"{MOST_OUTPUT_BYTES} bytes, or all together than {MOST_KEPT_BYTES}"
            self.failed(place, "output.too_large", f"the result is larger than {most}")
            return
        self._leave(place, output)
        self._go()

    def failed(self, place: str, code: str, message: str, *, passing: bool | None = None) -> None:
        """The step there has failed: it is tried again where that is declared, else its on_error is entered, else all fails.

        `passing` says whether it may work later; absent, its code tells.
        """
        step, kept = self.step(place), self.places[place]
        retry = getattr(step, "retry", None)
        if retry is not None and self._again(place, code, passing):
            attempt = kept.get("attempt", 0) + 1
            base = {name: kept[name] for name in ("step", "since_ms")}
            self.places[place] = {**base, "attempt": attempt, "after_ms": now_ms() + int(retry.after(attempt) * 1000)}
            return
        self._fail(place, code, message)
        self._go()

    def _again(self, place: str, code: str, passing: bool | None) -> bool:
        step, kept = self.step(place), self.places[place]
        if kept.get("attempt", 0) + 1 >= step.retry.attempts:
            return False
        if (left := self.left_s(place)) is not None and left <= 0:
            return False
        if step.retry.codes:
            return _among(code, step.retry.codes)
        return _among(code, PASSING) if passing is None else passing

    def left_s(self, place: str) -> float | None:
        """Time that the step there has left, over all its attempts; None without a limit."""
        limit = self.step(place).timeout_s
        return None if limit is None else limit - (now_ms() - self.places[place]["since_ms"]) / 1000

    def _leave(self, place: str, output: Any) -> None:
        name = self.places[place]["step"]
        self.part["results"][name] = {"output": output}
        following = self._placed(name).following
        if following:
            self._move(place, following, go=False)
            return
        del self.places[place]
        parallel, _, _ = place.partition("/")
        if not any(other.startswith(f"{parallel}/") for other in self.places):
            self._leave(self._place_of(parallel), None)

    def _fail(self, place: str, code: str, message: str, *, final: bool = False) -> None:
        name = self.places[place]["step"]
        self.part["results"][name] = {"error": {"code": code, "message": message}}
        on_error = None if final or isinstance(self.step(place), EndStep) else self.step(place).on_error
        if on_error is not None:
            self._move(place, on_error, go=False)
        elif place == FLOW:
            self.part["failed"] = {"step": name, "code": code, "message": message}
            del self.places[place]
        else:
            parallel, _, _ = place.partition("/")
            self._drop(parallel)
            self._fail(self._place_of(parallel), code, f"{name}: {message}", final=final)

    def _drop(self, parallel: str) -> None:
        """Ends all branches of a step. What they have at work comes to its end, and nobody looks at it."""
        for place in [place for place in self.places if place.startswith(f"{parallel}/")]:
            name = self.places.pop(place)["step"]
            if isinstance(self._placed(name).step, ParallelStep):
                self._drop(name)
            state, calls = self.turn.state, self.part["calls"]
            state.pending = [call for call in state.pending if call.started or calls.get(str(call.number)) != place]

    def _place_of(self, name: str) -> str:
        branch = self._placed(name).branch
        return FLOW if branch is None else "/".join(branch)

    def _move(self, place: str, name: str, *, go: bool = True) -> None:
        self._ahead.append((place, name))
        if go:
            self._go()

    def _go(self) -> None:
        """Enters what is ahead, through steps that take no work, until each place has work to do or waits."""
        self.part["news"] = True
        moves = 0
        while self._ahead:
            place, name = self._ahead.pop(0)
            moves += 1
            if moves > MOST_MOVES and place in self.places:
                self._ahead.clear()
                self._fail(place, "workflow.no_progress", f"{MOST_MOVES} steps in a row took no work", final=True)
            else:
                self._enter(place, name)

    def _enter(self, place: str, name: str) -> None:
        step, visits = self._placed(name).step, self.part["visits"]
        if place != FLOW and place not in self.places:
            # Its parallel step has failed meanwhile.
            return
        kept: Place = {"step": name, "since_ms": now_ms()}
        self.places[place] = kept
        most = None if isinstance(step, EndStep) else step.max_visits
        if most is not None and visits.get(name, 0) >= most:
            self._fail(place, "workflow.max_visits", f"was visited {most} times already")
            return
        visits[name] = visits.get(name, 0) + 1
        try:
            if isinstance(step, ChoiceStep):
                scope = self.scope()
                target = next((case.next for case in step.cases if case.when.holds(scope)), "")
                self._chosen(place, target)
            elif isinstance(step, WaitStep):
                kept["after_ms"] = self._until(step)
            elif isinstance(step, ParallelStep):
                self._ahead += [(f"{name}/{branch}", steps[0].name) for branch, steps in step.branches.items()]
                for branch, steps in step.branches.items():
                    self.places[f"{name}/{branch}"] = {"step": steps[0].name, "since_ms": now_ms()}
        except ExpressionError as error:
            self._fail(place, "expression.failed", str(error))

    def _at_work(self) -> set[str]:
        return {kept["step"] for kept in self.places.values()}

    def _chosen(self, place: str, target: str) -> None:
        if not target:
            self._leave(place, self._placed(self.places[place]["step"]).following)
            return
        self.part["results"][self.places[place]["step"]] = {"output": target}
        self._move(place, target, go=False)

    def _until(self, step: WaitStep) -> int:
        if step.until is None:
            return now_ms() + int((step.seconds or 0) * 1000)
        value = step.until.value(self.scope())
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value)
        try:
            time_of = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ExpressionError("until must be a time as of RFC 3339, or milliseconds since 1970") from None
        if time_of.tzinfo is None:
            raise ExpressionError("until must name its time zone")
        return int(time_of.timestamp() * 1000)

    # --- looking ---

    def scope(self) -> Mapping[str, Any]:
        """What conditions and templates see."""
        turn, results, visits = self.turn, self.part["results"], self.part["visits"]
        steps = {name: {"visits": visits.get(name, 0), **results.get(name, {})} for name in self.workflow.by_name}
        return {"input": self._input, "run": {"id": turn.ref.run_id, "thread_id": turn.ref.thread_id}, "steps": steps}

    @cached_property
    def _input(self) -> Mapping[str, Any]:
        """What the run was asked, which stays the same; to parse half a megabyte of it takes milliseconds."""
        text = question(self.turn)
        given: dict[str, Any] = {"text": text, "metadata": dict(self.turn.spec.metadata)}
        if text.lstrip()[:1] in ("{", "["):
            # What only looks like JSON is a text.
            with suppress(orjson.JSONDecodeError):
                given["data"] = orjson.loads(text)
        return given

    def ready(self, *kinds: type) -> list[str]:
        """The places with a step of one of these kinds whose time has come."""
        now = now_ms()
        return [place for place, kept in self.places.items() if kept.get("after_ms", 0) <= now and isinstance(self.step(place), kinds)]

    def next_ms(self) -> int:
        """When the first place that waits goes on."""
        return min(kept["after_ms"] for kept in self.places.values() if "after_ms" in kept)

    def waiting(self) -> str:
        """The step of the first place that waits."""
        return str(min((kept for kept in self.places.values() if "after_ms" in kept), key=lambda kept: kept["after_ms"])["step"])

    def check(self) -> None:
        """Raises RunStopped where the workflow has failed."""
        if failed := self.part.get("failed"):
            raise RunStopped(REASON, f"The step {failed['step']} failed: {failed['code']}: {failed['message']}")

    # --- telling ---

    def tell(self, *, ended: bool = False) -> None:
        """Shows where the workflow stands, with the next write, where it has moved."""
        if not self.part.pop("news", False) and not ended:
            return
        self.part["version"] = self.part.get("version", 0) + 1
        steps = [
            {"title": placed.step.title or placed.step.name, "status": self._status(placed, ended)} for placed in self.workflow.every()
        ]
        self.turn.writer.emit("plan_updated", {"version": self.part["version"], "steps": steps})

    def _status(self, placed: Placed, ended: bool) -> str:
        name = placed.step.name
        if name in self._at_work():
            return "done" if ended else "in_progress"
        result = self.part["results"].get(name)
        if result is None:
            return "skipped" if ended else "pending"
        return "failed" if "error" in result else "done"


def _among(code: str, patterns: Sequence[str]) -> bool:
    return any(code == pattern or (pattern.endswith(".*") and code.startswith(pattern[:-1])) for pattern in patterns)
