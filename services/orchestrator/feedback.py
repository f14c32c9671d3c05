"""What users think of runs, told or seen, joined to the agent version and the model that answered."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import orjson
from opentelemetry.metrics import get_meter

from services.common.errors import Conflict, FieldViolation, IdempotencyMismatch, InvalidInput, NotFound
from services.common.idempotency import fingerprint, key_violations
from services.common.identity import Principal
from services.orchestrator.accepting import checked_id
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.hub import Hub
from services.orchestrator.records import RunRecord, RunRef

SCHEMA = 1
MOST_TEXT_BYTES = 8 * 1024
MOST_CORRECTED_BYTES = 32 * 1024
MOST_DWELL_S = 86_400.0
# Nobody means to say more of one run; signals of a console that fails must not grow a record for ever.
MOST_OF_RUN = 100
# Of the tenant's list, for one page: an agent that few think of must not hold the store up.
MOST_LOOKED_AT = 5_000
AT_ONCE = 250
# More than one store records in a millisecond.
_PLACES = 10**6
_recorded = get_meter("bulkhead.orchestrator").create_counter("bulkhead_feedback_total", description="Feedback on runs, by kind and value.")


@dataclass(frozen=True, slots=True)
class Given:
    """What came: rating 1 to 5 (0: none), thumbs `up` or `down`, words, what the answer should have been, a signal, ms of dwelling."""

    rating: int = 0
    thumbs: str = ""
    text: str = ""
    corrected_answer: str = ""
    signal: str = ""
    dwell_ms: int = 0

    def violations(self) -> list[FieldViolation]:
        """All that is wrong with it."""
        found = []
        if not any((self.rating, self.thumbs, self.text, self.corrected_answer, self.signal)):
            found.append(FieldViolation("rating", "give at least one of rating, thumbs, text, corrected_answer and signal"))
        if not 0 <= self.rating <= 5:
            found.append(FieldViolation("rating", "must be from 1 to 5"))
        if len(self.text.encode()) > MOST_TEXT_BYTES:
            found.append(FieldViolation("text", f"must be at most {MOST_TEXT_BYTES} bytes"))
        if len(self.corrected_answer.encode()) > MOST_CORRECTED_BYTES:
            found.append(FieldViolation("corrected_answer", f"must be at most {MOST_CORRECTED_BYTES} bytes"))
        if not 0 <= self.dwell_ms <= MOST_DWELL_S * 1000:
            found.append(FieldViolation("dwell", "must be from 0 to a day"))
        elif self.dwell_ms and self.signal != "dwell":
            found.append(FieldViolation("dwell", "goes with the signal dwell alone"))
        return found

    def told(self) -> dict[str, Any]:
        """What was given of it, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if value}


class Listed(NamedTuple):
    """Where an entry is, and when it was recorded."""

    ref: RunRef
    feedback_id: str
    at_ms: int


class Wanted(NamedTuple):
    """Which entries; '' and 0: all."""

    run_id: str = ""
    agent: str = ""
    since_ms: int = 0


class FeedbackStore(Protocol):
    """Raises Overloaded while the state store is away."""

    async def add_feedback(
        self, ref: RunRef, feedback_id: str, print_: str, record: bytes, data: bytes, most: int, trace_id: str
    ) -> tuple[str, int]:
        """Keeps a record with the run and tells it in the thread, once for each id: (none, again, mismatch, full or recorded; number)."""
        ...

    async def feedback(self, ref: RunRef) -> list[Mapping[str, Any]]:
        """All that was recorded of a run, in order."""
        ...

    async def listed_feedback(self, tenant: str, since_ms: int, before_ms: int, skip: int, most: int) -> list[Listed]:
        """The tenant's entries from the newest on: those of `before_ms` and before (0: all) but the first `skip`, down to `since_ms`."""
        ...

    async def feedback_of(self, ref: RunRef) -> list[Listed]:
        """The entries of a run, newest first."""
        ...

    async def feedback_entries(self, listed: Sequence[Listed]) -> list[Mapping[str, Any] | None]:
        """What was recorded; None where it is gone."""
        ...

    async def whereabouts(self, tenant: str, run_id: str) -> RunRef | None:
        """Where a run of the tenant is, whoever's it is."""
        ...

    async def definition(self, digest: str) -> bytes | None:
        """As RunStore.definition."""
        ...

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...

    async def locate(self, tenant: str, user: str, run_id: str) -> RunRef | None:
        """As RunStore.locate."""
        ...


class Feedback:
    """The use case."""

    def __init__(self, store: FeedbackStore, agents: AgentCatalog, hub: Hub) -> None:
        self._store, self._agents, self._hub = store, agents, hub

    async def record(self, caller: Principal, run_id: str, key: str, given: Given, trace_id: str) -> tuple[str, int]:
        """Keeps what came; answers its id and the number of its event.

        Raises InvalidInput, NotFound (run), IdempotencyMismatch, Conflict (FEEDBACK_FULL), Overloaded.
        """
        checked_id("run_id", run_id)
        violations = [*given.violations(), *key_violations(key)]
        if violations:
            raise InvalidInput("the request is not valid", violations=violations)
        ref = await self._store.locate(caller.tenant, caller.user, run_id)
        record = await self._store.run(ref) if ref is not None else None
        if ref is None or record is None:
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        name = hashlib.sha256(f"{run_id}\n{key}".encode()).hexdigest() if key else uuid.uuid4().hex
        feedback_id = f"fb_{name[:32]}"
        spec = record.spec
        joined = {
            "run_id": run_id, **spec.works(), "agent_digest": spec.agent_digest, "model": await self._model(record),
            "canary": spec.canary,
        }  # fmt: skip
        kept = orjson.dumps({"v": SCHEMA, "feedback_id": feedback_id, "thread_id": ref.thread_id, **joined, **given.told()})
        data = orjson.dumps({"feedback_id": feedback_id, **joined, **given.told()})
        print_ = fingerprint(orjson.dumps(given.told(), option=orjson.OPT_SORT_KEYS))[:32]
        verdict, seq = await self._store.add_feedback(ref, feedback_id, print_, kept, data, MOST_OF_RUN, trace_id)
        if verdict == "none":
            raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
        if verdict == "mismatch":
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        if verdict == "full":
            raise Conflict(f"{MOST_OF_RUN} entries are recorded of this run, which is the limit", reason="FEEDBACK_FULL")
        self._hub.noticed(ref, seq)
        if verdict == "recorded":
            _count(given)
        return feedback_id, seq

    async def listed(self, tenant: str, wanted: Wanted, size: int, position: int) -> tuple[list[tuple[Mapping[str, Any], int]], int]:
        """A page of at most `size` of the tenant's (entry, ms of recording), newest first, and where the next begins (0: there is none).

        Raises InvalidInput, NotFound (run), Overloaded.
        """
        before_ms, skip = divmod(position, _PLACES)
        of_run: list[Listed] | None = None
        if wanted.run_id:
            checked_id("run_id", wanted.run_id)
            ref = await self._store.whereabouts(tenant, wanted.run_id)
            if ref is None:
                raise NotFound("there is no such run", reason="RUN_NOT_FOUND")
            of_run = [one for one in await self._store.feedback_of(ref) if one.at_ms >= wanted.since_ms]
        page: list[tuple[Mapping[str, Any], int]] = []
        for _ in range(0, MOST_LOOKED_AT, AT_ONCE):
            if of_run is None:
                some = await self._store.listed_feedback(tenant, wanted.since_ms, before_ms, skip, AT_ONCE)
            else:
                some = [one for one in of_run if not before_ms or one.at_ms <= before_ms][skip : skip + AT_ONCE]
            for one, entry in zip(some, await self._store.feedback_entries(some), strict=True):
                if len(page) == size:
                    return page, before_ms * _PLACES + skip
                before_ms, skip = one.at_ms, skip + 1 if one.at_ms == before_ms else 1
                if entry is not None and wanted.agent in ("", entry["agent"]):
                    page.append((entry, one.at_ms))
            if len(some) < AT_ONCE:
                return page, 0
        return page, before_ms * _PLACES + skip

    async def _model(self, record: RunRecord) -> str:
        digest = record.spec.agent_digest
        known = self._agents.agents.by_digest.get(digest)
        if known is None:
            raw = await self._store.definition(digest)
            known = AgentDefinition.decode(raw) if raw else None
        return known.model if known is not None else ""


def _count(given: Given) -> None:
    for kind, value in (("rating", str(given.rating or "")), ("thumbs", given.thumbs), ("signal", given.signal)):
        if value:
            _recorded.add(1, {"kind": kind, "value": value})
    for kind, value in (("text", given.text), ("corrected_answer", given.corrected_answer)):
        if value:
            _recorded.add(1, {"kind": kind, "value": ""})
