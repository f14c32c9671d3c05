"""A minute of streams of every surface through a proxy that drops connections at random: whoever resumes has the uncut stream."""

import asyncio
import time
import uuid
from contextlib import aclosing

import aiohttp
import openai
import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from services.common import testing
from services.common.accounts import Accounts
from services.gateway.app import build
from services.gateway.settings import Settings
from services.orchestrator.testing.fakes import FakeModels, Fakes, fakes
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.contract.ag_ui_client import Client, parsed
from tests.integration.dropping_proxy import DroppingProxy

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
LASTS_S = 60.0
WORD_S = 0.02  # times the words of TEXT: 2 * dropping_proxy.LIVES_S
TEXT = " ".join(f"w{number}" for number in range(120))
# What a client sees of a connection that is lost.
LOST = (aiohttp.ClientError, openai.APIConnectionError, ConnectionClosed, InvalidMessage, OSError, EOFError)


class Paced(FakeModels):
    """Says one word after the other, so that a run outlives its connections."""

    async def StreamComplete(self, request, context):
        async with aclosing(super().StreamComplete(request, context)) as answers:
            async for answer in answers:
                if answer.HasField("text_delta"):
                    await asyncio.sleep(WORD_S)
                yield answer


def says(request: llm_pb2.CompletionInput) -> llm_pb2.Message:
    """A tool first, and then many words."""
    if request.messages[-1].role == "user":
        call = llm_pb2.ToolCall(tool_call_id="c0", name="calculator", arguments_json=b'{"a":1}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    return llm_pb2.Message(role="assistant", text=TEXT)


class Front:
    """The gateway, the way to it that drops, and a user of both."""

    def __init__(self, url, proxy, key):
        self.url, self.proxy, self.key = url, proxy, key
        self.headers = {"authorization": f"Bearer {key}"}

    def sdk(self, url):
        return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=self.key, max_retries=0)


@pytest.fixture
async def front(identities, state_url, tmp_path, valkey):
    made = Fakes(models=Paced())
    made.models.reply = says
    key = (await Accounts(valkey).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
    async with fakes(identities, made=made):
        below = settings_for(identities, made, state_url, write_config(tmp_path / "config"))
        settings = Settings(
            env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, memory_address="127.0.0.1:1",
            orchestrator_address=f"127.0.0.1:{below.grpc_port}", tool_executor_address="127.0.0.1:1", drain_grace_s=3,
            **identities.settings("gateway"),
        )  # fmt: skip
        proxy = DroppingProxy(settings.http_port, seed=11)
        async with served(below, identities), testing.running(settings, build), proxy.serving():
            yield Front(f"http://127.0.0.1:{settings.http_port}", proxy, key)


async def until_it_comes_through(attempt):
    """What `attempt` answers, which is made again while connections are lost."""
    async with asyncio.timeout(testing.PATIENCE_S):
        while True:
            try:
                return await attempt()
            except LOST:
                await asyncio.sleep(0.02)


async def native(front):
    """Server-sent events, resumed after the last id."""
    run_id, seen = f"n{uuid.uuid4().hex}", []
    async with aiohttp.ClientSession(headers=front.headers) as http:

        async def start():
            body, headers = {"run_id": run_id, "input": "x", "agent": "quick"}, {"idempotency-key": run_id}
            async with http.post(f"{front.proxy.url}/v1/threads/{run_id}/runs", json=body, headers=headers) as answer:
                assert answer.status in (200, 202), await answer.text()
                await answer.read()

        async def follow():
            headers = {"last-event-id": str(seen[-1][0])} if seen else {}
            async with http.get(f"{front.proxy.url}/v1/runs/{run_id}/events", headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                async for frame in frames(answer):
                    seen.append(frame)

        await until_it_comes_through(start)
        await until_it_comes_through(follow)
        async with http.get(f"{front.url}/v1/runs/{run_id}/events") as answer:
            whole = [frame async for frame in frames(answer)]
    assert seen == whole
    assert whole[-1][1] == "run_finished"


async def frames(answer):
    """(id, type, data) of each event as it comes whole; one that is cut is none."""
    rest = b""
    async for piece in answer.content.iter_any():
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if line and not line.startswith(b":"))
            if b"data" in fields:
                yield int(fields[b"id"]), fields[b"event"].decode(), orjson.loads(fields[b"data"])


async def responses(front):
    """The SDK's stream, resumed with `starting_after`."""
    key, seen = uuid.uuid4().hex, []
    async with front.sdk(front.proxy.url) as sdk, front.sdk(front.url) as direct:

        async def follow():
            if seen:
                answer = await sdk.responses.retrieve(seen[0]["response"]["id"], stream=True, starting_after=seen[-1]["sequence_number"])
            else:
                headers = {"idempotency-key": key}
                answer = await sdk.responses.create(model="quick", input="x", stream=True, background=True, extra_headers=headers)
            async with answer:
                async for event in answer:
                    seen.append(event.to_dict())
            # The SDK takes a stream that is cut between two events for one that has ended.
            if seen and seen[-1]["type"] != "response.completed":
                raise ConnectionResetError

        await until_it_comes_through(follow)
        whole = [event.to_dict() async for event in await direct.responses.retrieve(seen[0]["response"]["id"], stream=True)]
    assert [without_background(event) for event in seen] == [without_background(event) for event in whole]


def without_background(event):
    """What was asked for beside the run is told by the stream of the request alone."""
    if "response" not in event:
        return event
    return {**event, "response": {name: value for name, value in event["response"].items() if name != "background"}}


async def ag_ui(front):
    """The request again, whose stream begins with what there is."""
    run_id = f"a{uuid.uuid4().hex}"
    body = {"threadId": run_id, "runId": run_id, "messages": [{"id": "u", "role": "user", "content": "x"}]}

    async def follow(url):
        client = Client(body["messages"])
        async with aiohttp.ClientSession(headers=front.headers) as http, http.post(f"{url}/ag-ui/quick", json=body) as answer:
            assert answer.status == 200, await answer.text()
            events = parsed(await answer.read())
        client.take(events)
        if not client.outcome:
            raise ConnectionResetError
        return client

    ended = await until_it_comes_through(lambda: follow(front.proxy.url))
    whole = await follow(front.url)
    assert (ended.messages, ended.outcome) == (whole.messages, "success")
    assert ended.answer == TEXT


async def websocket(front):
    """The same two commands again, from the cursor on."""
    run_id, seen, ended = f"w{uuid.uuid4().hex}", [], []

    async def follow():
        url = front.proxy.url.replace("http", "ws") + "/ws"
        async with ws_connect(url, additional_headers=front.headers, proxy=None) as socket:
            start = {"thread_id": run_id, "agent": "quick", "input": "x", "run_id": run_id, "idempotency_key": run_id}
            await socket.send(orjson.dumps({"id": "s", "type": "start", **start}).decode())
            await socket.send(
                orjson.dumps({"id": "w", "type": "watch", "run_id": run_id, "after": seen[-1]["seq"] if seen else 0}).decode()
            )
            async for text in socket:
                message = orjson.loads(text)
                assert message["type"] != "error", message
                if message["type"] == "event":
                    seen.append(message["event"])
                if message["type"] == "watch_ended":
                    ended.append(message["reason"])
                    return
        raise ConnectionResetError

    await until_it_comes_through(follow)
    async with aiohttp.ClientSession(headers=front.headers) as http, http.get(f"{front.url}/v1/runs/{run_id}/events") as answer:
        whole = [data async for _, _, data in frames(answer)]
    assert seen == whole
    assert ended == ["finished"]


async def test_what_was_resumed_is_what_was_not_cut(front):
    until, made = time.monotonic() + LASTS_S, {}

    async def again_and_again(kind):
        while time.monotonic() < until:
            await kind(front)
            made[kind.__name__] = made.get(kind.__name__, 0) + 1

    async with asyncio.TaskGroup() as group:
        for kind in (native, responses, ag_ui, websocket):
            group.create_task(again_and_again(kind))
    assert set(made) == {"native", "responses", "ag_ui", "websocket"}
    # However fast this machine is: a run speaks for twice as long as a connection can live, so that each was cut twice at least.
    assert front.proxy.drops >= 2 * sum(made.values()), (front.proxy.drops, made)
