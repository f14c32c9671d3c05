"""Providers that do what no simulator does, and what every provider is sent."""

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from bulkhead.llm.v1 import llm_pb2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common import testing
from services.common.errors import BulkheadError, UpstreamFailed
from services.common.rpc import context as call_context


def one_model(deployment, url: str, **params):
    file = {"model_list": [deployment("main", "m-1", f"{url}/v1", **params)]}
    file["model_list"][0]["model_info"]["simulated"] = False
    return file


async def complete(stack, ask, **fields):
    with testing.calling(stack.identities, timeout_s=20):
        return await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask("hi", **fields)))


async def stream(stack, ask, **fields):
    """Text, finished (None without), error."""
    text, finished, error = "", None, None
    try:
        with testing.calling(stack.identities, timeout_s=20):
            async for event in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=ask("hi", **fields))):
                text += event.text_delta.text
                if event.HasField("finished"):
                    finished = event.finished
    except BulkheadError as caught:
        error = caught
    return text, finished, error


async def test_a_field_that_was_not_sent_is_not_invented(serve, deployment, provider, wire, ask):
    made = await provider(lambda n, r: wire.answer(wire.completion()))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        await complete(stack, ask)
        await complete(stack, ask, temperature=0.0, max_tokens=5, extra_json=b'{"seed": 7, "vendor_option": {"a": [1]}}')
    bare, full = made.received[0].body, made.received[1].body
    # The bound that the reserve assumed is the one exception.
    assert bare == {"model": "m-1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2_000}
    assert full == {**bare, "temperature": 0.0, "max_tokens": 5, "seed": 7, "vendor_option": {"a": [1]}}
    assert made.received[0].path == "/v1/chat/completions"


async def test_defaults_of_the_configuration_yield_to_the_caller(serve, deployment, provider, wire, ask):
    made = await provider(lambda n, r: wire.answer(wire.completion()))
    async with serve(
        one_model(deployment, made.url, temperature=0.3, api_key="provider-key", extra_headers={"X-Team": "a"}), port=False
    ) as stack:
        await complete(stack, ask)
        await complete(stack, ask, temperature=0.9)
    assert [r.body["temperature"] for r in made.received] == [0.3, 0.9]
    assert made.received[0].headers["authorization"] == "Bearer provider-key"
    assert made.received[0].headers["x-team"] == "a"


async def test_the_hop_carries_canary_request_id_and_trace_and_nothing_else_of_the_caller(
    serve, deployment, provider, wire, ask, identities
):
    made = await provider(lambda n, r: wire.answer(wire.completion()))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        with testing.calling(identities, canary=True):
            sent = call_context.current().request_id
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask("hi")))
        with testing.calling(identities, canary=False):
            await stack.llm.Complete(llm_pb2.CompleteRequest(input=ask("hi")))
    first, second = (r.headers for r in made.received)
    assert (first["x-canary"], first["x-request-id"]) == ("true", sent)
    assert "x-canary" not in second
    assert "authorization" not in first


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # A whole answer in odd clothes.
        ([b"\xef\xbb\xbf: hello\r\n\r\n", {"choices": []}, "a", "b", "finish"], "ab"),
        ([b"event: ping\ndata: {}\n\n", "a", "finish", b"data: [DONE]\n\n", "after"], "a"),
        ([{"choices": None}, "a", "finish"], "a"),
        (["a", "finish", {"choices": [], "usage": None}], "a"),
        (["a", "finish", b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'], "a"),
    ],
)
async def test_odd_streams_that_are_whole(serve, deployment, provider, wire, ask, events, expected):
    raw = [wire.delta(e) if isinstance(e, str) and e != "finish" else wire.delta(finish="stop") if e == "finish" else e for e in events]
    made = await provider(lambda n, r: wire.answer(wire.events(*raw), content_type="text/event-stream"))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        text, finished, error = await stream(stack, ask)
    assert (text, error) == (expected, None)
    assert finished.outcome.finish_reason == "stop"
    assert made.connections == 1


@pytest.mark.parametrize(
    ("answer", "failure_class"),
    [
        (lambda w: w.answer(b"", content_type="text/event-stream"), "malformed"),
        (lambda w: w.answer(b"<html>login</html>", content_type="text/html"), "malformed"),
        (lambda w: w.answer(w.completion()), "malformed"),  # a whole body where a stream was asked for
        (lambda w: w.answer(w.events(w.delta("a"), b"data: [DONE]\n\n"), content_type="text/event-stream"), "cut"),
        (
            lambda w: w.answer(w.events(w.delta("a"), b"data: {broken\n\n", b"data: {broken\n\n"), content_type="text/event-stream"),
            "malformed",
        ),
        (lambda w: w.answer(w.events(w.delta("a")), content_type="text/event-stream") + w.RESET, "cut"),
        (lambda w: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n" + w.events(w.delta("a")), "cut"),
        (lambda w: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "transient|cut|malformed"),
        (lambda w: b"not http at all\r\n\r\n", "transient"),
        (lambda w: b"", "transient"),
        (
            lambda w: w.answer(
                w.events(w.delta(role="assistant"), {"error": {"code": "model_not_found"}}), content_type="text/event-stream"
            ),
            "model_gone",
        ),
    ],
)
async def test_streams_that_are_not_whole_are_errors(serve, deployment, provider, wire, ask, answer, failure_class):
    made = await provider(lambda n, r: answer(wire))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        _, finished, error = await stream(stack, ask)
    assert finished is None
    assert isinstance(error, UpstreamFailed)
    assert error.metadata["failure_class"] in failure_class.split("|")
    assert made.connections <= 4


@pytest.mark.parametrize(
    ("answer", "failure_class"),
    [
        (lambda w: w.answer(b"<html>"), "malformed"),
        (lambda w: w.answer({"choices": [{"message": {"content": "a"}}]}), "malformed"),  # no finish_reason
        (lambda w: w.answer({"choices": [{"message": "a", "finish_reason": "stop"}]}), "malformed"),
        (lambda w: w.answer({"choices": []}), "malformed"),
        (lambda w: w.answer([]), "malformed"),
        (lambda w: w.answer(b"\xff\xfe"), "malformed"),
        (lambda w: w.answer({"error": {"code": 401, "message": "no"}}), "credential"),
        (lambda w: w.answer(w.completion())[:-20], "cut"),
        (lambda w: w.answer(w.completion(), status=204), "transient|cut|malformed"),
        (lambda w: w.answer(w.completion(), status=302, location="http://127.0.0.1:1/"), "unknown"),
    ],
)
async def test_bodies_that_are_no_completion_are_errors(serve, deployment, provider, wire, ask, answer, failure_class):
    made = await provider(lambda n, r: answer(wire))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        with pytest.raises(UpstreamFailed) as caught:
            await complete(stack, ask)
    assert caught.value.metadata["failure_class"] in failure_class.split("|")
    assert made.connections <= 4


async def test_an_error_behind_a_first_event_without_content_is_still_a_status(serve, deployment, provider, wire):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    first, second = wire.events(wire.delta(content="", role="assistant")), wire.events({"error": {"code": "model_not_found"}})
    made = await provider(lambda n, r: head + first + wire.PAUSE + second)
    async with serve(one_model(deployment, made.url)) as stack:
        body = {"model": "main", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        status, answer, _ = await stack.post("/v1/chat/completions", body)
    assert (status, answer["error"]["failure_class"]) == (502, "model_gone")


async def test_a_broken_stream_whose_repeat_differs_ends_with_an_error_and_never_mixes_answers(serve, deployment, provider, wire, ask):
    answers = [wire.events(wire.delta("Hello wor")), wire.events(wire.delta("Hello there"), wire.delta(finish="stop"))]
    made = await provider(lambda n, r: wire.answer(answers[n - 1], content_type="text/event-stream"))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        text, finished, error = await stream(stack, ask)
    assert (text, finished) == ("Hello wor", None)
    assert isinstance(error, UpstreamFailed)
    assert error.metadata["failure_class"] == "cut"
    assert made.connections == 2


async def test_a_tool_call_that_was_cut_in_half_is_an_error(serve, deployment, provider, wire, ask):
    call = wire.delta(tool_calls=[{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a'}}])
    made = await provider(lambda n, r: wire.answer(wire.events(call), content_type="text/event-stream"))
    async with serve(one_model(deployment, made.url), port=False) as stack:
        _, finished, error = await stream(stack, ask)
    assert finished is None
    assert error.metadata["failure_class"] == "cut"
    assert made.connections == 1


@pytest.mark.parametrize("mode", ["unary", "stream"])
async def test_a_caller_that_leaves_closes_the_connection_to_the_provider(serve, deployment, provider, ask, mode):
    made = await provider(lambda n, r: None)
    async with serve(one_model(deployment, made.url), port=False, model_first_token_timeout_s=60.0) as stack:
        task = asyncio.create_task(complete(stack, ask) if mode == "unary" else stream(stack, ask))
        await testing.eventually_async(lambda: made.received, "the provider is asked")
        task.cancel()
        await asyncio.wait_for(made.gone.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("mode", ["unary", "stream"])
@pytest.mark.parametrize("base", ["http://127.0.0.1:{free}/v1", "http://nowhere.invalid/v1"])
async def test_a_provider_that_cannot_be_reached_is_replaced(serve, sim, models, ask, mode, base):
    file = models(sim.url)
    file["model_list"][0]["litellm_params"]["api_base"] = base.format(free=testing.free_port())
    async with serve(file, port=False) as stack:
        outcome = (await complete(stack, ask)).outcome if mode == "unary" else (await stream(stack, ask))[1].outcome
        assert (outcome.model, outcome.attempts) == ("backup", 5)


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    certificate = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


async def test_a_certificate_that_nobody_trusts_is_no_reason_to_go_on_knocking(serve, sim, models, ask, tmp_path):
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=self_signed(tmp_path))
    file = models(sim.url)
    file["model_list"][0]["litellm_params"]["api_base"] = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
    async with server, serve(file, port=False) as stack:
        outcome = (await complete(stack, ask)).outcome
        assert (outcome.model, outcome.attempts) == ("backup", 2)


async def test_two_deployments_of_a_group_share_the_load_and_cover_for_each_other(serve, deployment, provider, wire, ask):
    good = await provider(lambda n, r: wire.answer(wire.completion("good")))
    bad = await provider(lambda n, r: wire.answer({"error": {"message": "x"}}, status=500))
    entries = [deployment("main", "m-1", f"{good.url}/v1"), deployment("main", "m-1", f"{bad.url}/v1")]
    async with serve({"model_list": entries}, port=False) as stack:
        answers = [await complete(stack, ask) for _ in range(20)]
    assert {answer.message.text for answer in answers} == {"good"}
    assert len(good.received) == 20
    assert 0 < len(bad.received) < 20
    assert sum(answer.outcome.attempts for answer in answers) == 20 + len(bad.received)


async def test_embeddings_of_a_provider_come_as_numbers_or_base64(serve, provider, wire):
    entries = [{"index": 1, "embedding": "AACAPwAAAEA="}, {"index": 0, "embedding": [0.5, 0.25]}]
    body = {"object": "list", "data": entries, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    made = await provider(lambda n, r: wire.answer(body))
    entry = {"model_name": "e", "litellm_params": {"model": "openai/e-1", "api_base": f"{made.url}/v1"},
             "model_info": {"mode": "embedding", "input_cost_per_token": 0.00000002}}  # fmt: skip
    async with serve({"model_list": [entry]}, port=False) as stack:
        with testing.calling(stack.identities):
            answer = await stack.embedder.Embed(llm_pb2.EmbedRequest(texts=["a", "b"]))
    assert [list(e.values) for e in answer.embeddings] == [[0.5, 0.25], [1.0, 2.0]]
    assert (answer.dimension, answer.usage.input_tokens, answer.usage.cost_microusd) == (2, 4, 1)
    assert made.received[0].body == {"model": "e-1", "input": ["a", "b"]}
