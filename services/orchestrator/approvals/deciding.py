"""Deciding interrupts: who may, what it changes, and that a second decision hears of the first."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import orjson
from opentelemetry import trace

from services.common.approval import digest
from services.common.errors import Conflict, FieldViolation, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied
from services.common.idempotency import fingerprint, key_violations
from services.common.identity import Minter, Principal
from services.common.rpc import context as call_context
from services.orchestrator.approvals.pages import Page
from services.orchestrator.approvals.ports import InterruptStore
from services.orchestrator.approvals.raising import answered
from services.orchestrator.approvals.records import OUTCOME_UNKNOWN, TOOL_CALL, Decision, Interrupt, Listed, Standing
from services.orchestrator.commanding import Commanding
from services.orchestrator.ports import Tools
from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.workflows.definition import REQUEST_APPROVAL

MOST_REASON_CHARS = 1_000
MOST_JSON_BYTES = 256 * 1024
MOST_NAME_CHARS = 128
CHECK_S = 10.0
# Entries of a list that one page looks at.
MOST_LOOKED_AT = 1_000
CHUNK = 100
NOTED_S = 1.0
_DIGEST = re.compile("[0-9a-f]{64}")
# Another decision came between reading and writing; each of these tries means one that did.
TRIES = 8
OF_KIND = {
    TOOL_CALL: frozenset({"approve", "edit", "reject", "delegate"}),
    OUTCOME_UNKNOWN: frozenset({"done", "failed", "retry", "cancel_run", "delegate"}),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What somebody decides. `content` is JSON, of arguments (edit) or of a result (done); `to` is user:… or scope:… (delegate); `saw` is
    the digest of the arguments that the caller has looked at, "" where it does not say."""

    verb: str
    content: bytes = b""
    to: str = ""
    reason: str = ""
    key: str = ""
    saw: str = ""

    def violations(self) -> list[FieldViolation]:
        """All that is wrong with it by itself."""
        found = []
        if not self.verb:
            found.append(FieldViolation("decision", "is required"))
        if len(self.reason) > MOST_REASON_CHARS:
            found.append(FieldViolation("reason", f"must be at most {MOST_REASON_CHARS} characters"))
        found += key_violations(self.key)
        if self.saw and not _DIGEST.fullmatch(self.saw):
            found.append(FieldViolation("arguments_digest", "must be 64 digits of hexadecimal in lower case"))
        if self.verb in ("edit", "done"):
            found += _json_violations("decision", self.content)
        name = self.to.partition(":")[2]
        if self.verb == "delegate" and not 0 < len(name) <= MOST_NAME_CHARS:
            found.append(FieldViolation("decision.delegate", f"must name a user or a scope of at most {MOST_NAME_CHARS} characters"))
        return found

    @property
    def print_(self) -> str:
        """Digest of all but the key; without `saw` it is what records of the version before hold."""
        return fingerprint(*self._said, *([self.saw] if self.saw else []))

    @property
    def prints(self) -> frozenset[str]:
        """Digests under which it may stand: also the one of the version before, which took no notice of `saw`."""
        return frozenset({self.print_, fingerprint(*self._said)})

    @property
    def _said(self) -> tuple[str, bytes, str, str]:
        return self.verb, self.content, self.to, self.reason


@dataclass(frozen=True, slots=True)
class Seen:
    """An interrupt as a caller sees it: `state` is its outcome, open, or cancelled where its run ended first."""

    interrupt: Interrupt
    state: str
    decidable: bool


class Deciding:
    """The use cases of people who are asked."""

    def __init__(self, store: InterruptStore, runs: RunStore, commanding: Commanding, tools: Tools, minter: Minter) -> None:
        self._store, self._runs, self._commanding, self._tools, self._minter = store, runs, commanding, tools, minter

    async def get(self, principal: Principal, interrupt_id: str) -> Seen:
        """Raises NotFound, PermissionDenied, Overloaded."""
        ref, interrupt = await self._find(principal, interrupt_id)
        if not (sees(interrupt, principal)):
            raise _denied()
        return await self._seen(ref, interrupt, principal)

    async def list_(
        self, principal: Principal, *, run_id: str, thread_id: str, state: str, decidable: bool, before: int, size: int,
        weigh: Callable[[Seen], int] = lambda seen: 0,
    ) -> tuple[list[Seen], int]:  # fmt: skip
        """Those that the caller may decide or asked for, newest first, and the position to go on below (0: the last page).

        A page has as many as fit, see Page. Raises Overloaded."""
        page = Page(size, weigh)
        if run_id:
            ref = await self._store.whereabouts(principal.tenant, run_id)
            if ref is None:
                return [], 0
            (standing,) = await self._store.standing([ref])
            # The number of each among all that the run has ever asked.
            for position, interrupt in reversed(list(enumerate(await self._store.interrupts(ref), start=1))):
                if (before and position >= before) or not sees(interrupt, principal):
                    continue
                one = _seen(interrupt, standing, principal)
                if _wanted(one, thread_id, state, decidable) and (page.full or not page.takes(one)):
                    return page.entries, position + 1
            return page.entries, 0
        looked, open_only = 0, decidable or state == "open"
        while looked < MOST_LOOKED_AT:
            entries = await self._store.listed(principal.tenant, open_only=open_only, before=before, size=CHUNK)
            fitting = [entry for entry in entries if not thread_id or entry.thread_id == thread_id]
            known = await self._look(principal, fitting, open_only) if fitting else {}
            for entry in entries:
                one = known.get(entry)
                if one is not None and _wanted(one, "", state, decidable) and not page.takes(one):
                    return page.entries, entry.position + 1
                before, looked = entry.position, looked + 1
                if page.full:
                    return page.entries, before
            if len(entries) < CHUNK:
                return page.entries, 0
        return page.entries, before

    async def decide(self, principal: Principal, interrupt_id: str, choice: Choice) -> Seen:
        """Records a decision; the interrupt as it stands then.

        Raises InvalidInput, NotFound, PermissionDenied, IdempotencyMismatch, Overloaded and Conflict: ALREADY_DECIDED,
        ARGUMENTS_CHANGED, ARGUMENTS_DIGEST_REQUIRED, APPROVAL_EXPIRED, RUN_ENDED, RUN_CANCELLED.
        """
        if violations := choice.violations():
            raise InvalidInput("the request is not valid", violations=violations)
        for _ in range(TRIES):
            ref, interrupt = await self._find(principal, interrupt_id)
            if (same := _same(interrupt, principal, choice)) is not None:
                await self._store.keep_interrupt(ref, interrupt_id)
                return await self._seen(ref, same, principal)
            if choice.verb not in (fitting := _verbs(interrupt)):
                raise InvalidInput.field("decision", f"must be one of {', '.join(sorted(fitting))} here")
            _check_may(interrupt, principal)
            # It holds for what is decided: the record that was read is replaced only while it is still the one that is there.
            _check_saw(interrupt, choice)
            after = await self._decided(interrupt, principal, choice)
            # Should this process be lost before it wakes the run, a sweeper comes by; its next look may be as far off as the expiry.
            await self._runs.note(ref, NOTED_S, sooner=True)
            span = trace.get_current_span().get_span_context()
            settled = await self._store.settle_interrupt(ref, interrupt, after, f"{span.trace_id:032x}" if span.is_valid else "")
            match settled.verdict:
                case "changed":
                    continue
                case "done" if settled.posted is not None:
                    await self._told(ref, after)
                    await self._commanding.told(ref, settled.posted)
                    return await self._seen(ref, after, principal)
                case "none":
                    raise _unknown()
                case "ended":
                    raise Conflict("the run has ended", reason="RUN_ENDED", metadata={"run_status": settled.status})
                case "cancelled":
                    raise Conflict("the run is being cancelled", reason="RUN_CANCELLED")
                case "expired":
                    raise _expired(interrupt)
            raise Conflict("the run takes no more commands", reason="TOO_MANY_COMMANDS")
        raise Conflict("others decide at the same time; look again", reason="CONFLICT", retry_after_s=1.0)

    async def _told(self, ref: RunRef, after: Interrupt) -> None:
        if not after.open:
            answered.add(1, {"outcome": after.outcome})
            await self._store.delist(ref.tenant, [Listed(ref.thread_id, after.interrupt_id, 0)], gone=False)

    async def _find(self, principal: Principal, interrupt_id: str) -> tuple[RunRef, Interrupt]:
        ref = await self._store.whereabouts(principal.tenant, interrupt_id.partition("/")[0])
        interrupt = await self._store.interrupt(ref, interrupt_id) if ref is not None else None
        if ref is None or interrupt is None:
            raise _unknown()
        return ref, interrupt

    async def _look(self, principal: Principal, entries: Sequence[Listed], open_only: bool) -> dict[Listed, Seen]:
        """Those of the entries that the caller sees, in as many round trips for many as for one."""
        tenant = principal.tenant
        found = list(zip(entries, await self._store.interrupts_at(tenant, entries), strict=True))
        asked = list({entry.run(tenant) for entry, interrupt in found if interrupt is None or interrupt.open})
        standing = dict(zip(asked, await self._store.standing(asked), strict=True))
        seen, gone, closed = {}, [], []
        for entry, interrupt in found:
            run = standing.get(entry.run(tenant), Standing())
            if interrupt is None:
                # It is listed before it is made, by a run at work.
                if run.over:
                    gone.append(entry)
            elif sees(interrupt, principal):
                one = seen[entry] = _seen(interrupt, run, principal)
                if open_only and one.state != "open" and (not interrupt.open or one.state == "cancelled"):
                    # Its process was lost between the answer and this; or the run has ended.
                    closed.append(entry)
        for some, everywhere in ((gone, True), (closed, False)):
            if some:
                await self._store.delist(tenant, some, gone=everywhere)
        return seen

    async def _seen(self, ref: RunRef, interrupt: Interrupt, principal: Principal) -> Seen:
        run = (await self._store.standing([ref]))[0] if interrupt.open else Standing()
        return _seen(interrupt, run, principal)

    async def _decided(self, interrupt: Interrupt, principal: Principal, choice: Choice) -> Interrupt:
        """The interrupt after this decision."""
        decision = Decision(
            choice.verb, principal.user, int(time.time() * 1000), interrupt.digest, choice.reason, choice.to, choice.key, choice.print_
        )
        match choice.verb:
            case "delegate":
                return _delegated(interrupt, decision, choice.to)
            case "edit":
                arguments = await self._fitting(interrupt, choice.content)
                changed = replace(interrupt, arguments=arguments.decode(), digest=digest(arguments))
                return _approved(changed, replace(decision, digest=changed.digest))
            case "approve":
                return _approved(interrupt, decision)
            case "reject":
                return interrupt.answered("rejected", decision)
            case "done":
                return interrupt.answered("done", decision, output=choice.content.decode())
        return interrupt.answered(choice.verb, decision)

    async def _fitting(self, interrupt: Interrupt, content: bytes) -> bytes:
        """Edited arguments as the tool is given them. Raises InvalidInput, and what the tool executor raises."""
        requester = Principal.from_dict(dict(interrupt.requester))
        context = call_context.CallContext(principal=requester, token=self._minter.mint(requester, run_id=interrupt.run_id))
        with call_context.bind(context.with_timeout(CHECK_S)):
            checked = await self._tools.check(interrupt.tool, interrupt.version, content)
        if checked.violations:
            name = "decision.edit.arguments_json"
            found = [FieldViolation(f"{name}{path}", f"does not fit: {keyword}") for path, keyword in checked.violations]
            raise InvalidInput(
                f"the arguments do not fit the schema of {interrupt.tool}", reason="ARGUMENTS_INVALID", violations=found
            )  # fmt: skip
        return checked.arguments


def _seen(interrupt: Interrupt, run: Standing, principal: Principal) -> Seen:
    state = interrupt.outcome
    if interrupt.open:
        if run.over or run.cancel:
            state = "cancelled"
        elif interrupt.expires_ms <= int(time.time() * 1000):
            state = "expired"
    voted = principal.user in interrupt.approvers()
    return Seen(interrupt, state, state == "open" and may(interrupt, principal) and not voted)


def _verbs(interrupt: Interrupt) -> frozenset[str]:
    """What may be decided of it. The question of a workflow's step is no call whose arguments somebody could change."""
    return OF_KIND[interrupt.kind] - {"edit"} if interrupt.tool == REQUEST_APPROVAL else OF_KIND[interrupt.kind]


def may(interrupt: Interrupt, principal: Principal) -> bool:
    """Whether the caller is one of those who may decide."""
    who, user = interrupt.who, principal.user
    if user in who.barred:
        return False
    if user == interrupt.user:
        return not interrupt.four_eyes and (who.requester or _named(interrupt, principal))
    return _named(interrupt, principal)


def sees(interrupt: Interrupt, principal: Principal) -> bool:
    """Whether the caller may look at it: whoever may decide, did so, or asked."""
    return principal.user == interrupt.user or may(interrupt, principal) or any(d.user == principal.user for d in interrupt.decisions)


def _named(interrupt: Interrupt, principal: Principal) -> bool:
    return principal.user in interrupt.who.users or any(not principal.missing([scope]) for scope in interrupt.who.scopes)


def _approved(interrupt: Interrupt, decision: Decision) -> Interrupt:
    """Approved at once, or, with four eyes, when a second person approves these very arguments."""
    after = replace(interrupt, decisions=(*interrupt.decisions, decision))
    needed = 2 if interrupt.four_eyes else 1
    return replace(after, outcome="approved") if len(set(after.approvers())) >= needed else after


def _delegated(interrupt: Interrupt, decision: Decision, to: str) -> Interrupt:
    """The right of one passes to another; the others keep theirs."""
    kind, _, name = to.partition(":")
    if kind == "user" and name == interrupt.user and interrupt.four_eyes:
        raise InvalidInput.field("decision.delegate.user", "with four eyes, the user of the run cannot approve")
    if kind == "user" and name == decision.user:
        raise InvalidInput.field("decision.delegate.user", "is who delegates")
    who = interrupt.who
    users, scopes, barred = who.users, who.scopes, (*(b for b in who.barred if b != name or kind != "user"), decision.user)
    if kind == "user":
        users = (*(user for user in users if user != name), name)
    else:
        scopes = (*(scope for scope in scopes if scope != name), name)
    return replace(interrupt, who=replace(who, users=users, scopes=scopes, barred=barred), decisions=(*interrupt.decisions, decision))


def _same(interrupt: Interrupt, principal: Principal, choice: Choice) -> Interrupt | None:
    """The interrupt where this very decision was recorded before. Raises IdempotencyMismatch."""
    if not choice.key:
        return None
    first = next((d for d in interrupt.decisions if d.key == choice.key and d.user == principal.user), None)
    if first is None:
        return None
    if first.print_ not in choice.prints:
        raise IdempotencyMismatch("the idempotency key was used before with another decision")
    return interrupt


def _check_may(interrupt: Interrupt, principal: Principal) -> None:
    """Raises PermissionDenied, or Conflict where the interrupt, or the caller's part of it, is decided."""
    if not sees(interrupt, principal):
        raise _denied()
    if interrupt.outcome == "expired":
        raise _expired(interrupt)
    if not interrupt.open:
        raise _decided_before(interrupt, interrupt.decisions[-1])
    if not may(interrupt, principal):
        raise _denied("with four eyes, the user of a run does not count" if principal.user == interrupt.user else "")
    votes = (d for d in interrupt.decisions if d.verb in ("approve", "edit") and d.digest == interrupt.digest)
    if (mine := next((d for d in votes if d.user == principal.user), None)) is not None:
        raise _decided_before(interrupt, mine)


def _check_saw(interrupt: Interrupt, choice: Choice) -> None:
    """Raises Conflict where the caller looked at other arguments, or may have: who approves behind an edit says what was looked at."""
    if choice.saw and choice.saw != interrupt.digest:
        raise Conflict(
            "the arguments are others by now; look again", reason="ARGUMENTS_CHANGED", metadata={"arguments_digest": interrupt.digest}
        )  # fmt: skip
    if choice.verb == "approve" and not choice.saw and any(d.verb == "edit" for d in interrupt.decisions):
        raise Conflict(
            "somebody has changed the arguments: look at them, and approve with their arguments_digest", reason="ARGUMENTS_DIGEST_REQUIRED"
        )


def _decided_before(interrupt: Interrupt, first: Decision) -> Conflict:
    metadata = {
        "state": interrupt.outcome, "verb": first.verb, "decided_by": first.user, "decided_at_ms": str(first.at_ms),
        "arguments_digest": interrupt.digest, "decided_reason": first.reason[:256],
    }  # fmt: skip
    return Conflict("this was decided before", reason="ALREADY_DECIDED", metadata=metadata)


def _expired(interrupt: Interrupt) -> Conflict:
    metadata = {"expired_at_ms": str(interrupt.expires_ms), "on_expiry": interrupt.on_expiry}
    return Conflict("the time to decide this has passed", reason="APPROVAL_EXPIRED", metadata=metadata)


def _unknown() -> NotFound:
    return NotFound("there is no such approval", reason="APPROVAL_NOT_FOUND")


def _denied(why: str = "") -> PermissionDenied:
    return PermissionDenied(why or "the caller is none of those who may decide this", reason="NOT_AN_APPROVER")


def _wanted(seen: Seen, thread_id: str, state: str, decidable: bool) -> bool:
    return (
        (not thread_id or seen.interrupt.thread_id == thread_id) and (not state or state_of(seen) == state)
        and (not decidable or seen.decidable)
    )  # fmt: skip


def state_of(seen: Seen) -> str:
    """The state without what exactly was answered of an unknown outcome."""
    return "answered" if seen.state in ("done", "failed", "retry", "cancel_run") else seen.state


def _json_violations(name: str, content: bytes) -> Sequence[FieldViolation]:
    if len(content) > MOST_JSON_BYTES:
        return [FieldViolation(name, f"must be at most {MOST_JSON_BYTES} bytes")]
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return [FieldViolation(name, "is not valid JSON")]
    return []
