"""What all requests share: the log, the ordered faults, the scenarios, and how fast the simulator speaks by default."""

import hmac
import secrets
import zlib
from collections.abc import Mapping, Sequence
from itertools import count

from services.simulator import faults
from services.simulator.chat_request import ChatRequest
from services.simulator.fault_book import FaultBook, Subject
from services.simulator.faults import Faults
from services.simulator.prompt_cache import PromptCache
from services.simulator.refusals import Failure, Refused
from services.simulator.scenarios import ScenarioBook
from services.simulator.served_log import ServedLog

_SCENARIO_HEADER = "x-sim-scenario"
_FAULT_HEADER = "x-sim-fault"
_PREFIX = "x-sim-"


class Simulator:
    """The state of one simulator process. All of it lives on one event loop."""

    def __init__(
        self,
        log: ServedLog,
        scenarios: ScenarioBook,
        *,
        first_token_delay_ms: float = 0,
        tokens_per_s: float = 0,
        required_key: str = "",
    ):
        """`first_token_delay_ms` and `tokens_per_s` hold for every request that asks for no other; 0 is at once.

        `required_key` is the key that every request must bring, empty where any will do.
        """
        self.log = log
        self.scenarios = scenarios
        self.fault_book = FaultBook()
        self.prompt_cache = PromptCache()
        self._required_key = required_key
        self._numbers = count(1)
        self._process = secrets.token_hex(4)
        pace: dict[str, float | str] = {"first_token_delay": float(first_token_delay_ms), "tokens_per_s": float(tokens_per_s)}
        self._pace: Faults = {name: value for name, value in pace.items() if value}

    def next_id(self) -> str:
        """An id that no other answer has, of this process or another."""
        return f"{self._process}{next(self._numbers):08x}"

    def faults_for(self, subject: Subject, headers: Mapping[str, str], of_model: Faults) -> Faults:
        """All faults of a request: the control endpoint's beat those of headers, those the model name's, those the default pace.

        Raises Refused (400) where a header names no fault.
        """
        of_headers = header_faults(headers)
        ordered = self.fault_book.take(subject) if len(self.fault_book) else faults.NO_FAULTS
        if not (of_headers or ordered or of_model):
            return self._pace
        return {**self._pace, **of_model, **of_headers, **ordered}

    def closes_early(self, endpoint: str, headers: Mapping[str, str]) -> bool:
        """Whether a connection is to be closed before the body is read: by a header, or by an order that needs no body to fit."""
        named = _FAULT_HEADER in headers or "x-sim-close-before-body" in headers
        if named and "close_before_body" in header_faults(headers):
            return True
        if not len(self.fault_book):
            return False
        return self.fault_book.take_unread("close_before_body", endpoint, labels_of(headers))

    def check_key(self, brought: str, asked: Faults) -> None:
        """Refuse (401) a request that does not bring the key that the setting or the fault `require_key` asks for."""
        wanted = str(asked["require_key"]) if "require_key" in asked else self._required_key
        if wanted and not hmac.compare_digest(wanted.encode(), brought.encode()):
            raise Refused("Incorrect API key provided.", status=401, code="invalid_api_key", kind=Failure.BAD_KEY)


def header_faults(headers: Mapping[str, str]) -> Faults:
    """The faults that `x-sim-*` headers ask for; raises Refused (400) where one names no fault."""
    found: dict[str, float | str] = {}
    for name, value in headers.items():
        if not name.startswith(_PREFIX) or name == _SCENARIO_HEADER:
            continue
        if name == _FAULT_HEADER:
            found.update(faults.parse_text(value, name))
        else:
            key, checked = faults.parse_one(name[len(_PREFIX) :], value, name)
            found[key] = checked
    return found


def scenario_header(headers: Mapping[str, str]) -> str | None:
    """The name of the scenario that a header asks for."""
    return headers.get(_SCENARIO_HEADER)


def labels_of(headers: Mapping[str, str], *more: str) -> tuple[str, ...]:
    """The ids by which an ordered fault may name a run."""
    names = ("x-request-id", "idempotency-key", "x-bulkhead-run-id", "x-bulkhead-thread-id", "baggage", "traceparent")
    return (*(headers[name] for name in names if name in headers), *more)


def tool_call_ids(request: ChatRequest, answer_id: str, wanted: int, *, prefix: str = "call_", choice: int = 0) -> Sequence[str]:
    """Ids for tool calls: as with real providers never the same twice, unless the request has a seed."""
    if request.seed is None:
        unique = answer_id.rpartition("-")[2].rpartition("_")[2]
        unique = f"{unique}_{choice}" if choice else unique
        return [f"{prefix}{unique}_{index}" for index in range(wanted)]
    # The length of the conversation tells the steps of one turn apart.
    told = f"{request.seed} {len(request.messages)} {request.asked}".encode()
    return [f"{prefix}{zlib.crc32(told) + choice:08x}_{len(request.messages)}_{index}" for index in range(wanted)]


def check_context(prompt_tokens: int, context_tokens: int) -> None:
    """Refuse (400, context_length_exceeded) what does not fit into the model's context."""
    if prompt_tokens > context_tokens:
        raise Refused(
            f"This model's maximum context length is {context_tokens} tokens. However, your messages resulted in {prompt_tokens} tokens.",
            code="context_length_exceeded",
            param="messages",
            kind=Failure.CONTEXT,
        )
