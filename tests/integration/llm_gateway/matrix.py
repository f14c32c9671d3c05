"""What the files of the fault matrix share: a gateway before a simulator with the books of both, and the cases of a table."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from services.common import testing
from tests.integration.llm_gateway.conftest import served, simulated
from tests.integration.llm_gateway.proof import BASES, CALCULATOR, Account, Books, Client, Seen, deployment, pair

SHIPS = {"messages": [{"role": "user", "content": "Tell me about ships and bulkheads, please."}]}
SUM = {"messages": [{"role": "user", "content": "What is 17 * 23?"}], "tools": [CALCULATOR]}
# Far above what a case takes; a machine that is busy must not fail it, a call that hangs must.
BOUND_S = 20.0
MODES = ["unary", "stream"]


@dataclass
class Bench:
    """A gateway before a simulator, a client, and the books of both."""

    client: Client
    books: Books
    sim: Any
    truth: dict[str, tuple]
    stack: Any = None

    async def ask(self, mode: str, body: dict = SHIPS, model: str = "main", **headers: str) -> tuple[Seen, Account]:
        """One call, and what it left behind. Checks what holds for every call."""
        seen = await asyncio.wait_for(self.client.chat({"model": model, **body}, stream=mode == "stream", **headers), BOUND_S)
        account = await self.books.close_case()
        assert len(account.served) <= 8
        if seen.succeeded:
            assert seen.finish
            assert all(orjson.loads(call["arguments"]) for call in seen.calls)
        else:
            assert_honest(seen)
        return seen, account


def assert_honest(seen: Seen) -> None:
    """An error that says of which kind it is, and nothing that looks like a success beside it."""
    assert seen.error is not None
    assert not seen.done
    assert seen.error["message"]
    assert seen.error["type"] in ("invalid_request_error", "server_error", "rate_limit_error")
    assert seen.status == 200 or 400 <= seen.status < 600


async def truth_of(sim, http, body: dict, model: str = "sim-1") -> tuple:
    """What the simulator answers when it is asked directly and nothing is wrong."""
    seen = await Client(http, sim.url, "sk-sim").chat({"model": model, **body})
    return seen.message()


@asynccontextmanager
async def bench_of(identities, state_url: str, folder, dialect: str = "openai") -> AsyncIterator[Bench]:
    """A gateway with main and backup behind one provider's API."""
    async with simulated() as sim:
        content = pair(sim.url, dialect, max_fallbacks=1)
        thinker = deployment("thinker", "sim-1", sim.url + BASES[dialect], dialect)
        thinker["model_info"]["supports_reasoning"] = True
        content["model_list"].append(thinker)
        async with served(
            content, identities, state_url, folder, sim,
            model_total_timeout_s=4.0, model_retry_cap_s=3.0, model_first_token_timeout_s=1.2, model_between_tokens_timeout_s=1.0,
        ) as stack:  # fmt: skip
            truth = {name: await truth_of(sim, stack.http, body) for name, body in (("ships", SHIPS), ("sum", SUM))}
            books = Books(state_url, sim)
            yield Bench(Client(stack.http, stack.url, stack.key), books, sim, truth)
            await books.close()


@dataclass(frozen=True)
class Case:
    """A fault, and what comes of it in the two modes: `fine` (the model's own answer, at once), `skipped` (the same with a warning),
    or how often the model is asked before another one answers. `alone` are status and failure class where all models have it.
    """

    fault: str
    unary: str | int
    stream: str | int
    alone: tuple[int, str] = (502, "")
    stream_alone: tuple[int, str] | None = None

    def of(self, mode: str) -> str | int:
        """What comes of it in this mode."""
        return self.unary if mode == "unary" else self.stream


FINE, SKIPPED = "fine", "skipped"
# A failure that may pass is asked again three times; all others are asked once.
AGAIN, ONCE = 4, 1
TRANSIENT, MALFORMED, CUT = (502, "transient"), (502, "malformed"), (502, "cut")
LIMITED, CREDENTIAL = (503, "rate_limited"), (502, "credential")


# What holds whichever API the provider speaks.
CASES_OF_ALL = [
    *(Case(f"status={status}", AGAIN, AGAIN, TRANSIENT) for status in (500, 503, 529)),
    *(Case(f"status={status}", ONCE, ONCE, CREDENTIAL) for status in (401, 403)),
    Case("status=404", ONCE, ONCE, (502, "model_gone")),
    Case("unauthorized", ONCE, ONCE, CREDENTIAL),
    Case("forbidden", ONCE, ONCE, CREDENTIAL),
    Case("insufficient_quota", ONCE, ONCE, (502, "quota")),
    Case("redirect", ONCE, ONCE, (502, "unknown")),
    Case("rate_limit=none", AGAIN, AGAIN, LIMITED),
    # Connections.
    Case("reset", AGAIN, AGAIN, TRANSIENT),
    Case("close_before_body", AGAIN, AGAIN, TRANSIENT),
    Case("hang", ONCE, ONCE, (504, ""), (502, "timeout_first_token")),
    Case("bad_chunked", AGAIN, AGAIN, CUT),
    # Bodies.
    Case("error_body", AGAIN, AGAIN, TRANSIENT),
    Case("empty_body", ONCE, ONCE, MALFORMED),
    Case("html_body", ONCE, ONCE, MALFORMED),
    Case("malformed_json", ONCE, SKIPPED, MALFORMED),
    Case("invalid_utf8", ONCE, SKIPPED, MALFORMED),
    Case("nul_bytes", ONCE, SKIPPED, MALFORMED),
    # Streams that end before their end.
    Case("cut_after=0", AGAIN, AGAIN, CUT),
    Case("cut_after=3", AGAIN, AGAIN, CUT),
    Case("end_after=3", ONCE, AGAIN, MALFORMED, CUT),
    Case("missing_finish", ONCE, AGAIN, MALFORMED, CUT),
    Case("stall_after=3", ONCE, ONCE, (502, "stalled")),
    *(Case(f"error_event_after={after}", AGAIN, AGAIN, TRANSIENT) for after in (0, 1, 4)),
    # Oddities of whole answers.
    *(
        Case(fault, FINE, FINE)
        for fault in (
            "missing_done", "missing_usage", "usage_zero", "keepalive", "crlf", "bom", "gzip", "trickle=7", "wrong_content_type",
            "role_chunks=5", "first_token_delay=200", "slow_headers=200", "reasoning_tokens=20", "reasoning_tokens=20; show_reasoning",
            "cached_prefix=4", "unknown_event=2",
        )
    ),
]  # fmt: skip
# Nothing but waiting, which other cases do as well.
SLOW = frozenset({"hang", "stall_after=0", "stall_after=3"})


def _patience(case: Case, slow: bool) -> Any:
    return pytest.mark.system if slow and case.fault in SLOW else ()


def spared(cases: list[Case]) -> list[Any]:
    """Parameters of `check_with_a_spare` where another file has the waiting of an answer as a whole: each case in each mode."""
    return [pytest.param(case, mode, marks=_patience(case, mode == "unary")) for case in cases for mode in MODES]


def lonely(cases: list[Case], *, elsewhere: bool = False) -> list[Any]:
    """Parameters of `check_alone`: each case in each mode where the fault is told. `elsewhere` is where another file has the waiting."""
    return [
        pytest.param(case, mode, marks=_patience(case, elsewhere or mode == "unary"))
        for case in cases
        for mode in MODES
        if isinstance(case.of(mode), int)
    ]


def label(value: Case | str) -> str:
    """The name of a case, or of a mode, in a report."""
    return value.fault.replace("; ", "+") if isinstance(value, Case) else value


async def check_with_a_spare(bench: Bench, case: Case, mode: str) -> None:
    """The fault is one model's: the client gets the answer word for word, from it or from the other."""
    if case.fault == "close_before_body":
        # Nobody has read the model's name by then, so the fault is counted instead.
        await bench.sim.order(case.fault, times=AGAIN)
    else:
        await bench.sim.order(case.fault, model="sim-1")
    seen, account = await bench.ask(mode)
    assert seen.succeeded, seen
    assert seen.message() == bench.truth["ships"]
    expected = case.of(mode)
    if isinstance(expected, str):
        assert len(account.served) == len(account.of("sim-1")) == 1
        assert seen.warnings == (["event_skipped"] if expected == SKIPPED else [])
        return
    assert len(account.of("sim-2")) == 1
    assert len(account.served) == expected + 1
    assert seen.warnings == ["model_retry"] * (expected - 1) + ["model_fallback"]


async def check_alone(bench: Bench, case: Case, mode: str) -> None:
    """The fault is every model's: the client gets an error of the right kind, and what came before it is as the model said it."""
    await bench.sim.order(case.fault)
    seen, account = await bench.ask(mode)
    assert not seen.succeeded
    status, failure_class = case.alone if mode == "unary" or case.stream_alone is None else case.stream_alone
    if seen.text:
        assert mode == "stream"
        assert bench.truth["ships"][0].startswith(seen.text)
    else:
        assert seen.status == status, seen
    assert failure_class in ("", seen.error.get("failure_class"))
    assert 1 <= len(account.served) <= 8
    assert (seen.error["type"], "retry-after" in seen.headers) == ("server_error", status == 503)


async def check_leaving(bench: Bench, fault: str, mode: str) -> None:
    """The client leaves in the middle of the fault: the work upstream ends, and the money is settled."""
    await bench.sim.order(fault)
    task = asyncio.create_task(bench.client.chat({"model": "main", **SHIPS}, stream=mode == "stream"))
    await testing.eventually_async(bench.sim.in_flight, "the call is upstream")
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    account = await bench.books.close_case()
    assert [line["aborted"] for line in account.served] == [True]
    assert [line["status"] for line in account.booked] == ["cancelled"]
