"""A streamed completion over the attempt loop: opened, relayed, and joined again where it breaks."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.common.errors import BulkheadError
from services.llm_gateway.attempts import Opened
from services.llm_gateway.charges import MAYBE_BILLED, Charge, bounded, usage_of
from services.llm_gateway.chat import Assembly, ChatCall, Chunk, Meter
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.money import Usage, priced
from services.llm_gateway.ports import Limits
from services.llm_gateway.recovery import RECOVERABLE, Diverged, Stitch
from services.llm_gateway.registry import Deployment
from services.llm_gateway.results import Finished, Notice, Outcome, StreamEvent

if TYPE_CHECKING:
    from services.llm_gateway.completions import Completions
    from services.llm_gateway.work import Work

# A provider sends on until it hears that nobody reads, and bills that: a tenth of a second of a fast model.
UNREAD_TOKENS = 64
# The first chunks of a stream, what gives the rest, what the attempt holds, and whether it goes on from what was delivered.
_OpenStream = tuple[list[Chunk], AsyncGenerator[list[Chunk], None], Charge, bool]


async def stream(owner: "Completions", call: ChatCall) -> AsyncGenerator[StreamEvent, None]:
    """As `Completions.stream`."""
    body: Mapping[str, Any] = {**call.body, "stream": True}
    if owner.registry.always_include_stream_usage and "stream_options" not in body:
        body = {**body, "stream_options": {"include_usage": True}}
    work = owner.work("chat", "chat", call.model, body, call.run_id, call.terms, size=call.size, thread_id=call.thread_id)
    with work.recorded():
        relay = _Relay(owner, work)
        told = call.opened is None
        while True:
            opened: Opened[_OpenStream] | None = None
            for notice in work.notices:
                yield notice
            work.notices.clear()
            while opened is None:
                step = await work.course.step(relay.attempt, relay.discard)
                if isinstance(step, Opened):
                    opened = step
                else:
                    yield step
            for notice in work.notices:
                yield notice
            work.notices.clear()
            if opened.result[3]:
                message = "The model's answer broke off and was continued."
                yield Notice("answer_continued", message, attributes=(("model", opened.deployment.group),))
            if not told and call.opened is not None:
                told = True
                call.opened(relay.opening(opened))
            async with aclosing(relay.follow(opened)) as events:
                async for event in events:
                    yield event
            if relay.finished:
                break
        yield Finished(relay.assembly.text, relay.assembly.tool_calls, relay.outcome(opened.deployment))


class _Relay:
    """Attempts of one streamed call, and what its caller has got of them."""

    def __init__(self, owner: "Completions", work: "Work") -> None:
        self._owner = owner
        self._work = work
        self._stitch = Stitch()
        self.assembly = Assembly()
        self.finished = False

    async def attempt(self, deployment: Deployment, limits: Limits, number: int) -> _OpenStream:
        """Opens a stream and waits for its first token."""
        work = self._work
        # A deployment that goes on from a given beginning needs not write, and bill, it again.
        continues = bool(deployment.capabilities.prefill) and self._stitch.can_continue
        charge, sent, _ = await work.begin(deployment, limits, number, self._stitch if continues else None)
        made = work.attempt(deployment, sent, limits, number, continues=continues)
        chunks = self._owner.upstreams[deployment.adapter].stream(made)
        try:
            first = await anext(chunks)
        except UpstreamFault as fault:
            work.failed(charge, deployment, fault, self._unseen_usage(deployment, charge, fault))
            raise
        except BaseException as error:
            work.abandoned(charge, deployment, error, None if isinstance(error, BulkheadError) else self._silent_usage(deployment, charge))
            await chunks.aclose()
            raise
        charge.first_token()
        return first, chunks, charge, continues

    async def discard(self, opened: _OpenStream) -> None:
        """Ends a stream that another one has overtaken."""
        first, chunks, charge, _ = opened
        await chunks.aclose()
        sent = Meter()
        for chunk in first:
            sent.add(chunk)
        charge.abandoned(self._usage(charge.deployment, charge, sent), "overtaken")

    async def follow(self, opened: Opened[_OpenStream]) -> AsyncGenerator[StreamEvent, None]:
        """Relays the opened stream to its end. Returns when it is whole, or when another attempt may be made."""
        work, deployment = self._work, opened.deployment
        first, chunks, charge, continues = opened.result
        sent = Meter()
        work.record.first_chunk()
        self._stitch.restart(continues=continues)
        try:
            async with aclosing(chunks):
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
            work.abandoned(charge, deployment, None, self._usage(deployment, charge, sent), status="diverged")
            work.record.recovering("diverged")
            raise work.course.error() from None
        except UpstreamFault as fault:
            # What the provider has sent is paid, however the stream ends.
            for chunk in fault.sent:
                sent.add(chunk)
            work.failed(charge, deployment, fault, self._usage(deployment, charge, sent))
            broken = work.course.interrupted(deployment, fault.failure)
            recoverable = self._stitch.can_restart and fault.failure.failure_class in RECOVERABLE
            work.record.recovering("restarted" if recoverable else "refused")
            if not recoverable:
                raise broken from fault
            return
        except BaseException as error:
            work.abandoned(charge, deployment, error, self._usage(deployment, charge, sent))
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

    def _usage(self, deployment: Deployment, charge: Charge, sent: Meter, *, whole: bool = False) -> Usage:
        payer = self._work.payer
        reported = usage_of(deployment, sent.usage, batch=payer.terms.discounted)
        if reported is not None:
            return reported
        if deployment.reasoning:
            # What it thought unseen is billed too, and nobody says how much that was.
            return charge.upper_bound
        output = sent.output_bytes + (0 if whole else UNREAD_TOKENS)
        estimate = priced(deployment.prices, charge.input_tokens, output, estimated=True)
        return bounded(estimate, charge.bound_nanousd)

    def _unseen_usage(self, deployment: Deployment, charge: Charge, fault: UpstreamFault) -> Usage | None:
        """What a stream has cost that failed before anybody saw it, None where nothing is billed."""
        sent = Meter()
        for chunk in fault.sent:
            sent.add(chunk)
        if sent.output_bytes or sent.usage is not None:
            return self._usage(deployment, charge, sent)
        return self._silent_usage(deployment, charge) if fault.failure.failure_class in MAYBE_BILLED else None

    def _silent_usage(self, deployment: Deployment, charge: Charge) -> Usage:
        """What a stream has cost that gave nothing: the prompt, and what was on its way."""
        return self._usage(deployment, charge, Meter())
