"""From a message to its run: proven by its signature and nothing else, once for each webhook-id, whoever takes it and however often.

The id of the run follows from hook and webhook-id, and it is accepted under an idempotency key that does, so making it twice makes it
once, and a process that is lost in between leaves it to whoever is sent the message again.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import (
    Conflict,
    FieldViolation,
    IdempotencyMismatch,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
    Unauthenticated,
)
from services.common.identity import Principal
from services.common.limits import Bucket, TierPolicy, TokenBuckets, request_buckets
from services.common.rpc import context as call_context
from services.orchestrator.accepting import RunRequest
from services.orchestrator.hooks.ports import HookStore, RunRecords, Runs
from services.orchestrator.hooks.records import HOOK_ID, LABEL, LABEL_DIGEST, LABEL_MESSAGE, NOBODY, Hook, Message, run_of
from services.orchestrator.hooks.telling import input_of
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.webhooks import signing

SCOPE = "runs:write"
MOST_BODY_BYTES = 256 * 1024
MOST_AGENT = 128
# A full stop would let one signature stand for two messages: it parts what is signed.
WEBHOOK_ID = re.compile(r"[!-\-/-~]{1,255}")
MOST_SIGNATURE = 4096
TOLERANCE_S = 300
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
# Refusals are answered this long after the message came, whatever was looked up meanwhile: their time tells nothing either.
REFUSED_AFTER_S = 0.05
MINUTE_S = 60
# Compared with where there is no hook, so that the work is the same.
_DECOY = signing.new_secret()
log = structlog.get_logger("bulkhead.hooks")
_messages = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_hook_messages_total", description="Messages that came for hooks, by what came of them."
)


def refused() -> Unauthenticated:
    """The one error for whatever is not proven: a wrong signature, a hook that is not there or another agent's, an old timestamp."""
    return Unauthenticated("the message is not signed as it must be", reason="HOOK_REFUSED")


class TakingMessages:
    """The use case of those who send."""

    def __init__(
        self, store: HookStore, records: RunRecords, runs: Runs, buckets: TokenBuckets, policy_of: Callable[[str], TierPolicy],
        per_minute: int,
    ) -> None:  # fmt: skip
        """`policy_of` answers the policy of a tier; a hook takes `per_minute` messages, within the requests that its owner may make."""
        self._store, self._records, self._runs, self._buckets = store, records, runs, buckets
        self._policy_of, self._per_minute = policy_of, per_minute

    async def accept(self, message: Message) -> tuple[RunRecord, bool]:
        """The run of a message, which is durable, and whether the message made it.

        Raises InvalidInput, Unauthenticated (HOOK_REFUSED), PermissionDenied (its owner's scopes hold no runs:write), QuotaExceeded,
        NotFound (the agent, or a thread that is another's by now), Conflict (HOOK_MESSAGE_CHANGED: the id came with another body;
        SUBJECT_BEING_ERASED), Overloaded, and what else Accepting.create_run raises.
        """
        began = time.monotonic()
        body = _checked(message)
        hook, now_ms = await asyncio.gather(
            self._store.find(message.hook_id if HOOK_ID.fullmatch(message.hook_id) else NOBODY), self._store.now_ms()
        )
        if not proven(hook, message, now_ms) or hook is None:
            _messages.add(1, {"outcome": "refused"})
            await asyncio.sleep(began + REFUSED_AFTER_S - time.monotonic())
            raise refused()
        principal, ref = hook.owner, run_of(hook, message.webhook_id)
        with _as_of(principal):
            principal.require(SCOPE)
            await self._limit(principal, hook)
            record, created = await self._once(principal, hook, message, ref, body)
        _messages.add(1, {"outcome": "accepted" if created else "repeated"})
        log.info("hook_message", hook_id=hook.hook_id, run_id=ref.run_id, created=created)
        return record, created

    async def _limit(self, principal: Principal, hook: Hook) -> None:
        # The hook's own first: one that floods uses up no request of its maker's beyond it. And without the maker's name.
        own = Bucket(f"rate:{{hook:{hook.hook_id}}}:minute", self._per_minute, MINUTE_S, "hook_messages_per_minute")
        try:
            for buckets in ([own], request_buckets(principal, self._policy_of(principal.tier))):
                await self._buckets.take(buckets, when_full=True)
        except QuotaExceeded:
            _messages.add(1, {"outcome": "limited"})
            raise

    async def _once(self, principal: Principal, hook: Hook, message: Message, ref: RunRef, body: str) -> tuple[RunRecord, bool]:
        # Before anything that a new run is refused for: the agent may be gone by now, or the queue full.
        if (known := await self._records.run(ref)) is not None:
            return _same(known, message), False
        request = RunRequest(
            thread_id=ref.thread_id, agent=hook.agent, input=input_of(hook, body), run_id=ref.run_id, idempotency_key=f"hook/{ref.run_id}",
            metadata={LABEL: hook.hook_id, LABEL_MESSAGE: message.webhook_id, LABEL_DIGEST: message.digest},
        )  # fmt: skip
        try:
            return await self._runs.create_run(principal, request)
        except (Conflict, IdempotencyMismatch) as error:
            if error.reason == "THREAD_CHANGING":
                # It is being rolled back, which takes no longer than its runs take to end; whoever sends comes again.
                raise Overloaded(error.message, reason=error.reason, retry_after_s=1.0) from None
            # Another process made it just now, or a version that asks for it in other words.
            if (known := await self._records.run(ref)) is not None:
                return _same(known, message), False
            if isinstance(error, IdempotencyMismatch):
                raise _changed() from None
            raise


@contextmanager
def _as_of(principal: Principal) -> Iterator[None]:
    """Has what is done meanwhile done for `principal`, within the call that brought the message."""
    current = call_context.current() or call_context.CallContext()
    with call_context.bind(replace(current, principal=principal, token="", mint=None)):
        yield


def proven(hook: Hook | None, message: Message, now_ms: int) -> bool:
    """Whether a message is one for `hook`. As much is worked out for a message that is not, and where there is no hook."""
    timely = bool(_TIMESTAMP.fullmatch(message.timestamp)) and abs(int(message.timestamp) - now_ms / 1000) <= TOLERANCE_S
    secrets = hook.taken(now_ms) if hook is not None else [_DECOY]
    signed = signing.signed(message.signature, message.webhook_id, message.timestamp, message.body, secrets)
    return signed and timely and hook is not None and hook.agent == message.agent


def _checked(message: Message) -> str:
    """The body's text. Raises InvalidInput for what is wrong with a message, whatever hook it is for."""
    found = []
    if not message.agent or len(message.agent) > MOST_AGENT:
        found.append(FieldViolation("agent", f"must be 1 to {MOST_AGENT} characters"))
    if not WEBHOOK_ID.fullmatch(message.webhook_id):
        found.append(FieldViolation("webhook_id", "must be 1 to 255 printable ASCII characters without a full stop"))
    if not message.timestamp:
        found.append(FieldViolation("webhook_timestamp", "must be seconds since 1970"))
    if not message.signature or len(message.signature) > MOST_SIGNATURE:
        found.append(FieldViolation("webhook_signature", f"must be 1 to {MOST_SIGNATURE} characters"))
    if len(message.body) > MOST_BODY_BYTES:
        found.append(FieldViolation("body", f"must be at most {MOST_BODY_BYTES} bytes"))
    text = ""
    try:
        text = message.body.decode()
    except UnicodeDecodeError:
        found.append(FieldViolation("body", "must be UTF-8"))
    if found:
        raise InvalidInput("the message is not valid", violations=found)
    return text


def _same(record: RunRecord, message: Message) -> RunRecord:
    """The run that a message made before. Raises Conflict where it was another message."""
    if record.spec.metadata.get(LABEL_DIGEST) != message.digest:
        raise _changed()
    return record


def _changed() -> Conflict:
    return Conflict("a message of this webhook-id came before with another body", reason="HOOK_MESSAGE_CHANGED")
