"""What people do in the console's chat, in a real browser before a gateway over fakes."""

import json

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from tests.system.console_runs import TENANT, ask_for, asked, drawn, enter, finished, quiet, record

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

STATE = "document.querySelector('#state').dataset.state"


async def hanging(page, front, text: str = "Take your time"):
    """Has the agent that works until it is stopped begin."""
    await page.js("document.querySelector('#agent').value = 'hang', document.querySelector('#input').focus()")
    await page.type(text)
    await page.press("Enter")
    await page.until(f"{STATE} === 'writing'", "it has begun to write")
    return front.log.newest().run


MACHINE = """
(async () => {
  const { STATES, TRANSITIONS, STATUSES, Machine } = await import('/console/machine.js');
  const found = [];
  const needs = (state, inputs) => inputs.filter((input) => !TRANSITIONS[state][input]).forEach((input) => found.push(`${state} ${input}`));
  for (const [state, inputs] of Object.entries(TRANSITIONS)) {
    if (!STATES[state]) found.push(`${state} is no state`);
    for (const [input, next] of Object.entries(inputs)) if (!STATES[next]) found.push(`${state} ${input} leads to ${next}`);
    if (STATES[state].busy) needs(state, ['ended', 'failed', 'sign_out']);
    if (STATES[state].send === 'steer') needs(state, [...STATUSES, 'stop', 'lost']);
  }
  const reach = (from) => {
    const seen = new Set([from]);
    for (const at of seen) for (const next of Object.values(TRANSITIONS[at])) seen.add(next);
    return seen;
  };
  for (const state of Object.keys(STATES)) {
    if (!TRANSITIONS[state]) found.push(`${state} has no transitions`);
    if (!reach('signed_out').has(state)) found.push(`${state} is never reached`);
    if (!reach(state).has('idle')) found.push(`there is no way back from ${state}`);
  }
  const machine = new Machine();
  const walk = (...steps) => steps.map((step) => {
    typeof step === 'string' ? machine.take(step) : machine.feed(step);
    return machine.state;
  });
  const event = (type, data = {}) => ({ type, data });
  const status = (name) => event('agent_status', { status: name });
  return {
    found,
    told: walk('sign_in', 'send', 'accepted', event('run_started'), status('searching'), event('message_delta'), status('daydreaming'),
      status('waiting_approval'), 'lost', 'resumed', 'stop', status('writing'), event('run_cancelled')),
    implied: walk('send', event('run_queued', { queue_position: 2 }), event('run_started'), event('tool_call_started', { tool: 'wipe' }),
      'lost', event('message_delta'), event('a_type_of_next_year'), event('interrupt_raised', { kind: 'tool_call' }),
      event('interrupt_resolved'), 'send', event('run_finished')),
  };
})()"""


async def test_the_state_machine_is_whole_and_follows_agent_status(front, browser):
    async with browser.page() as page:
        await page.open(front.url + "/")
        made = await page.js(MACHINE)
    assert made["found"] == []
    # Once the run tells its status, its words no longer say what it does; an unknown status is work; a run told to stop stays so.
    # Whoever comes back to it finds it as it was.
    before = ["idle", "sending", "queued", "thinking", "searching", "searching", "working", "waiting_approval"]
    before += ["reconnecting", "waiting_approval"]
    assert made["told"] == [*before, "stopping", "stopping", "idle"]
    before = ["sending", "queued", "thinking", "calling_tool", "reconnecting", "writing", "writing", "waiting_approval"]
    assert made["implied"] == [*before, "thinking", "thinking", "idle"]


async def test_an_approval_in_the_chat_is_edited_rejected_and_already_decided(front, browser):
    button = "[...document.querySelectorAll('.approval[data-state=open] button')].find((one) => one.textContent === '%s').%s()"
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        run = await hanging(page, front)
        ask_for(front, run.run_id, run.thread_id, 0, n=1)
        await page.until(f"{STATE} === 'waiting_approval'", "the page says that it waits")
        assert "waits for an approval" in await page.js("document.querySelector('#alert').textContent")
        await page.picture("approval-chat")
        await page.js(button % ("Edit arguments", "click"))
        assert await page.js("document.activeElement.value") == '{\n  "n": 1\n}'
        await page.js("document.activeElement.value = '{\"n\": 2'")
        await page.js(button % ("Approve with these", "click"))
        assert "not JSON" in await page.js("document.querySelector('.approval .told').textContent")
        await page.js("document.querySelector('.approval textarea').value = '{\"n\": 2}'")
        await page.js(button % ("Approve with these", "click"))
        await page.until("document.querySelector('.approval').dataset.state === 'closed'", "it is decided")
        edit = asked(front, approvals_pb2.DecideApprovalRequest)[-1]
        assert json.loads(edit.edit.arguments_json) == {"n": 2}

        ask_for(front, run.run_id, run.thread_id, 1, n=3)
        await drawn(page, ".approval[data-state=open]")
        await page.js(button % ("Reject", "focus"))
        await page.press("Enter")
        await page.type("not on a Friday")
        await page.js(button % ("Reject the call", "click"))
        await page.until("document.querySelectorAll('.approval[data-state=closed]').length === 2", "it is decided")
        rejected = asked(front, approvals_pb2.DecideApprovalRequest)[-1]
        assert (rejected.WhichOneof("decision"), rejected.reason) == ("reject", "not on a Friday")

        third = ask_for(front, run.run_id, run.thread_id, 2, n=4)
        await drawn(page, ".approval[data-state=open]")
        front.log.desk.approvals[(TENANT, third)].decidable = False
        await page.js(button % ("Approve", "click"))
        told = await page.until(
            "document.querySelector('.approval[data-state=closed]:last-of-type .told')?.textContent", "somebody was faster"
        )
        assert "bo" in await page.js("[...document.querySelectorAll('.approval .told')].at(-1).textContent"), told
        await page.js("document.querySelector('#input').focus()")
        await page.press("Escape")
        await page.until(f"{STATE} === 'idle'", "it is stopped")


async def test_a_run_is_steered_while_at_work_stopped_and_rated(front, browser):
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        run = await hanging(page, front)
        assert await page.js("document.querySelector('#send').innerText.trim()") == "Steer"
        await page.picture("at-work")
        await page.type("and shorter, please")
        await page.press("Enter")
        await page.until("document.querySelector('.steer')?.dataset.state === 'sent'", "it is sent")
        assert [(request.run_id, request.text) for request in asked(front, pb.SteerRunRequest)] == [(run.run_id, "and shorter, please")]
        front.log.append(TENANT, run.thread_id, run.run_id, "steer_applied", {"number": 1, "step": 2, "text": "and shorter, please"})
        await page.until("document.querySelector('.steer').innerText.includes('read by the agent')", "it is read")
        await page.js("document.querySelector('#stop').click()")
        await page.until("document.querySelector('.foot .no')?.textContent === 'stopped'", "it is stopped")
        assert asked(front, pb.StopGenerationRequest)[-1].run_id == run.run_id
        assert await page.js(STATE) == "idle"
        await page.js("document.querySelector('[data-thumb=down]').focus()")
        await page.press("Enter")
        await page.until("document.querySelector('[data-thumb=down]').getAttribute('aria-pressed') === 'true'", "it is kept")
        rated = asked(front, pb.RecordFeedbackRequest)[-1]
        assert (rated.run_id, pb.Thumbs.Name(rated.thumbs)) == (run.run_id, "THUMBS_DOWN")
        quiet(page, front)


async def test_a_refusal_is_told_and_the_next_message_is_taken(front, browser):
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        await page.js("document.querySelector('#agent').value = 'fail', document.querySelector('#input').focus()")
        await page.type("UPSTREAM_FAILED")
        await page.press("Enter")
        await drawn(page, ".notice.bad")
        assert await page.js("document.querySelector('.notice.bad').innerText.includes('UPSTREAM_FAILED')")
        await page.picture("failed")
        await page.js("document.querySelector('#agent').value = 'assistant', document.querySelector('#input').focus()")
        await page.type("again")
        await page.press("Enter")
        await page.until("document.querySelectorAll('.turn .foot').length === 2", "answered")
        quiet(page, front)


async def test_a_page_that_is_loaded_again_shows_what_it_remembers_and_signing_out_forgets_it(front, browser):
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        run = await hanging(page, front, "Remember me")
        await page.js("location.reload()")
        await page.until(
            "document.documentElement.dataset.ready !== undefined && document.querySelector('.turn .prose') !== null", "it is read back"
        )
        await page.until(f"{STATE} === 'writing' || {STATE} === 'working'", "and followed")
        await page.press("Escape")
        await page.until(f"{STATE} === 'idle'", "to its end")
        kept = f"JSON.parse(sessionStorage.getItem('bulkhead.thread.{run.thread_id}'))"
        types = await page.js(f"{kept}.events.map((event) => event.type)")
        assert types[-1] == "run_cancelled"
        assert "message_delta" not in types, "what was provisional is not kept"
        # Without the gateway: it is there all the same, and the page says what is wrong.
        await page.serve("*/replay/*", lambda url, key: (503, "application/problem+json", b'{"detail": "away", "retryable": true}'))
        await page.js("location.reload()")
        await page.until("document.querySelector('.turn .user')?.textContent === 'Remember me'", "from memory")
        await page.until("document.querySelector('.placeholder.failed')?.innerText.includes('away')", "what is wrong")
        await page.js("document.querySelector('#sign-out').click()")
        await page.until("document.activeElement.id === 'key'", "signed out")
        assert await page.js("sessionStorage.length") == 0
        assert await page.js("document.querySelectorAll('.turn, #threads li, [data-run]').length") == 0
        assert "Remember me" not in await page.js("document.documentElement.outerHTML")


async def test_shortcuts_are_listed_and_work(front, browser):
    record(front, "keys", [finished("a")])
    async with browser.page() as page:
        await enter(page, front, "#/chat/keys")
        await drawn(page)
        for letter, view in [("r", "runs"), ("u", "usage"), ("p", "replay"), ("c", "chat")]:
            await page.press(letter, alt=True)
            await page.until(f"!document.querySelector('#view-{view}').hidden", f"Alt {letter}")
            assert await page.js("document.querySelectorAll('#main > section:not([hidden])').length") == 1
            assert await page.js(f"document.querySelector('#view-{view}').contains(document.activeElement)"), "the focus goes along"
        await page.press("k", alt=True)
        assert await page.until("document.querySelector('#keys').open", "the list")
        await page.picture("keyboard")
        await page.press("Escape")
        await page.until("!document.querySelector('#keys').open", "it is closed")
        await page.press("n", alt=True)
        await page.until("document.querySelector('#title').textContent === 'New conversation'", "a new thread")
        quiet(page, front)


async def test_a_reader_with_less_motion_sees_none(front, browser):
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        moving = "document.getAnimations().length"
        run = await hanging(page, front)
        assert await page.js(moving) > 0
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        await testing.eventually_async(lambda: page.js(f"{moving} === 0"), "nothing moves")
        front.log.runs[(TENANT, run.run_id)].cancelled.set()
