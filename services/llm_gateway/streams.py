"""A streamed completion over the attempt loop: opened, relayed, and joined again where it breaks."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.common.errors import BulkheadError
from services.llm_gateway.attempts import Opened
from services.llm_gateway.charges import MAYBE_BILLED, Charge, bounded, usage_of
from services.llm_gateway.chat import Assembly, ChatCall, Chunk, Meter
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.money import Usage, priced
from services.llm_gateway.ports import Attempt
from services.llm_gateway.recovery import RECOVERABLE, Diverged, Stitch
from services.llm_gateway.registry import Deployment
from services.llm_gateway.results import Finished, Notice, Outcome, StreamEvent

if TYPE_CHECKING:
    from services.llm_gateway.completions import Completions
    from services.llm_gateway.work import Work

# A provider sends on until it hears that nobody reads, and bills that: a tenth of a second of a fast model.
UNREAD_TOKENS = 64
# The first chunks of a stream, what gives the rest, what the attempt holds, and what was asked.
_OpenStream = tuple[list[Chunk], AsyncGenerator[list[Chunk], None], Charge, Attempt]


async def stream(owner: "Completions", call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
    """As `Completions.stream`."""
    body: Mapping[str, Any] = {**call.body, "stream": True}
    work = owner.work("chat", "chat", call.model, body, call.run_id, call.terms, size=call.size, thread_id=call.thread_id)
    with work.recorded():
        relay = _Relay(owner, work, call.opened)
        while not relay.finished:
            for notice in work.untold():
                yield notice
            step = await work.course.step(relay.attempt, relay.discard)
            if isinstance(step, Opened):
                deployment = step.deployment
                # Nothing may be yielded between the two: whoever leaves there would leave the stream open.
                async with aclosing(relay.follow(step)) as events:
                    async for event in events:
                        yield event
            else:
                work.notices.append(step)
        yield Finished(relay.assembly.text, relay.assembly.tool_calls, relay.outcome(deployment))


class _Relay:
    """Attempts of one streamed call, and what its caller has got of them."""

    def __init__(self, owner: "Completions", work: "Work", tell: Callable[[Outcome], None] | None) -> None:
        """`tell` hears of the first stream that opens."""
        self._owner = owner
        self._work = work
        self._tell = tell
        self._stitch = Stitch()
        self.assembly = Assembly()
        self.finished = False

    async def attempt(self, deployment: Deployment, number: int) -> _OpenStream:
        """Opens a stream and waits for its first token."""
        work = self._work
        # A deployment that goes on from a given beginning needs not write, and bill, it again.
        continues = bool(deployment.capabilities.prefill) and self._stitch.can_continue
        charge, made = await work.begin(deployment, number, self._stitch if continues else None)
        try:
            chunks = self._owner.upstreams[deployment.adapter].stream(made)
            first = await anext(chunks)
        except UpstreamFault as fault:
            work.failed(charge, deployment, fault, self._unseen_usage(deployment, charge, fault))
            raise
        except BaseException as error:
            usage = None if isinstance(error, BulkheadError) else self._usage(deployment, charge, _metered(made.unread), left=True)
            work.abandoned(charge, deployment, error, usage)
            raise
        charge.first_token()
        return first, chunks, charge, made

    async def discard(self, opened: _OpenStream) -> None:
        """Ends a stream that another one has overtaken."""
        first, chunks, charge, made = opened
        try:
            await chunks.aclose()
        finally:
            charge.abandoned(self._usage(charge.deployment, charge, _metered([*first, *made.unread]), left=True), "overtaken")

    async def follow(self, opened: Opened[_OpenStream]) -> AsyncGenerator[StreamEvent, None]:
        """Relays the opened stream to its end, after the notices that are due. Returns when it is whole, or when another attempt may
        be made.
        """
        work, deployment = self._work, opened.deployment
        first, chunks, charge, made = opened.result
        sent = Meter()
        try:
            async with aclosing(chunks):
                work.record.first_chunk()
                self._stitch.restart(continues=made.continues)
                for notice in work.untold():
                    yield notice
                if made.continues:
                    message = "The model's answer broke off and was continued."
                    yield Notice("answer_continued", message, attributes=(("model", deployment.group),))
                tell, self._tell = self._tell, None
                if tell is not None:
                    tell(self.opening(opened))
                batch: list[Chunk] | None = first
                while batch is not None:
                    for chunk in batch:
                        sent.add(chunk)
                        if chunk.after_gap:
                            message = "A part of the model's answer could not be read."
                            yield Notice("event_skipped", message, attributes=(("model", deployment.group),))
                    new = self._stitch.feed(batch)
                    if new:
                        for chunk in new:
                            self.assembly.add(chunk)
                        yield new
                    batch = await anext(chunks, None)
        except Diverged:
            _meter(sent, made.unread)
            work.abandoned(charge, deployment, None, self._usage(deployment, charge, sent, left=True), status="diverged")
            work.record.recovering("diverged")
            raise work.course.error() from None
        except UpstreamFault as fault:
            # What the provider has sent is paid, however the stream ends.
            _meter(sent, fault.sent)
            work.failed(charge, deployment, fault, self._usage(deployment, charge, sent))
            broken = work.course.interrupted(deployment, fault.failure)
            recoverable = self._stitch.can_restart and fault.failure.failure_class in RECOVERABLE
            work.record.recovering("restarted" if recoverable else "refused")
            if not recoverable:
                raise broken from fault
            return
        except BaseException as error:
            _meter(sent, made.unread)
            work.abandoned(charge, deployment, error, self._usage(deployment, charge, sent, left=True))
            raise
        self.finished = True
        work.served(charge, deployment, self._usage(deployment, charge, sent, whole=True))

    def opening(self, opened: Opened[_OpenStream]) -> Outcome:
        """What is known at the first token."""
        first, _, charge, _ = opened.result
        timing = self._work.timing
        timing = replace(timing, upstream_s=timing.upstream_s + charge.first_token_s)
        return self._work.so_far(opened.deployment, timing, headers=first[0].headers)

    def outcome(self, deployment: Deployment) -> Outcome:
        """How the whole answer came about; ends the record."""
        record, assembly = self._work.record, self.assembly
        if record.captures:
            record.answered(assembly.text, assembly.tool_calls, assembly.finish_reason)
        return self._work.outcome(deployment, self.assembly.finish_reason, self.assembly.response_id, self.assembly.model)

    def _usage(self, deployment: Deployment, charge: Charge, sent: Meter, *, whole: bool = False, left: bool = False) -> Usage:
        """What a stream has cost; `left` says that we ended it, so that a usage told on the way is not its last word."""
        payer = self._work.payer
        reported = usage_of(deployment, sent.usage, charge.extras, batch=payer.terms.discounted)
        if reported is not None and (sent.finished or not left):
            return reported
        if deployment.reasoning or charge.extras is not None:
            # What it thought unseen is billed too, and what it searched; nobody says how much that was.
            return charge.upper_bound
        output = sent.output_bytes + (0 if whole else UNREAD_TOKENS)
        if reported is None:
            estimate = priced(deployment.prices, charge.input_tokens, output, estimated=True)
        else:
            output += reported.output - sent.counted_bytes
            estimate = priced(deployment.prices, reported.input, output, reported.cached_input, estimated=True)
        return bounded(estimate, charge.bound_nanousd)

    def _unseen_usage(self, deployment: Deployment, charge: Charge, fault: UpstreamFault) -> Usage | None:
        """What a stream has cost that failed before anybody saw it, None where nothing is billed."""
        sent = _metered(fault.sent)
        if sent.output_bytes or sent.usage is not None or fault.failure.failure_class in MAYBE_BILLED:
            return self._usage(deployment, charge, sent)
        return None


def _metered(chunks: Iterable[Chunk]) -> Meter:
    sent = Meter()
    _meter(sent, chunks)
    return sent


def _meter(sent: Meter, chunks: Iterable[Chunk]) -> None:
    for chunk in chunks:
        sent.add(chunk)
