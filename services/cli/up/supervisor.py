"""Starts the processes side by side, starts again what ends by itself, and drains all of them in order.

supervisor = Supervisor(wiring, keeper, display)
supervisor.start()
await supervisor.ready(timeout_s=60)       # raises CommandFailure naming what is missing, and why
...
await supervisor.drain()                   # at most 10 s; nothing is left afterwards
"""

import asyncio
import json
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from services.cli.failure import CommandFailure
from services.cli.up.backoff import Backoff
from services.cli.up.environment import address_book
from services.cli.up.plan import STORES, Plan, Planned
from services.cli.up.ports import Kind, free_ports, is_free
from services.cli.up.probes import READY, probe_for
from services.cli.up.process import Child, Ended, Keeper, entries
from services.cli.up.workspace import Workspace, write_private

# The entry first, the stores last. The model port is a listener of llm_gateway, which the orchestrator's last calls need, so
# it goes after the orchestrator. A stage begins when the one before has ended, or 0.7 s later: the drains (6 s of grace and
# 1 s of flush each) overlap, and all fits into 10 s.
DRAIN_ORDER: tuple[tuple[str, ...], ...] = (("gateway",), ("orchestrator",), ("llm_gateway", "tool_executor", "memory"), ("simulator",))
NEXT_STAGE_S = 0.7
SERVICES_END_S = 8.0
STORES_END_S = 9.4
LOOK_EVERY_S = 0.1
# Before the first ready state: this many ends of one process mean that waiting does not help.
ENDS_BEFORE_GIVING_UP = 5


class Display(Protocol):
    """Where what happens is told."""

    def begin(self, labels: Sequence[str]) -> None:
        """The processes that are about to start."""

    def end(self) -> None:
        """Nothing moves any more; lines may still be said."""

    def state(self, label: str, text: str, *, ready: bool = False) -> None:
        """What a process is at."""

    def say(self, line: str) -> None:
        """Something worth a line."""

    def stage(self, stage: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """`up` as a whole has come so far: `ready`, `draining` or `stopped`. `facts` are for programs, `lines` say the same to people."""


class Commands(Protocol):
    """How each process is started. `environment.Wiring` is the real one; tests start stand-ins."""

    @property
    def workspace(self) -> Workspace:
        """The data folder."""
        ...

    @property
    def plan(self) -> Plan:
        """What is started."""
        ...

    def command(self, planned: Planned, ports: Mapping[Kind, int]) -> list[str]:
        """The command line."""
        ...

    def variables(self, planned: Planned, ports: Mapping[Kind, int]) -> dict[str, str]:
        """The environment."""
        ...


class _Slot:
    """The place of one process, whoever fills it at the moment."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.ports: dict[Kind, int] = dict(planned.ports)
        self.child: Child | None = None
        self.ready = asyncio.Event()
        self.missing = "starting"
        self.stopping = asyncio.Event()
        self.backoff = Backoff()
        self.ends = 0
        self.task: asyncio.Task | None = None


class Supervisor:
    """Owns the child processes of one `up`."""

    def __init__(self, commands: Commands, keeper: Keeper, display: Display) -> None:
        self._commands = commands
        self._workspace = commands.workspace
        self._keeper = keeper
        self._display = display
        self._slots = [_Slot(planned) for planned in commands.plan.processes]
        self._was_ready = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, names: Sequence[str] | None = None) -> None:
        """Starts the processes of these names, by default all that were not started yet; none waits for another."""
        waiting = [slot for slot in self._slots if slot.task is None and (names is None or slot.planned.name in names)]
        for slot in self._slots:
            self._choose_ports(slot)
        self._write_addresses()
        for slot in waiting:
            slot.task = asyncio.create_task(self._keep(slot), name=slot.planned.label)
            slot.task.add_done_callback(self._kept)

    async def until_ready(self, name: str) -> None:
        """Returns when the first replica of `name` is ready. Raises CommandFailure when something gave up."""
        slot = next(slot for slot in self._slots if slot.planned.name == name)
        await self._first_of(slot.ready.wait())

    async def ready(self, timeout_s: float) -> None:
        """Returns when every process is ready. Raises CommandFailure when one cannot start, or the time has passed."""

        async def everything() -> None:
            while missing := [slot for slot in self._slots if not slot.ready.is_set()]:
                await missing[0].ready.wait()

        try:
            async with asyncio.timeout(timeout_s):
                await self._first_of(everything())
        except TimeoutError:
            lines = [f"{slot.planned.label}: {self._why(slot)}" for slot in self._slots if not slot.ready.is_set()]
            raise CommandFailure(f"not ready after {timeout_s:.0f} s\n" + "\n".join(f"  {line}" for line in lines)) from None
        self._was_ready = True

    async def _first_of(self, wanted) -> None:
        task = asyncio.ensure_future(wanted)
        try:
            await asyncio.wait([task, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        finally:
            task.cancel()

    def _why(self, slot: _Slot) -> str:
        if slot.missing != "waiting for its dependencies":
            return slot.missing
        up = {
            entry["dependency"]: bool(entry.get("up"))
            for entry in entries(self._workspace.log_file(slot.planned.label))
            if entry.get("event") == "dependency" and "dependency" in entry
        }
        down = [name for name, there in up.items() if not there]
        return f"waiting for {', '.join(down)}" if down else slot.missing

    def _choose_ports(self, slot: _Slot) -> None:
        """Replicas beyond the first take free ports; another one when somebody else has taken theirs meanwhile."""
        used = {port for other in self._slots for port in other.ports.values()}
        for kind, port in slot.ports.items():
            if not port or (slot.planned.index > 0 and slot.ends and not is_free(port)):
                slot.ports[kind] = free_ports(1, used)[0]
                used.add(slot.ports[kind])

    def _write_addresses(self) -> None:
        book = address_book([(slot.planned.name, slot.ports) for slot in self._slots])
        processes = {slot.planned.label: slot.ports for slot in self._slots}
        for file, content in ((self._workspace.addresses, book), (self._workspace.processes, processes)):
            text = json.dumps(content, indent=2)
            if not file.exists() or file.read_text() != text:
                write_private(file, text)

    async def _keep(self, slot: _Slot) -> None:
        """Keeps one process running until the drain."""
        label = slot.planned.label
        while not slot.stopping.is_set():
            try:
                ended = await self._run_once(slot)
            except OSError as error:
                ended = Ended(1, 0.0, (), f"it cannot be started: {error.strerror or error}")
            if slot.stopping.is_set():
                return
            slot.ends += 1
            delay_s = slot.backoff.after(ended.uptime_s)
            if not self._was_ready and (ended.refused or slot.ends >= ENDS_BEFORE_GIVING_UP):
                self._give_up("\n".join([f"{label} cannot start:", *(f"  - {p}" for p in ended.problems or [_brief(ended)])]))
                return
            self._report(label, ended, delay_s)
            slot.missing = f"restarting ({ended.how()})"
            self._display.state(label, slot.missing)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await slot.stopping.wait()
            self._choose_ports(slot)
            self._write_addresses()

    async def _run_once(self, slot: _Slot) -> Ended:
        planned, label = slot.planned, slot.planned.label
        child = await Child.start(
            label,
            self._commands.command(planned, slot.ports),
            self._commands.variables(planned, slot.ports),
            self._workspace.log_file(label),
            plain_output=planned.is_store,
        )
        self._keeper.add(child.pid, int(planned.is_store), _stop_signal(planned.name))
        pid_file = self._workspace.pid_file(label)
        pid_file.write_text(f"{child.pid}\n")
        slot.child = child
        if slot.stopping.is_set():
            child.signal(_stop_signal(planned.name))
        watch = asyncio.create_task(self._watch(slot), name=f"ready-{label}")
        try:
            return await child.wait()
        finally:
            watch.cancel()
            slot.child = None
            slot.ready.clear()
            child.kill_group()
            self._keeper.remove(child.pid)
            pid_file.unlink(missing_ok=True)

    async def _watch(self, slot: _Slot) -> None:
        """Waits for the process to be ready, and tells."""
        probe, close = probe_for(slot.planned.name, slot.ports, alive_only=self._commands.plan.partial)
        label, started = slot.planned.label, time.monotonic()
        try:
            while (missing := await probe()) != READY:
                if missing != slot.missing:
                    slot.missing = missing
                    self._display.state(label, missing)
                await asyncio.sleep(LOOK_EVERY_S)
            took_s = time.monotonic() - started
            slot.missing = ""
            slot.ready.set()
            self._display.state(label, f"{took_s:.1f} s", ready=True)
            if self._was_ready:
                self._display.say(f"{label} is ready again after {took_s:.1f} s")
        finally:
            await close()

    def _report(self, label: str, ended: Ended, delay_s: float) -> None:
        if ended.refused:
            self._display.say(f"{label} refused to start; next try in {delay_s:.1f} s")
            for problem in ended.problems:
                self._display.say(f"  - {problem}")
            return
        after = f" after {ended.uptime_s:.0f} s" if ended.uptime_s >= 1 else ""
        because = f" (last error: {ended.last_error})" if ended.last_error else ""
        self._display.say(f"{label} ended{after}: {ended.how()}{because}; restarting in {delay_s:.1f} s")

    async def failure(self) -> None:
        """Never returns; raises CommandFailure when something gave up."""
        await asyncio.shield(self._failed)

    def _kept(self, task: asyncio.Task) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._give_up(f"{task.get_name()} is no longer looked after: {task.exception()!r}")

    def _give_up(self, message: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(CommandFailure(message))

    async def drain(self) -> None:
        """Ends everything, the entry first and the stores last, within 10 s."""
        begun = time.monotonic()
        # Nothing is started again from here on, whatever its stage.
        for slot in self._slots:
            slot.stopping.set()
        waiting: list[asyncio.Task] = []
        for names in DRAIN_ORDER:
            stage = self._stop(names)
            waiting += stage
            if stage:
                await asyncio.wait(stage, timeout=NEXT_STAGE_S)
        await self._end(waiting, begun + SERVICES_END_S)
        await self._end(self._stop(STORES), begun + STORES_END_S)
        if self._failed.done():
            self._failed.exception()

    def _stop(self, names: Sequence[str]) -> list[asyncio.Task]:
        tasks = []
        for slot in self._slots:
            if slot.planned.name not in names or slot.task is None or slot.task.done():
                continue
            if slot.child is not None:
                slot.child.signal(signal.SIGCONT)
                slot.child.signal(_stop_signal(slot.planned.name))
            self._display.state(slot.planned.label, "draining")
            tasks.append(slot.task)
        return tasks

    async def _end(self, tasks: Sequence[asyncio.Task], end: float) -> None:
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=max(0.0, end - time.monotonic()))
        late = [slot for slot in self._slots if slot.task in tasks and slot.task is not None and not slot.task.done()]
        for slot in late:
            self._display.say(f"{slot.planned.label} did not end in time and was killed")
            if slot.child is not None:
                slot.child.kill_group()
        if late:
            await asyncio.wait([slot.task for slot in late if slot.task is not None], timeout=1.0)

    def kill(self) -> None:
        """Ends everything at once; what was not finished is taken up again at the next start."""
        for slot in self._slots:
            slot.stopping.set()
            if slot.child is not None:
                slot.child.kill_group()


def _stop_signal(name: str) -> int:
    # Milvus Lite closes its files on SIGINT; SIGTERM would end it in the middle of a write.
    return signal.SIGINT if name == "milvus" else signal.SIGTERM


def _brief(ended: Ended) -> str:
    return f"{ended.how()}: {ended.last_error}" if ended.last_error else ended.how()
