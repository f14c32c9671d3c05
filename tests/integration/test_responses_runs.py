"""Responses and Conversations before a real orchestrator: the openai SDK, threads that go on and branch off, tools, approvals."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import openai
import orjson
import pytest
import pytest_asyncio
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from openai.types.conversations import ConversationItem
from pydantic import TypeAdapter

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.settings import Settings
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import Client, served, settings_for, write_config
from tests.contract.responses_sdk import all_of, finds_nothing

pytestmark = pytest.mark.asyncio(loop_scope="module")
ITEM = TypeAdapter(ConversationItem)
MAIL = 'tool send_mail {"to": "bo"}'


@dataclass
class Front:
    """Two gateways before one orchestrator, and a user of each tenant that is asked for."""

    urls: list[str]
    settings: Settings
    accounts: Accounts
    client: Client
    behind: Fakes
    stack: AsyncExitStack

    async def sdk(self, at: int = 0, **who: Any) -> openai.AsyncOpenAI:
        """The SDK of a user; by default the one of `testing.principal_of`."""
        who = {"tenant": "acme", "user": "ana", "tier": "enterprise", "scopes": ("*",), **who}
        key = (await self.accounts.create_key(**who)).secret
        return await self.stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{self.urls[at]}/v1", api_key=key, max_retries=0))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server, tmp_path_factory):
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        below = settings_for(identities, behind, _state_server, write_config(tmp_path_factory.mktemp("config")))
        client = await stack.enter_async_context(served(below, identities))
        urls = []
        for _ in range(2):
            settings = Settings(
                env="test", http_port=testing.free_port(), metrics_port=0, state_url=_state_server, memory_address="127.0.0.1:1",
                orchestrator_address=f"127.0.0.1:{below.grpc_port}", tool_executor_address="127.0.0.1:1", drain_grace_s=3,
                **identities.settings("gateway"),
            )  # fmt: skip
            await stack.enter_async_context(testing.running(settings, build))
            urls.append(f"http://127.0.0.1:{settings.http_port}")
        state = connect(_state_server)
        stack.push_async_callback(state.aclose)
        yield Front(urls, settings, Accounts(state), client, behind, stack)


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(front):
    yield await front.sdk()
    front.behind.models.gate.open()


def texts(items):
    """(role or type, text or name) of items."""
    return [(item.role, item.content[0].text) if item.type == "message" else (item.type, item.name) for item in items]


async def test_a_run_with_tools_is_the_same_from_every_event_on_and_through_another_gateway(front, sdk):
    asked = 'tools\ntool calculator {"a": 1}\ntool send_mail {"to": "bo"}'
    whole = await all_of(await sdk.responses.create(model="quick", input=asked, stream=True, background=True))
    final = whole[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["mcp_call", "mcp_call", "message"]
    assert [item["status"] for item in final["output"]] == ["completed"] * 3
    assert final["usage"]["output_tokens"] > 0
    other = await front.sdk(1)
    assert (await other.responses.retrieve(final["id"])).to_dict() == final
    for position in range(len(whole) + 1):
        after = {"starting_after": whole[position - 1]["sequence_number"]} if position else {}
        tail = await all_of(await other.responses.retrieve(final["id"], stream=True, **after))
        assert whole[:position] + tail == whole


async def test_it_goes_on_live_through_another_gateway(front, sdk):
    front.behind.models.gate.close()
    stream = await sdk.responses.create(model="quick", input="say one two three four", stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    other = await front.sdk(1)
    tail = await other.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    front.behind.models.gate.open()
    seen += [event async for event in tail]
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "one two three four"
    assert seen[-1].response.output_text == "one two three four"


async def test_a_gateway_that_goes_away_says_where_to_go_on(front, sdk):
    front.behind.models.gate.close()
    seen = []
    async with AsyncExitStack() as stack:
        leaving = front.settings.model_copy(update={"http_port": testing.free_port(), "drain_grace_s": 0.6})
        stop = await stack.enter_async_context(testing.running(leaving, build))
        there = sdk.with_options(base_url=f"http://127.0.0.1:{leaving.http_port}/v1")
        with pytest.raises(openai.APIError) as caught:
            async for event in await there.responses.create(model="quick", input="say one two three four", stream=True):
                seen.append(event)
                if event.type == "response.output_text.delta":
                    stop.set()
    assert (caught.value.code, caught.value.body["code"]) == ("draining", "draining")
    tail = await sdk.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    front.behind.models.gate.open()
    seen += [event async for event in tail]
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "one two three four"


async def test_behind_a_response_its_thread_goes_on_and_branches_off(front, sdk):
    first = await sdk.responses.create(model="helper", input="say one")
    second = await sdk.responses.create(model="helper", input="echo context", previous_response_id=first.id)
    assert second.conversation == first.conversation
    assert second.previous_response_id == first.id
    assert second.output_text == "user:say one|assistant:one|user:echo context"
    branch = await sdk.responses.create(model="helper", input="echo context", previous_response_id=first.id)
    assert branch.conversation != first.conversation
    assert branch.output_text == second.output_text
    further = await sdk.responses.create(model="helper", input="say more", previous_response_id=branch.id)
    assert further.conversation == branch.conversation
    listed = [item async for item in sdk.conversations.items.list(branch.conversation.id, order="asc")]
    assert texts(listed) == [
        ("user", "say one"), ("assistant", "one"), ("user", "echo context"), ("assistant", branch.output_text), ("user", "say more"),
        ("assistant", "more"),
    ]  # fmt: skip


async def test_of_many_at_once_behind_one_response_one_goes_on_and_the_others_branch_off(sdk):
    first = await sdk.responses.create(model="quick", input="say one")
    made = await asyncio.gather(*(sdk.responses.create(model="quick", input=f"say {n}", previous_response_id=first.id) for n in range(4)))
    conversations = [one.conversation.id for one in made]
    assert len(set(conversations)) == 4
    assert conversations.count(first.conversation.id) == 1
    assert [one.output_text for one in made] == ["0", "1", "2", "3"]


async def test_the_same_key_is_the_same_response_wherever_it_went(front, sdk):
    def ask(previous, key):
        headers = {"Idempotency-Key": key}
        return sdk.responses.create(model="quick", input="say two", previous_response_id=previous.id, extra_headers=headers)

    alone = {"model": "quick", "input": "say one", "extra_headers": {"Idempotency-Key": "alone"}}
    first, same = await sdk.responses.create(**alone), await sdk.responses.create(**alone)
    assert first.id == same.id
    going_on, branch = await ask(first, "going-on"), await ask(first, "branch")
    await sdk.responses.create(model="quick", input="say three", previous_response_id=going_on.id)
    assert (await ask(first, "going-on")).id == going_on.id
    assert (await ask(first, "branch")).id == branch.id
    replayed = await sdk.responses.with_raw_response.create(
        model="quick", input="say two", previous_response_id=first.id, extra_headers={"Idempotency-Key": "branch"}
    )
    assert replayed.headers["idempotent-replayed"] == "true"
    assert going_on.conversation != branch.conversation
    with front.client.calling():
        before = len((await front.client.threads.ListThreads(pb.ListThreadsRequest())).threads)
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await sdk.responses.create(
            model="quick", input="say other", previous_response_id=first.id, extra_headers={"Idempotency-Key": "going-on"}
        )
    assert caught.value.code == "idempotency_mismatch"
    with front.client.calling():
        assert len((await front.client.threads.ListThreads(pb.ListThreadsRequest())).threads) == before


async def test_a_response_behind_one_at_work_waits_for_it(front, sdk):
    front.behind.models.gate.close()
    first = await sdk.responses.create(model="quick", input="say one two three", background=True)
    second = await sdk.responses.create(
        model="quick", input="say four", previous_response_id=first.id, background=True, service_tier="flex"
    )
    assert (second.status, second.service_tier) == ("queued", "flex")
    assert (await sdk.responses.retrieve(first.id)).status == "in_progress"
    stream = await sdk.responses.retrieve(second.id, stream=True)
    with pytest.raises(openai.ConflictError) as caught:
        await sdk.responses.create(model="quick", input="say x", previous_response_id=first.id)
    assert caught.value.code == "run_not_ended"
    front.behind.models.gate.open()
    kinds = [event["type"] for event in await all_of(stream)]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert (await sdk.responses.retrieve(first.id)).output_text == "one two three"


async def test_what_is_not_stored_goes_after_a_day(front, sdk):
    first = await sdk.responses.create(model="quick", input="say one", store=False)
    second = await sdk.responses.create(model="quick", input="say two", store=False, previous_response_id=first.id)
    assert first.conversation != second.conversation
    for one in (first, second):
        with front.client.calling():
            thread = (await front.client.threads.GetThread(pb.GetThreadRequest(thread_id=one.conversation.id.removeprefix("conv_")))).thread
        assert 86_000 < thread.expires_at.seconds - one.created_at < 87_000


async def test_an_approval_is_asked_for_and_answered_as_in_openais_api(front, sdk):
    asked = await sdk.responses.create(model="careful", input=MAIL)
    question = asked.output[-1]
    assert (asked.status, question.type, question.name) == ("in_progress", "mcp_approval_request", "send_mail")
    assert orjson.loads(question.arguments) == {"to": "bo"}
    assert asked.model_extra["bulkhead"]["approvals"] == [f"{asked.id.removeprefix('resp_')}/1/0"]
    answer = {"type": "mcp_approval_response", "approval_request_id": question.id, "approve": True}
    done = await sdk.responses.create(model="careful", input=[answer], previous_response_id=asked.id)
    assert (done.id, done.status) == (asked.id, "completed")
    assert [item.type for item in done.output] == ["mcp_approval_request", "mcp_call", "message"]
    assert (done.output[1].approval_request_id, done.output[1].status) == (question.id, "completed")
    assert done.model_extra["bulkhead"]["approvals"] == []
    # As the SDK does by itself where its connection broke off.
    sent = len(front.behind.tools.sent)
    assert (await sdk.responses.create(model="careful", input=[answer], previous_response_id=asked.id)) == done
    assert len(front.behind.tools.sent) == sent
    for other in ({"approve": False}, {"reason": "because"}):
        with pytest.raises(openai.ConflictError) as caught:
            await sdk.responses.create(model="careful", input=[{**answer, **other}], previous_response_id=asked.id)
        assert caught.value.code == "already_decided"
    whole = await all_of(await sdk.responses.retrieve(asked.id, stream=True))
    assert [e["item"]["type"] for e in whole if e["type"] == "response.output_item.done"] == [item.type for item in done.output]


async def test_a_stream_shows_the_question_and_goes_on_with_the_answer(front, sdk):
    stream = await sdk.responses.create(model="careful", input=MAIL, stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_item.done":
            break
    sent = len(front.behind.tools.sent)
    response_id, question = seen[0].response.id, seen[-1].item
    answer = {"type": "mcp_approval_response", "approval_request_id": question.id, "approve": False, "reason": "not today"}
    again = await sdk.responses.create(model="careful", input=[answer], previous_response_id=response_id, stream=True)
    seen += [event async for event in stream]
    told = await all_of(again)
    assert [event["sequence_number"] for event in told] == [event.sequence_number for event in seen]
    assert "not today" in told[-1]["response"]["output"][-1]["content"][0]["text"]
    assert len(front.behind.tools.sent) == sent


async def test_the_question_of_a_workflow_is_asked_in_the_same_way(sdk):
    asked = await sdk.responses.create(model="flow", input="say hello")
    assert orjson.loads(asked.output[-1].arguments)["question"] == "Is it well?"
    answer = {"type": "mcp_approval_response", "approval_request_id": asked.output[-1].id, "approve": True}
    done = await sdk.responses.create(model="flow", input=[answer], previous_response_id=asked.id)
    assert (done.status, done.output_text) == ("completed", "hello")


async def test_answers_to_questions_of_others_are_refused(front, sdk):
    asked = await sdk.responses.create(model="careful", input=MAIL)
    other = await sdk.responses.create(model="careful", input="say hello")
    answer = {"type": "mcp_approval_response", "approval_request_id": asked.output[-1].id, "approve": True}
    with pytest.raises(openai.BadRequestError):
        await sdk.responses.create(model="careful", input=[answer], previous_response_id=other.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model="quick", input=[answer], previous_response_id=asked.id)
    assert caught.value.param == "model"
    stranger = await front.sdk(user="eve")
    with pytest.raises(openai.BadRequestError):
        await stranger.responses.create(model="careful", input=[answer], previous_response_id=asked.id)
    powerless = await front.sdk(scopes=("runs:read", "runs:write"))
    with pytest.raises(openai.PermissionDeniedError):
        await powerless.responses.create(model="careful", input=[answer], previous_response_id=asked.id)
    assert (await sdk.responses.retrieve(asked.id)).status == "in_progress"
    assert (await sdk.responses.cancel(asked.id)).status == "cancelled"


async def test_a_conversation_keeps_what_its_responses_said(front, sdk):
    made = await sdk.conversations.create(metadata={"topic": "tea"})
    assert (await sdk.conversations.retrieve(made.id)).metadata == {"topic": "tea"}
    empty = await sdk.conversations.items.list(made.id)
    assert (empty.data, empty.has_more) == ([], False)
    first = await sdk.responses.create(model="helper", input="say one", conversation=made.id)
    assert first.conversation.id == made.id
    second = await sdk.responses.create(model="helper", input="echo context", conversation={"id": made.id})
    assert second.output_text == "user:say one|assistant:one|user:echo context"
    third = await sdk.responses.create(model="quick", input='tool calculator {"a": 1}', conversation=made.id)
    listed = [item async for item in sdk.conversations.items.list(made.id, order="asc")]
    for item in listed:
        ITEM.validate_python(item.to_dict())
    assert texts(listed) == [
        ("user", "say one"), ("assistant", "one"), ("user", "echo context"), ("assistant", second.output_text),
        ("user", 'tool calculator {"a": 1}'), ("mcp_call", "calculator"), ("assistant", third.output_text),
    ]  # fmt: skip
    for size in (1, 2, 20):
        newest_first = [item.id async for item in sdk.conversations.items.list(made.id, limit=size)]
        assert newest_first == [item.id for item in reversed(listed)]
        assert [item.id async for item in sdk.conversations.items.list(made.id, limit=size, order="asc")] == newest_first[::-1]
    for item in listed:
        assert await sdk.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    for nothing in ("msg_none.0", "x", f"{listed[0].id}9", f"{listed[-1].id}9"):
        with pytest.raises(openai.NotFoundError):
            await sdk.conversations.items.retrieve(nothing, conversation_id=made.id)


async def test_what_was_rolled_back_is_no_part_of_a_conversation(front, sdk):
    made = await sdk.conversations.create()
    first = await sdk.responses.create(model="quick", input="say one", conversation=made.id)
    second = await sdk.responses.create(model="quick", input="say two", conversation=made.id)
    with front.client.calling():
        to = pb.Checkpoint(run_id=first.id.removeprefix("resp_"))
        await front.client.threads.RollbackThread(pb.RollbackThreadRequest(thread_id=made.id.removeprefix("conv_"), to=to))
    assert texts([item async for item in sdk.conversations.items.list(made.id, order="asc")]) == [("user", "say one"), ("assistant", "one")]
    behind = await sdk.responses.create(model="quick", input="say three", previous_response_id=second.id)
    assert behind.conversation.id != made.id


async def test_who_may_not_read_is_told_so_before_anything_begins(front):
    writer = await front.sdk(user="wim", scopes=("runs:write",))
    reader = await front.sdk(user="wim", scopes=("runs:read",))
    for stream in (False, True):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await writer.responses.create(model="quick", input="say one", stream=stream)
        assert "runs:read" in str(caught.value)
    made = await writer.responses.create(model="quick", input="say one", background=True)

    async def ended():
        return (await reader.responses.retrieve(made.id)).output_text == "one"

    await testing.eventually_async(ended, "it has ended")


async def test_what_only_the_orchestrator_refuses_is_named_as_well(sdk):
    for given, told in (([{"role": "user", "content": "x"}] * 513, "at most 512 messages"), ("x" * 600_000, "bytes of text")):
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.responses.create(model="quick", input=given)
        assert (caught.value.param, told in caught.value.body["message"]) == ("input", True)


async def test_conversations_and_responses_are_deleted_with_what_belongs_to_them(front, sdk):
    made, same = [await sdk.conversations.create(extra_headers={"Idempotency-Key": "make-it"}) for _ in range(2)]
    assert made == same
    with pytest.raises(openai.UnprocessableEntityError):
        await sdk.conversations.create(metadata={"other": "body"}, extra_headers={"Idempotency-Key": "make-it"})
    within = await sdk.responses.create(model="quick", input="say one", conversation=made.id)
    with pytest.raises(openai.ConflictError) as caught:
        await sdk.responses.delete(within.id)
    assert (caught.value.code, made.id in str(caught.value)) == ("response_in_conversation", True)
    deleted = await sdk.conversations.delete(made.id)
    assert (deleted.deleted, deleted.object) == (True, "conversation.deleted")
    alone = await sdk.responses.create(model="quick", input="say one")
    behind = await sdk.responses.create(model="quick", input="say two", previous_response_id=alone.id)
    with pytest.raises(openai.ConflictError):
        await sdk.responses.delete(behind.id)
    await sdk.conversations.delete(behind.conversation.id)
    alone_again = await sdk.responses.create(model="quick", input="say one")
    again = {"extra_headers": {"Idempotency-Key": "delete-it"}}
    for _ in range(2):
        await sdk.responses.delete(alone_again.id, **again)
    for response_id in (within.id, alone.id, behind.id, alone_again.id):
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(response_id)
    with pytest.raises(openai.NotFoundError):
        await sdk.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model="quick", input="say x", conversation=made.id)


async def test_of_another_user_or_tenant_nothing_is_found(front, sdk):
    made = await sdk.conversations.create()
    mine = await sdk.responses.create(model="quick", input="say one", conversation=made.id)
    for who in ({"user": "eve"}, {"tenant": "other"}):
        await finds_nothing(await front.sdk(**who), mine)
    assert (await sdk.responses.retrieve(mine.id)).output_text == "one"
