"""Sends answers at the asked pace, notices a client that leaves, and keeps count of the tokens it has had."""

import asyncio
import time
from dataclasses import replace

from services.simulator.dialects import Dialect
from services.simulator.fault_answers import error_answer
from services.simulator.faults import Faults, count
from services.simulator.plans import HTML_PAGE, BodyPlan, Ending, StreamPlan
from services.simulator.served_log import Visit
from services.simulator.simulator import Simulator
from services.simulator.surfaces import odd_delivery
from services.simulator.surfaces.exchange import HTML, JSON, Exchange, Header

STALL_LIMIT_S = 600.0
"""How long a stalled or hanging answer is held at most."""

_STREAM_HEADERS: tuple[Header, ...] = ((b"cache-control", b"no-cache"),)

# Events written at once where no pace is asked for: enough to save system calls, few enough to notice a client that leaves.
_EVENTS_A_WRITE = 256


async def closed_early(simulator: Simulator, exchange: Exchange, endpoint: str) -> bool:
    """Close the connection before the body is read, where that was asked for."""
    if not simulator.closes_early(endpoint, exchange.headers):
        return False
    await exchange.break_off(at_once=False)
    return True


async def before_answer(exchange: Exchange, visit: Visit, dialect: Dialect, faults: Faults) -> bool:
    """Wait for the first token, then apply the faults that leave no completion; whether there is still one to send."""
    if not faults:
        return True
    delay_ms = faults.get("first_token_delay")
    if isinstance(delay_ms, float) and not await exchange.wait(delay_ms / 1000):
        visit.note_abort()
        # The prompt was taken in: that much a provider bills.
        visit.billed = True
        return False
    if "reset" in faults or "close_before_body" in faults:
        await exchange.break_off(at_once="reset" in faults)
        return False
    if "hang" in faults:
        await _stall(exchange, visit)
        return False
    error = error_answer(faults)
    if error is None or (error.fault == "content_policy" and dialect.blocks_in_answer):
        return True
    status, body, more = dialect.refusal(error.refused, visit.id)
    headers = () if dialect.waits_in_body and error.refused.retry_after_s is not None else error.headers
    visit.status = status
    visit.error_code = error.fault
    html = "html_body" in faults
    await exchange.respond(status, HTML_PAGE if html else body, (*headers, *more), HTML if html else JSON)
    return False


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
        if faults:
            await _send_odd_body(exchange, visit, plan.body, content_type, faults)
        else:
            await exchange.respond(200, plan.body, content_type=content_type)
        return
    await exchange.start(200, ((b"content-length", str(len(plan.body)).encode()),), content_type)
    await exchange.write(plan.body[: plan.send_bytes])
    await _end(exchange, visit, plan.ending)


async def send_stream(exchange: Exchange, visit: Visit, plan: StreamPlan, faults: Faults, content_type: bytes) -> None:
    """Send a stream; `visit.completion_tokens` grows with it."""
    visit.completion_tokens = 0
    visit.status = 200
    visit.first_byte_monotonic_s = time.monotonic()
    if faults:
        complete = await _send_odd_stream(exchange, visit, plan, faults, _content_type(faults, content_type))
    else:
        await exchange.start(200, _STREAM_HEADERS, content_type)
        complete = await _send_at_once(exchange, visit, plan)
    if not complete:
        visit.note_abort()
        return
    visit.usage_sent = plan.usage_sent
    visit.finish_reason = plan.finish_reason
    if plan.ending is not Ending.ORDERLY:
        await _end(exchange, visit, plan.ending)


async def _send_odd_body(exchange: Exchange, visit: Visit, body: bytes, content_type: bytes, faults: Faults) -> None:
    headers: tuple[Header, ...] = ()
    if "gzip" in faults:
        body, headers = odd_delivery.zipped(body), (odd_delivery.GZIP_HEADER,)
    if odd_delivery.RAW_FAULTS & faults.keys():
        if not await odd_delivery.send_raw(exchange, body, headers, content_type, faults):
            visit.note_abort()
        return
    size, delay_ms = count(faults, "trickle"), count(faults, "delay_after_headers")
    if size is None and delay_ms is None:
        await exchange.respond(200, body, headers, content_type)
        return
    await exchange.start(200, (*headers, (b"content-length", str(len(body)).encode())), content_type)
    if delay_ms is not None and not await exchange.wait(delay_ms / 1000):
        visit.note_abort()
    elif size is None:
        await exchange.write(body, more=False)
    elif not await odd_delivery.trickle(exchange, body, size, more=False):
        visit.note_abort()


async def _send_odd_stream(exchange: Exchange, visit: Visit, plan: StreamPlan, faults: Faults, content_type: bytes) -> bool:
    """Send a stream under faults; False where the client left."""
    orderly = plan.ending is Ending.ORDERLY
    if odd_delivery.RAW_FAULTS & faults.keys():
        sent = await odd_delivery.send_raw(exchange, b"".join(plan.events), _STREAM_HEADERS, content_type, faults)
        visit.completion_tokens = plan.tokens[-1] if sent and plan.tokens else 0
        return sent
    headers = (*_STREAM_HEADERS, odd_delivery.GZIP_HEADER) if "gzip" in faults else _STREAM_HEADERS
    await exchange.start(200, headers, content_type)
    delay_ms = count(faults, "delay_after_headers")
    if delay_ms is not None and not await exchange.wait(delay_ms / 1000):
        return False
    if "gzip" in faults:
        pack = odd_delivery.stream_zipper()
        last = len(plan.events) - 1
        packed = [pack(event, not orderly or index < last) for index, event in enumerate(plan.events)]
        plan = replace(plan, events=packed)
    size, rate = count(faults, "trickle"), faults.get("tokens_per_s")
    if isinstance(rate, float):
        return await _send_paced(exchange, visit, plan, rate)
    if size is None:
        return await _send_at_once(exchange, visit, plan)
    for event, tokens in zip(plan.events, plan.tokens, strict=True):
        if not await odd_delivery.trickle(exchange, event, size, more=True):
            return False
        visit.completion_tokens = tokens
    if orderly:
        await exchange.write(b"", more=False)
    return True


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
    if not faults:
        return usual
    if "html_body" in faults:
        usual = HTML
    asked = faults.get("wrong_content_type")
    return asked.encode() if isinstance(asked, str) else usual
