"""Interrupts over AG-UI before a real orchestrator with a real tool executor behind it: a run pauses, and what people say resumes it."""

import asyncio
import uuid

import pytest

from services.common import testing
from tests.contract.ag_ui_client import Client, checked, parsed
from tests.integration import short_tokens
from tests.integration.approvals import call, desk
from tests.integration.real_gateway import answered, gateway_before


@pytest.fixture
async def real(identities, state_url, tmp_path):
    async with desk(identities, state_url, tmp_path) as made, gateway_before(identities, state_url, made.settings.grpc_port) as people:
        yield made, people


class FrontEnd:
    """One conversation with one agent."""

    def __init__(self, http, agent):
        self.http, self.agent = http, agent
        self.thread_id = f"t-{uuid.uuid4().hex}"
        self.client = Client()

    def body(self, run_id, **more):
        return {"threadId": self.thread_id, "runId": run_id, "messages": self.client.messages, "state": self.client.state, **more}

    async def post(self, body):
        async with self.http.post(f"/ag-ui/{self.agent}", json=body) as response:
            assert response.status == 200, await response.text()
            return checked(parsed(await response.read()))

    async def say(self, run_id, text):
        self.client.messages.append({"id": uuid.uuid4().hex, "role": "user", "content": text})
        body = self.body(run_id)
        self.client.take(events := await self.post(body))
        return body, events

    async def resume(self, run_id, *entries):
        body = self.body(run_id, resume=list(entries))
        self.client.take(events := await self.post(body))
        return body, events

    async def refused(self, status, body):
        error = await answered(self.http.post(f"/ag-ui/{self.agent}", json=body), status)
        assert error["type"] == "RUN_ERROR"
        return error["code"], error["metadata"]["bulkhead"]


def yes(interrupt, **more):
    return {"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": True, **more}}


def no(interrupt, reason):
    return {"interruptId": interrupt["id"], "status": "resolved", "payload": {"approved": False, "reason": reason}}


def kinds(events):
    return [event["type"] for event in events]


async def test_a_call_waits_is_approved_with_other_arguments_and_made_once(real):
    made, people = real
    front = FrontEnd(await people.session(), "careful")
    asked, events = await front.say("r-1", call(("wipe", {"n": 1}), ("look", {})))
    assert kinds(events)[-3:] == ["STATE_SNAPSHOT", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert front.client.outcome == "interrupt"
    (interrupt,) = front.client.interrupts
    assert (interrupt["id"], interrupt["reason"], made.sent()) == ("r-1/1/0", "tool_call", [])
    proposed = {one["id"]: one["function"] for message in front.client.messages for one in message.get("toolCalls", ())}
    assert proposed[interrupt["toolCallId"]] == {"name": "wipe", "arguments": '{"n":1}'}
    assert interrupt["responseSchema"]["properties"]["editedArgs"]["type"] == "object"
    # Whatever else is called in the step goes on, and its result is there.
    assert [message["role"] for message in front.client.messages] == ["user", "assistant", "tool"]
    # Asked for again it still waits, and says the same.
    again = await front.post(front.body("r-1"))
    assert (kinds(again)[1], again[-1]["outcome"]) == ("MESSAGES_SNAPSHOT", events[-1]["outcome"])
    # Nothing else is begun on the thread, and nobody's question is left out.
    code, more = await front.refused(
        409, {**front.body("r-other"), "messages": [*front.client.messages, {"id": "u", "role": "user", "content": "hi"}]}
    )
    assert (code, more["run_id"]) == ("INTERRUPTS_OPEN", "r-1")
    answer = yes(
        interrupt, editedArgs={"n": 2}, reason="two will do", argumentsDigest=interrupt["metadata"]["bulkhead"]["arguments_digest"]
    )
    changed = yes(interrupt, argumentsDigest="0" * 64)
    assert (await front.refused(409, front.body("r-2", resume=[changed])))[0] == "ARGUMENTS_CHANGED"
    used = events[-1]["usage"]
    body, events = await front.resume("r-2", answer)
    assert kinds(events)[:3] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "STATE_SNAPSHOT"]
    assert (events[0]["runId"], events[-1]["runId"], front.client.outcome) == ("r-2", "r-2", "success")
    # The call is not proposed again: its result belongs to the one that was.
    assert "TOOL_CALL_START" not in kinds(events)
    # Each of the two tells of its own model call.
    whole = (await made.client.get("r-1")).usage
    assert sum(one["totalTokens"] for one in [*used, *events[-1]["usage"]]) == whole.input_tokens + whole.output_tokens
    results = [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert (results, made.sent()) == ([interrupt["toolCallId"]], [{"n": 2}])
    assert [message["role"] for message in front.client.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    # The same answer may be sent again, and changes nothing; another comes too late.
    for repeated in (body, front.body("r-3", resume=[answer])):
        back = await front.post(repeated)
        # Wherever the first answer was cut off.
        for cut in range(len(events) + 1):
            client = Client(body["messages"], body["state"]).take(events[:cut]).take(back)
            assert (client.messages, client.state, client.outcome) == (front.client.messages, front.client.state, "success")
    assert made.sent() == [{"n": 2}]
    for other in (no(interrupt, "no"), yes(interrupt), yes(interrupt, editedArgs={"n": 3})):
        code, more = await front.refused(409, front.body("r-4", resume=[other]))
        assert (code, more["verb"], more["decided_by"]) == ("ALREADY_DECIDED", "edit", "ana")
    # The run of before is one with the run that went on: nothing waits any more.
    whole = Client(asked["messages"]).take(await front.post(asked))
    assert (whole.messages, whole.outcome) == (front.client.messages, "success")


@pytest.mark.system
async def test_a_run_may_ask_long_after_the_token_of_its_request_has_ended(real, identities, monkeypatch):
    made, people = real
    front = FrontEnd(await people.session(), "careful")
    short_tokens.shorten(monkeypatch, identities)
    made.behind.models.gate.close()
    asking = asyncio.ensure_future(front.say("r-1", call(("wipe", {"n": 1}))))

    async def held():
        return made.behind.models.gate.waiting

    await testing.eventually_async(held, "the run is at work")
    await short_tokens.ended(identities)
    made.behind.models.gate.open()
    await asking
    assert front.client.outcome == "interrupt"


async def test_two_questions_are_answered_together_or_not_at_all(real):
    made, people = real
    front = FrontEnd(await people.session(), "careful")
    await front.say("r-1", call(("wipe", {"n": 1}), ("fire", {"n": 2})))
    first, second = front.client.interrupts
    code, _ = await front.refused(409, front.body("r-2", resume=[yes(first)]))
    assert code == "INTERRUPTS_OPEN"
    left = {"interruptId": second["id"], "status": "cancelled"}
    _, events = await front.resume("r-3", yes(first), left)
    assert (made.sent(), made.sent("/fire"), front.client.outcome) == ([{"n": 1}], [], "success")
    results = [event["content"] for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert any("left it unanswered" in content for content in results)


async def test_somebody_else_answers_and_the_one_who_watches_goes_on(real):
    made, people = real
    ana = await people.session()
    front = FrontEnd(ana, "careful")
    await front.say("r-1", call(("wipe", {"n": 1})))
    (interrupt,) = front.client.interrupts
    await answered(ana.post(f"/v1/approvals/{interrupt['id']}/decision", json={"verb": "reject", "reason": "not today"}), 200)
    client = Client().take(await front.post({**front.body("r-1"), "messages": []}))
    assert (client.outcome, made.sent()) == ("success", [])
    # Who comes with nothing is told what was asked, too.
    assert [message["role"] for message in client.messages] == ["user", "assistant", "tool", "assistant"]
    assert "not today" in client.answer


async def test_what_became_of_a_call_is_told_by_a_person(real):
    made, people = real
    made.outside.answers["/once"] = ["drop"]
    front = FrontEnd(await people.session(), "careful")
    await front.say("r-1", call(("once", {"n": 1})))
    (interrupt,) = front.client.interrupts
    assert interrupt["reason"] == "bulkhead:outcome_unknown"
    entry = {"interruptId": interrupt["id"], "status": "resolved"}
    for payload, field in (
        ({"outcome": "maybe"}, "resume[0].payload.outcome"),
        ({"outcome": "failed", "result": 1}, "resume[0].payload.result"),
        ({"approved": True}, "resume[0].payload.approved"),
    ):
        _, more = await front.refused(422, front.body("r-2", resume=[{**entry, "payload": payload}]))
        assert more["errors"][0]["field"] == field
    await front.resume("r-2", {**entry, "payload": {"outcome": "done", "result": {"number": 7}}})
    assert '{"number":7}' in front.client.answer
    assert len(made.sent("/once")) == 1


async def test_answers_that_are_none_and_those_who_may_not_answer(real):
    made, people = real
    front = FrontEnd(await people.session(), "led")
    await front.say("r-1", call(("wipe", {"n": 3})))
    (interrupt,) = front.client.interrupts
    for entry, field in (
        ({**yes(interrupt), "interruptId": "r-1/9/9"}, "resume[0].interruptId"),
        ({**yes(interrupt), "interruptId": "r-none/1/0"}, "resume[0].interruptId"),
        *(({**yes(interrupt), "interruptId": of_none}, "resume[0].interruptId") for of_none in ("a b/1/0", "/1/0", "../1/0", "r-1")),
        (yes(interrupt, approved="yes"), "resume[0].payload.approved"),
        (yes(interrupt, surprise=1), "resume[0].payload.surprise"),
        (yes(interrupt, approved=False, editedArgs={}), "resume[0].payload.editedArgs"),
    ):
        _, more = await front.refused(422, front.body("r-2", resume=[entry]))
        assert more["errors"][0]["field"] == field
    late = {"id": "u2", "role": "user", "content": "and this"}
    _, more = await front.refused(422, {**front.body("r-2", resume=[yes(interrupt)]), "messages": [*front.client.messages, late]})
    assert more["errors"][0]["field"].startswith("messages[")
    assert (await front.refused(403, front.body("r-2", resume=[yes(interrupt)])))[0] == "NOT_AN_APPROVER"
    # Who may answer need not be who asked, and another tenant's people see nothing of it.
    stranger = FrontEnd(await people.session(tenant="globex"), "led")
    stranger.thread_id = front.thread_id
    assert (await stranger.refused(422, stranger.body("r-2", resume=[yes(interrupt)])))[1]["errors"][0]["field"] == "resume[0].interruptId"
    bo = await people.session("bo")
    one = await answered(bo.get(f"/v1/approvals/{interrupt['id']}"), 200)
    assert one["state"] == "open"
    assert made.sent() == []


async def test_two_people_have_to_approve_and_the_run_says_so_until_they_have(real):
    made, people = real
    front = FrontEnd(await people.session(), "paired")
    await front.say("r-1", call(("wipe", {"n": 4})))
    (interrupt,) = front.client.interrupts
    for user in ("bo", "cy"):
        await answered((await people.session(user)).post(f"/v1/approvals/{interrupt['id']}/decision", json={"verb": "approve"}), 200)
        if user == "bo":
            events = await front.post(front.body("r-1"))
            assert [one["id"] for one in events[-1]["outcome"]["interrupts"]] == [interrupt["id"]]
    await made.client.wait("r-1")
    assert made.sent() == [{"n": 4}]


async def test_a_run_that_waits_is_left_and_cancelled(real):
    made, people = real
    ana = await people.session()
    front = FrontEnd(ana, "careful")
    await front.say("r-1", call(("wipe", {"n": 1})))
    await answered(ana.post("/v1/runs/r-1/cancel?wait=true"), 200)
    client = Client().take(await front.post(front.body("r-1")))
    assert client.outcome == "cancelled"
    assert (await front.refused(409, front.body("r-2", resume=[yes(front.client.interrupts[0])])))[0] == "ALREADY_DECIDED"
    assert made.sent() == []
