"""Sends answers at the asked pace, notices a client that leaves, and keeps count of the tokens it has had."""

import asyncio
import time

from services.simulator.fault_answers import error_answer
from services.simulator.faults import Faults
from services.simulator.served_log import Visit
from services.simulator.surfaces.exchange import EVENT_STREAM, JSON, Exchange
from services.simulator.wire import BodyPlan, Ending, StreamPlan

STALL_LIMIT_S = 600.0
"""How long a stalled or hanging answer is held at most."""

# Events written at once where no pace is asked for: enough to save system calls, few enough to notice a client that leaves.
_EVENTS_A_WRITE = 256


async def before_answer(exchange: Exchange, visit: Visit, faults: Faults) -> bool:
    """Wait for the first token, then apply the faults that leave no completion; whether there is still one to send."""
    delay_ms = faults.get("first_token_delay")
    if isinstance(delay_ms, float) and not await exchange.wait(delay_ms / 1000):
        visit.note_abort()
        # The prompt was taken in: that much a provider bills.
        visit.billed = True
        return False
    if "reset" in faults:
        await exchange.break_off(at_once=True)
        return False
    if "hang" in faults:
        await _stall(exchange, visit)
        return False
    error = error_answer(faults)
    if error is not None:
        visit.status = error.status
        visit.error_code = error.fault
        await exchange.respond(error.status, error.body, error.headers)
        return False
    return True


async def send_body(exchange: Exchange, visit: Visit, plan: BodyPlan, faults: Faults) -> None:
    """Send a whole answer, after the time that its tokens take to make."""
    rate = faults.get("tokens_per_s")
    wanted = visit.completion_tokens
    if isinstance(rate, float) and wanted:
        began_s = time.monotonic()
        if not await exchange.wait(wanted / rate):
            visit.completion_tokens = min(int((time.monotonic() - began_s) * rate), wanted)
            visit.note_abort()
            return
    visit.status = 200
    visit.first_byte_monotonic_s = time.monotonic()
    visit.usage_sent = plan.usage_sent
    visit.finish_reason = plan.finish_reason
    content_type = _content_type(faults, JSON)
    if plan.ending is Ending.ORDERLY:
        await exchange.respond(200, plan.body, content_type=content_type)
        return
    await exchange.start(200, ((b"content-length", str(len(plan.body)).encode()),), content_type)
    await exchange.write(plan.body[: plan.send_bytes])
    await _end(exchange, visit, plan.ending)


async def send_stream(exchange: Exchange, visit: Visit, plan: StreamPlan, faults: Faults) -> None:
    """Send a stream; `visit.completion_tokens` grows with it."""
    visit.completion_tokens = 0
    visit.status = 200
    visit.first_byte_monotonic_s = time.monotonic()
    await exchange.start(200, ((b"cache-control", b"no-cache"),), _content_type(faults, EVENT_STREAM))
    rate = faults.get("tokens_per_s")
    if isinstance(rate, float):
        complete = await _send_paced(exchange, visit, plan, rate)
    else:
        complete = await _send_at_once(exchange, visit, plan)
    if not complete:
        visit.note_abort()
        return
    visit.usage_sent = plan.usage_sent
    visit.finish_reason = plan.finish_reason
    if plan.ending is not Ending.ORDERLY:
        await _end(exchange, visit, plan.ending)


async def _send_at_once(exchange: Exchange, visit: Visit, plan: StreamPlan) -> bool:
    events, orderly = plan.events, plan.ending is Ending.ORDERLY
    if len(events) <= _EVENTS_A_WRITE:
        await exchange.write(b"".join(events), more=not orderly)
        visit.completion_tokens = plan.tokens[-1] if events else 0
        return True
    exchange.watch()
    for start in range(0, len(events), _EVENTS_A_WRITE):
        end = min(start + _EVENTS_A_WRITE, len(events))
        await exchange.write(b"".join(events[start:end]), more=not orderly or end < len(events))
        if end < len(events):
            # A full socket is waited for in the write; without a turn of the loop its end would go unnoticed.
            await asyncio.sleep(0)
            if exchange.client_gone:
                return False
        visit.completion_tokens = plan.tokens[end - 1]
    return True


async def _send_paced(exchange: Exchange, visit: Visit, plan: StreamPlan, rate: float) -> bool:
    """Each token goes out when it is due, counted from the first, so that slow waits do not add up."""
    began_s = time.monotonic()
    sent = 0
    while sent < len(plan.events):
        elapsed_s = time.monotonic() - began_s
        due = sent
        while due < len(plan.events) and (plan.tokens[due] - 1) / rate <= elapsed_s:
            due += 1
        if due == sent:
            if not await exchange.wait((plan.tokens[sent] - 1) / rate - elapsed_s):
                return False
            continue
        await exchange.write(b"".join(plan.events[sent:due]))
        if exchange.client_gone:
            return False
        visit.completion_tokens = plan.tokens[due - 1]
        sent = due
    if plan.ending is Ending.ORDERLY:
        await exchange.write(b"", more=False)
    return True


async def _end(exchange: Exchange, visit: Visit, ending: Ending) -> None:
    if ending is Ending.STALL:
        await _stall(exchange, visit)
    else:
        await exchange.break_off(at_once=False)


async def _stall(exchange: Exchange, visit: Visit) -> None:
    await exchange.stall(STALL_LIMIT_S)
    if exchange.client_gone:
        visit.note_abort()
    else:
        await exchange.break_off(at_once=False)


def _content_type(faults: Faults, usual: bytes) -> bytes:
    asked = faults.get("wrong_content_type")
    return asked.encode() if isinstance(asked, str) else usual
