"""What a dialect is: how it writes answers, streams and errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.simulator import anthropic_wire, gemini_wire, openai_wire
from services.simulator.faults import Faults
from services.simulator.plans import BodyPlan, Head, StreamPlan
from services.simulator.refusals import Refused
from services.simulator.replies import Reply

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One provider's way to write. `endpoint` is its name in the log and in fault orders.

    `refusal` takes the error and the answer's id, and makes a status, a body and headers. `waits_in_body`: a rate limit tells its
    wait in the body instead of a header. `blocks_in_answer`: a prompt against the policy gets a 200 that says so.
    """

    endpoint: str
    id_prefix: str
    call_prefix: str
    whole_body: Callable[[Sequence[Reply], Head, Faults], BodyPlan]
    stream: Callable[[Sequence[Reply], Head, Faults], StreamPlan]
    refusal: Callable[[Refused, str], tuple[int, bytes, tuple[Header, ...]]]
    waits_in_body: bool = False
    stream_type: bytes = b"text/event-stream; charset=utf-8"
    blocks_in_answer: bool = False


OPENAI = Dialect("chat", "chatcmpl-sim-", "call_", openai_wire.whole_body, openai_wire.stream, openai_wire.refusal)
ANTHROPIC = Dialect("messages", "msg_sim_", "toolu_", anthropic_wire.whole_body, anthropic_wire.stream, anthropic_wire.refusal)
GEMINI = Dialect(
    "gemini",
    "gmn-sim-",
    "fc_",
    gemini_wire.whole_body,
    gemini_wire.stream,
    gemini_wire.refusal,
    waits_in_body=True,
    blocks_in_answer=True,
)
