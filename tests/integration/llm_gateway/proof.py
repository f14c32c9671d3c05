"""Verdicts from both ends of a model call: what a client of the model port saw, and what the provider served, billed and booked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from services.common import testing
from services.common.valkey import connect
from services.llm_gateway.adapters.ledger import Ledger

TENANT = "acme"
# Nano-USD a token as the simulator bills them, in LiteLLM's notation.
PRICES = {
    "sim-1": {
        "input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7, "cache_read_input_token_cost": 3e-8,
        "cache_creation_input_token_cost": 1.88e-7, "output_cost_per_reasoning_token": 6e-7,
    },
    "sim-2": {
        "input_cost_per_token": 5e-7, "output_cost_per_token": 1.5e-6, "cache_read_input_token_cost": 5e-8,
        "cache_creation_input_token_cost": 6.26e-7, "output_cost_per_reasoning_token": 2e-6,
    },
}  # fmt: skip
BASES = {"openai": "/v1", "anthropic": "", "gemini": "/v1beta"}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


def deployment(name: str, model: str, base: str, dialect: str = "openai", **params: Any) -> dict[str, Any]:
    """One entry of model_list that costs what the simulator bills; `base` is the URL of the provider's API."""
    info = {"mode": "chat", "simulated": True, "trusted": True, **PRICES[model]}
    return {
        "model_name": name,
        "litellm_params": {"model": f"{dialect}/{model}", "api_base": base, "api_key": "sk-sim", **params},
        "model_info": info,
    }


def pair(sim_url: str, dialect: str = "openai", **router: Any) -> dict[str, Any]:
    """A models.yaml of main on sim-1 and backup on sim-2, both behind one provider's API."""
    base = sim_url + BASES[dialect]
    return {
        "model_list": [deployment("main", "sim-1", base, dialect), deployment("backup", "sim-2", base, dialect)],
        # What one case breaks must not stay shut for the next.
        "router_settings": {"allowed_fails": 1000, **router},
        "general_settings": {"always_include_stream_usage": True},
    }


@dataclass
class Seen:
    """What a client saw of one completion, whole or streamed."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    finish: str = ""
    usage: Mapping[str, Any] | None = None
    error: dict[str, Any] | None = None
    comments: list[str] = field(default_factory=list)
    done: bool = False
    took_s: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the client takes it for a success."""
        return self.status == 200 and self.error is None and self.done

    @property
    def warnings(self) -> list[str]:
        """Codes of what went wrong on the way: from the header, and in a stream from comments."""
        told = [code for code in self.headers.get("x-bulkhead-warnings", "").split(", ") if code]
        return told + [comment for comment in self.comments if not comment.startswith("cost_microusd=")]

    def message(self) -> tuple[str, list[tuple[str, str]], str]:
        """What the model said: text, (name, arguments) of each call, and the finish."""
        return self.text, [(call["name"], call["arguments"]) for call in self.calls], self.finish


class Client:
    """A client of an OpenAI-shaped server that hides nothing: no retries, no repair."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str) -> None:
        self._http = http
        self.url = url
        self.key = key

    async def chat(self, body: Mapping[str, Any], *, stream: bool = False, **headers: str) -> Seen:
        """One completion. Raises aiohttp's errors where the server itself breaks off."""
        began = time.monotonic()
        sent = {"authorization": f"Bearer {self.key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body
        async with self._http.post(f"{self.url}/v1/chat/completions", json=asked, headers=sent) as answer:
            raw = await answer.read()
            seen = Seen(answer.status, answer.headers)
        if answer.status == 200 and stream:
            assert answer.headers["content-type"].startswith("text/event-stream")
            _read_events(raw, seen)
        else:
            _read_whole(orjson.loads(raw), seen)
        seen.took_s = time.monotonic() - began
        return seen


def _read_whole(data: Any, seen: Seen) -> None:
    seen.error = data.get("error")
    if seen.error is not None:
        return
    choice = data["choices"][0]
    seen.done = True
    seen.text, seen.finish, seen.usage = choice["message"].get("content") or "", choice["finish_reason"], data.get("usage")
    seen.calls = [call["function"] for call in choice["message"].get("tool_calls") or []]


def _read_events(raw: bytes, seen: Seen) -> None:
    assert raw.endswith(b"\n\n")
    for event in raw.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]:
        lines = event.split(b"\n")
        seen.comments += [line[2:].decode() for line in lines if line.startswith(b": ")]
        data = b"\n".join(line[6:] for line in lines if line.startswith(b"data: "))
        if not data:
            continue
        # Nothing follows an error or the end.
        assert seen.error is None
        assert not seen.done
        if data == b"[DONE]":
            seen.done = True
            continue
        chunk = orjson.loads(data)
        seen.error = chunk.get("error")
        seen.usage = chunk.get("usage") or seen.usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            seen.text += delta.get("content") or ""
            seen.finish = choice.get("finish_reason") or seen.finish
            for call in delta.get("tool_calls") or []:
                while len(seen.calls) <= call.get("index", 0):
                    seen.calls.append({"name": "", "arguments": ""})
                kept, function = seen.calls[call.get("index", 0)], call.get("function") or {}
                kept["name"] += function.get("name") or ""
                kept["arguments"] += function.get("arguments") or ""


@dataclass(frozen=True)
class Account:
    """What one case left behind: the simulator's lines in the order of their arrival, and the ledger's lines."""

    served: list[dict[str, Any]]
    booked: list[dict[str, Any]]

    def of(self, model: str) -> list[dict[str, Any]]:
        """Requests that a model of the simulator got."""
        return [line for line in self.served if line["model"] == model]


class Books:
    """Compares the ledger of a tenant with the simulator's log, from one mark to the next."""

    def __init__(self, state_url: str, sim: Any) -> None:
        self._client = connect(state_url, timeout_s=10.0)
        self._ledger = Ledger(self._client)
        self._sim = sim
        self._cursor = ""
        self._spent = 0

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.aclose()

    async def mark(self) -> None:
        """A case begins: what was booked before is not looked at, and the simulator forgets faults and log."""
        await self.settled()
        await self._sim.reset()
        await self._after()
        self._spent = await self._total()

    async def settled(self) -> None:
        """Returns when nothing is being served and no reservation is open."""

        async def quiet() -> bool:
            if await self._sim.in_flight():
                return False
            opened = await self._client.hgetall(f"llm:{{{TENANT}}}:open")
            # The mark of a reserve that was given up before it came to the store holds no money: it is five numbers and no more.
            return all(len(raw) == 40 for raw in opened.values())

        await testing.eventually_async(quiet, "nothing in flight and no reservation open", timeout_s=20.0)

    async def close_case(self) -> Account:
        """Waits until all is settled; checks every line of the ledger against what the provider billed."""
        await self.settled()
        served = sorted(await self._sim.log(), key=lambda line: line["received_monotonic_s"])
        account = Account(served, await self._after())
        check(account)
        (total, *_) = await self._ledger.spend(TENANT, "tenant", TENANT)
        assert total.reserved_nanousd == 0
        # The counters that caps are held against say what the ledger says.
        assert total.spent_nanousd - self._spent == sum(line["cost_nanousd"] for line in account.booked)
        return account

    async def _total(self) -> int:
        (total, *_) = await self._ledger.spend(TENANT, "tenant", TENANT)
        return total.spent_nanousd

    async def lines(self) -> list[dict[str, Any]]:
        """The ledger's lines since the last look."""
        return await self._after()

    async def _after(self) -> list[dict[str, Any]]:
        found = []
        while entries := await self._client.xrange(f"llm:{{{TENANT}}}:ledger", f"({self._cursor}" if self._cursor else "-", "+", 1000):
            self._cursor = entries[-1][0].decode()
            found += [orjson.loads(fields[b"l"]) for _, fields in entries]
        return found


def check(account: Account) -> None:
    """One call: its n-th attempt is the n-th request that the simulator got."""
    by_attempt = {line["attempt"]: line for line in account.booked}
    assert len(by_attempt) == len(account.booked), "an attempt was booked twice"
    assert len({line["call_id"] for line in account.booked}) <= 1
    for number, served in enumerate(account.served, 1):
        line = by_attempt.pop(number, None)
        if line is None:
            assert served["billed_nanousd"] == 0, f"attempt {number} was billed and is not in the ledger: {served}"
        else:
            check_line(line, served)
    assert not by_attempt, "the ledger has attempts that the provider never saw"


def check_line(line: Mapping[str, Any], served: Mapping[str, Any]) -> None:
    """A metered line is the bill; an estimated one is flagged and stands between the bill and the reservation."""
    if line["estimated"]:
        assert served["billed_nanousd"] <= line["cost_nanousd"] <= line["reserved_nanousd"], (line, served)
        return
    assert line["cost_nanousd"] == served["billed_nanousd"], (line, served)
    counted = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
    billed = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
    assert [line[name] for name in counted] == [served[name] for name in billed], (line, served)
    assert line["cost_nanousd"] <= line["reserved_nanousd"], (line, served)
