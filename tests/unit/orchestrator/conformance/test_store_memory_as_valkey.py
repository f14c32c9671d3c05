"""Whatever is asked in whatever order, the store in memory answers as Valkey does: unit tests may stand on it."""

import asyncio
import dataclasses
import inspect

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import Gone
from services.orchestrator.records import Draft, Event, Fenced, Park, RunRef, Schedule, Terminal
from services.orchestrator.run_store import RunStore
from services.orchestrator.testing.memory_store import MemoryStore
from services.orchestrator.testing.runs import CANCELLED, QUEUED, done, spec
from services.orchestrator.testing.stores import Site

REFS = st.builds(RunRef, st.sampled_from(["acme", "a/b"]), st.sampled_from(["t1", "t2"]), st.sampled_from(["r1", "r2", "r3"]))
ACME = st.builds(RunRef, st.just("acme"), st.sampled_from(["t1", "t1", "t2"]), st.sampled_from(["r1", "r1", "r2", "r3"]))
USERS = st.sampled_from(["ana", "ana", "ana", "eve"])
SCHEDULES = st.builds(
    Schedule, st.integers(-1, 1), st.sampled_from([1, 2, 5]), st.sampled_from([0, 0, 0, 1_800_000_000_500]), st.integers(0, 2)
)
ENDS = [done(), Terminal("failed", b"{}", "run_failed", b"{}", b"entry")]
DRAFTS = st.lists(st.builds(Draft, st.sampled_from(["message_delta", "steer_applied"]), st.just(b"{}"), st.booleans()), max_size=2)
EPOCHS, NUMBERS, LEASES, SECONDS = st.integers(0, 3), st.integers(1, 3), st.sampled_from([0.5, 5]), st.sampled_from([0.4, 1, 6, 20, 4000])
TRACKS = st.sampled_from(["stable", "stable", "canary"])

# Each method of the port, and what it is asked.
QUESTIONS = {
    "reserve": st.tuples(
        ACME, USERS, st.integers(0, 2), st.sampled_from(["", "k"]), st.sampled_from(["p", "p", "q"]),
        st.fixed_dictionaries({"queued": st.integers(0, 2), "delayed": st.integers(0, 1), "schedule": SCHEDULES}),
    ),
    "accept": st.tuples(
        ACME, USERS, st.booleans(), SCHEDULES, st.sampled_from([0.0, 0.0, 5.0]),
        st.sampled_from(["", "", "reject", "steer", "interrupt", "rollback"]),
    ),
    "claim": st.tuples(ACME, LEASES, st.sampled_from([2, 9]), st.booleans().map(lambda suspect: {"suspect": suspect})),
    "write": st.tuples(
        ACME, EPOCHS, NUMBERS, st.just("trace"), DRAFTS,
        st.sampled_from("eecsrfpp").flatmap(lambda mode: st.fixed_dictionaries({
            "mode": st.just(mode), "state": st.sampled_from([b"", b'{"usage":{"cost":3}}']), "messages": st.sampled_from([(), (b"m",)]),
            "terminal": st.sampled_from(ENDS) if mode == "f" else st.none(),
            "park": st.builds(Park, st.sampled_from([0, 0, 1_800_000_002_000]), st.integers(0, 2)) if mode == "p" else st.none(),
        })),
    ),
    "post": st.tuples(
        ACME, st.sampled_from(["steer", "stop", "tool", "decision", "child"]), st.sampled_from([b"{}", b'{"text":"a b  c"}']),
        st.fixed_dictionaries({"key": st.sampled_from(["", "k", "l"]), "trace_id": st.just("trace"), "events": DRAFTS}),
    ),
    "commands": st.tuples(ACME, st.integers(0, 2)),
    "posted": st.tuples(ACME, st.sampled_from(["k", "l"])),
    "made_with": st.tuples(st.just("acme"), USERS, st.sampled_from(["k", "l"])),
    "at_work": st.tuples(ACME, USERS),
    "cut_by": st.tuples(ACME),
    "unpark": st.tuples(ACME),
    "beat": st.tuples(ACME, EPOCHS, LEASES),
    "wake": st.tuples(REFS, TRACKS, st.integers(0, 3), SECONDS, SCHEDULES.map(lambda schedule: {"schedule": schedule})),
    "next_waiting": st.tuples(TRACKS),
    "next_ready": st.tuples(TRACKS, st.just(0.001)),
    "stop_waiting": st.tuples(),
    "depth": st.tuples(TRACKS),
    "admit": st.tuples(ACME, SCHEDULES, EPOCHS),
    "enter": st.tuples(ACME),
    "schedule": st.tuples(ACME),
    "place": st.tuples(ACME),
    "joining": st.tuples(ACME),
    "note": st.tuples(REFS, SECONDS, st.booleans().map(lambda sooner: {"sooner": sooner})),
    "due": st.tuples(st.integers(1, 3), SECONDS),
    "ahead": st.tuples(st.integers(1, 3), SECONDS, st.floats(0, 1, exclude_max=True)),
    "release_slot": st.tuples(ACME, EPOCHS),
    "settle": st.tuples(ACME),
    "forget": st.tuples(ACME),
    "inspect": st.tuples(ACME),
    "outbox_claim": st.tuples(ACME, LEASES),
    "outbox_leave": st.tuples(ACME, st.sampled_from([b"{}", b"{\"v\":1}"])),
    "outbox_done": st.tuples(ACME, st.booleans()),
    "outbox_waiting": st.tuples(ACME),
    "outbox_attempts": st.tuples(ACME),
    "open_thread": st.tuples(st.just("acme"), USERS, st.sampled_from(["t1", "t2"]), st.just({"a": "b"})),
    "thread": st.tuples(st.just("acme"), USERS, st.sampled_from(["t1", "t2"])),
    "threads": st.tuples(st.just("acme"), USERS, st.just(["t1", "t2"])),
    "locate": st.tuples(st.just("acme"), USERS, st.sampled_from(["r1", "r2"])),
    "run": st.tuples(ACME),
    "runs": st.tuples(st.lists(ACME, max_size=2)),
    "list_members": st.tuples(
        st.sampled_from(["runs", "threads", "thread"]), st.just("acme"), USERS, st.integers(0, 3), st.integers(1, 3), st.just("t1")
    ),
    "request_cancel": st.tuples(st.just("acme"), USERS, st.sampled_from(["r1", "r2", "r3"])),
    "cancel": st.tuples(ACME, st.just("trace"), st.just(CANCELLED), st.sampled_from(["", "asked"])),
    "read": st.tuples(ACME, st.integers(0, 4), st.integers(1, 5), st.booleans()),
    # Where nothing is put aside; with that the two are held to each other by test_large_tool_results.py.
    "whole": st.tuples(ACME, st.lists(st.binary(max_size=3), max_size=2)),
    "last_seqs": st.tuples(st.lists(ACME, max_size=2)),
    "save_definition": st.tuples(st.just("d"), st.sampled_from([b"1", b"2"])),
    "definition": st.tuples(st.just("d")),
    "ping": st.tuples(),
}  # fmt: skip
OPTIONED = {"reserve", "claim", "write", "wake", "note", "post"}
# Loading gives a Valkey its functions anew, and the clock that a test steps is one of them.
NOT_ASKED = {"load"}
# What leads somewhere is asked often; a write that nobody may do says little.
OFTEN = (
    ["reserve"] * 3
    + ["accept"] * 5
    + ["claim"] * 4
    + ["write"] * 6
    + ["post", "post", "unpark", "inspect", "admit", "enter", "cancel", "release_slot", "wake", "wake", "next_waiting"]
)
# What is done to the store and is not the port's.
BESIDES = {"advance": st.tuples(SECONDS), "expire": st.tuples(ACME, st.integers(0, 2))}
ASKED = st.sampled_from([*QUESTIONS, *OFTEN, *BESIDES, "advance"]).flatmap(
    lambda name: st.tuples(st.just(name), {**QUESTIONS, **BESIDES}[name])
)


class Asked:
    """One of the two stores, and what a caller of it keeps between calls."""

    def __init__(self, backend):
        self.backend, self.store = backend, backend.process("one")
        self.reservations, self.admitted = {}, []
        self.store.on_admitted = self.admitted.extend

    async def answer(self, name, args):
        options = args[-1] if args and isinstance(args[-1], dict) and name in OPTIONED else {}
        positional = args[:-1] if options else args
        try:
            return _comparable(await self._ask(name, positional, options)), list(self.admitted)
        except (Fenced, Gone) as refused:
            return type(refused), getattr(refused, "metadata", None)

    async def _ask(self, name, args, options):
        if name in ("advance", "expire"):
            return await getattr(self.backend, name)(*args)
        if name == "accept":
            ref, user, append_only, schedule, own_for_s, on_busy = args
            if ref not in self.reservations:
                return None
            made = dataclasses.replace(spec(ref.thread_id, append_only), schedule=schedule)
            events = QUEUED, CANCELLED
            return await self.store.accept(ref, user, made, "stable", self.reservations[ref], "trace", events, own_for_s, on_busy)
        if name == "place":
            record = await self.store.run(*args)
            return None if record is None else await self.store.place(record, "acme")
        answer = await getattr(self.store, name)(*args, **options)
        if name == "reserve":
            self.reservations[args[0]] = answer
        return answer


def _comparable(found):
    """Answers in a form in which equal means equal: JSON by its content, what has no order without one."""
    if isinstance(found, Event):
        return dataclasses.replace(found, data=orjson.loads(found.data))
    if dataclasses.is_dataclass(found):
        fields = {f.name: _comparable(getattr(found, f.name)) for f in dataclasses.fields(found)}
        return {**fields, "undelivered": sorted(fields["undelivered"])} if "undelivered" in fields else fields
    if type(found) is list and all(isinstance(each, str) for each in found):
        return sorted(found)
    return [_comparable(each) for each in found] if type(found) in (list, tuple) else found


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(questions=st.lists(ASKED, min_size=10, max_size=60))
def test_the_store_in_memory_answers_as_valkey_does(_state_server, _stepped_lua, questions):
    async def compare():
        async with Site("memory").open() as memory, Site("valkey", _state_server, _stepped_lua).open() as valkey:
            one, other = Asked(memory), Asked(valkey)
            for name, args in questions:
                assert await one.answer(name, args) == await other.answer(name, args), name

    asyncio.run(compare())


def test_every_question_of_the_port_is_asked_and_answered_in_memory():
    methods = {name for name, member in inspect.getmembers(RunStore, inspect.isfunction) if not name.startswith("_")}
    assert methods == set(QUESTIONS) | NOT_ASKED
    for name in methods:
        assert inspect.signature(getattr(MemoryStore, name)) == inspect.signature(getattr(RunStore, name)), name
