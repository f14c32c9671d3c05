"""Lines of a batch as its provider gets them, and the most that each can come to."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from services.common.errors import BulkheadError
from services.llm_gateway.batches.provider_port import Provider
from services.llm_gateway.bounds import assumed_output, output_bound
from services.llm_gateway.estimates import measure
from services.llm_gateway.extras import extras_of
from services.llm_gateway.money import PICO_PER_NANO, Prices, Usage
from services.llm_gateway.registry import Deployment
from services.llm_gateway.request_rules import check_request

if TYPE_CHECKING:
    from services.llm_gateway.batches.execution import Execution


def prepared(held: "Execution", deployment: Deployment, provider: Provider, file: BinaryIO | None) -> tuple[int, int, int]:
    """Writes the file for the provider; answers its lines, and the most tokens and nano-USD that they can come to. Blocks."""
    count = tokens = cost_nanousd = 0
    prices = provider.prices(deployment)
    for number in range(len(held.scan)):
        body = held.read_line(number)["body"]
        line = _line(held, deployment, provider, number, body)
        if line is None:
            continue
        if file is not None:
            file.write(line + b"\n")
        bound = bound_of(prices, sent_body(held, deployment, body))
        count, tokens, cost_nanousd = count + 1, tokens + bound.input + bound.output, cost_nanousd + bound.cost_nanousd
    return count, tokens, cost_nanousd


def _line(held: "Execution", deployment: Deployment, provider: Provider, number: int, body: Mapping[str, Any]) -> bytes | None:
    """The line as the provider gets it; None where it cannot be said to it, and its own route has to answer it."""
    endpoint = held.record.spec.endpoint
    try:
        if endpoint == "/v1/chat/completions":
            check_request(body)
        sent = sent_body(held, deployment, body)
        if body.get("stream") or (endpoint == "/v1/chat/completions" and extras_of(deployment, sent, measure(sent)) is not None):
            return None  # what is billed beside text is reserved for where it is executed here
        return provider.line(deployment, endpoint, held.record.id, number, sent)
    except BulkheadError:
        return None


def sent_body(held: "Execution", deployment: Deployment, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a line with the defaults of its deployment, and a bound of its answer."""
    sent = {**deployment.defaults, **body, "model": deployment.model}
    if held.record.spec.endpoint == "/v1/chat/completions" and output_bound(sent) == 0:
        name, most = assumed_output(deployment)
        sent[name] = most
    return sent


def bound_of(prices: Prices, sent: Mapping[str, Any]) -> Usage:
    """The most that a line can come to."""
    entry, answer = measure(sent).worst(), output_bound(sent)
    return Usage(entry, answer, cost_picousd=prices.bound_nanousd(entry, answer) * PICO_PER_NANO, estimated=True)
