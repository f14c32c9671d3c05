"""gRPC and HTTP ask the same of the gateway and tell the same of an answer: what one of them learns, the other must."""

import dataclasses
from decimal import ROUND_CEILING, Decimal
from types import SimpleNamespace

import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2
from google.protobuf.duration_pb2 import Duration

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.answers import answer_headers
from services.llm_gateway.model_port.terms import terms_of as http_terms
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import LimitState
from services.llm_gateway.proto_answers import outcome_message
from services.llm_gateway.proto_chat import chat_call
from services.llm_gateway.proto_chat import terms_of as grpc_terms
from services.llm_gateway.results import Notice, Outcome, Timing
from services.llm_gateway.terms import CacheTerms, Terms

HELLO = [llm_pb2.Message(role="user", text="hello")]
CACHE = llm_pb2.CacheControl(
    no_cache=True, no_store=True, max_age=Duration(seconds=7), ttl=Duration(seconds=8), semantic=True, importance=0.5,
    stale_if_error=Duration(seconds=6),
)  # fmt: skip
HEADERS = {
    "x-bulkhead-cache-control": "no-cache, no-store, max-age=7, ttl=8, stale-if-error=6",
    "x-bulkhead-semantic-cache": "0.5",
    "x-bulkhead-max-cost-microusd": "9",
    "idempotency-key": "k-1",
}
TERMS = {"cache": CACHE, "max_cost_microusd": 9, "finish_unattended": True}
OUTCOME = Outcome(
    deployment=SimpleNamespace(id="d-1", group="main", provider="openai"),
    usage=Usage(11, 7, 3, 2, 123_456_789, True, 4),
    finish_reason="stop",
    response_id="r-1",
    provider_model="m-1",
    attempts=3,
    retries=1,
    fallbacks=2,
    cached="stale",
    timing=Timing(0.011, 0.022, 0.033, 0.044),
    limits=(LimitState("requests", 60, 59, 1.5), LimitState("tokens", 1000, 900, 6.0)),
    upstream_headers={"x-request-id": "req-1", "x-ratelimit-limit-requests": "500"},
    routing={"tier": "simple"},
)


def test_every_term_of_a_call_can_be_set_over_both():
    over_http = http_terms(HEADERS)
    for request in (llm_pb2.CompletionInput(**TERMS), llm_pb2.EmbedRequest(**TERMS), llm_pb2.RerankRequest(**TERMS)):
        assert grpc_terms(request, "k-1") == over_http
    more = {"run_id": "run_1", "run_budget_microusd": 5, "low_priority": True, "arm": "b"}
    terms = chat_call(llm_pb2.CompletionInput(messages=HELLO, **TERMS, **more), stream=False, idempotency_key="k-1").terms
    # What a batch is charged is no caller's choice.
    unset = {field.name for field in dataclasses.fields(Terms) if getattr(terms, field.name) == getattr(Terms(), field.name)}
    assert unset == {"discounted"}
    assert not [f.name for f in dataclasses.fields(CacheTerms) if getattr(terms.cache, f.name) == getattr(CacheTerms(), f.name)]


@pytest.mark.parametrize(
    ("fields", "key"), [({}, "x" * 256), ({}, "a\nb"), ({"finish_unattended": True}, ""), ({"max_cost_microusd": -1}, "")]
)
def test_terms_that_cannot_be_are_refused(fields, key):
    with pytest.raises(InvalidInput):
        grpc_terms(llm_pb2.CompletionInput(**fields), key)


def test_what_headers_tell_of_an_answer_stands_in_its_outcome():
    made = outcome_message(OUTCOME, [Notice("model_retry", "Again.")])
    headers = {name.decode(): value.decode() for name, value in answer_headers(OUTCOME, 0.0, [Notice("model_retry", "Again.")])}
    timing = {name: float(value) for name, value in (part.split(";dur=") for part in headers.pop("server-timing").split(", "))}
    assert timing.pop("overhead") > 0  # what is left of the caller's own time
    assert timing == {name: getattr(made.timing, f"{name}_us") / 1000 for name in timing}
    assert headers.pop("openai-processing-ms")  # a caller has a clock
    told = {
        "x-litellm-model-id": made.deployment_id,
        "x-litellm-model-group": made.model,
        "x-litellm-attempted-retries": str(made.retries),
        "x-litellm-attempted-fallbacks": str(made.fallbacks),
        "x-bulkhead-cache": made.cached,
        "x-bulkhead-routing": made.routing_json.decode(),
        "x-bulkhead-warnings": ", ".join(warning.code for warning in made.warnings),
        **{f"llm_provider-{name}": value for name, value in made.upstream_headers.items()},
    }
    for limit in made.limits:
        told[f"x-ratelimit-limit-{limit.kind}"] = str(limit.limit)
        told[f"x-ratelimit-remaining-{limit.kind}"] = str(limit.remaining)
        told[f"x-ratelimit-reset-{limit.kind}"] = f"{limit.reset_after.ToNanoseconds() / 1e9:.3g}s"
    cost = Decimal(headers.pop("x-litellm-response-cost")) * 10**9
    assert cost.to_integral_value(ROUND_CEILING) == made.cost_nanousd
    assert headers == told


def test_no_part_of_an_outcome_is_left_out():
    made, plain = outcome_message(OUTCOME, []), outcome_message(dataclasses.replace(OUTCOME, usage=Usage()), [])
    assert {field.name for field, _ in made.ListFields()} == {field.name for field in made.DESCRIPTOR.fields} - {"warnings"}
    # Each part of an outcome changes the message.
    for field in dataclasses.fields(Outcome):
        empty = {"deployment": SimpleNamespace(id="", group="", provider=""), "usage": Usage(), "timing": Timing(), "limits": ()}
        other = empty.get(field.name, type(getattr(OUTCOME, field.name))())
        assert outcome_message(dataclasses.replace(OUTCOME, **{field.name: other}), []) != made, field.name
    for field in dataclasses.fields(Usage):
        usage = dataclasses.replace(Usage(), **{field.name: 10**9})
        assert outcome_message(dataclasses.replace(OUTCOME, usage=usage), []) != plain, field.name
    assert orjson.loads(made.routing_json) == OUTCOME.routing
