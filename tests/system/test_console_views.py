"""The console's views of runs, replay and usage in a real browser before a gateway over fakes."""

import asyncio

import pytest
from bulkhead.llm.v1 import llm_pb2
from bulkhead.orchestrator.v1 import admin_pb2, approvals_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from tests.system.browser import CONTRAST
from tests.system.console_runs import TENANT, ask_for, asked, call, drawn, enter, finished, quiet, record, step, usage, week

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390), ("light", 360)])
async def test_each_view_fits_its_screen(front, browser, scheme, width):
    thread = f"harbour-{scheme}-{width}"
    run = record(front, thread, week())
    async with browser.page() as page:
        await page.scheme(scheme)
        await page.size(width, 860)
        await page.open(front.url + "/")
        await page.until("document.documentElement.dataset.ready !== undefined", "the page is up")
        await page.picture(f"sign-in-{scheme}-{width}")
        assert await page.js(CONTRAST) == []
        await enter(page, front, "#/chat", scheme=scheme, width=width)
        await page.picture(f"welcome-{scheme}-{width}")
        for view, place, what in [
            ("chat", f"chat/{thread}", ".turn .foot"), ("runs", "runs", "tr[data-run]"), ("run", f"runs/{run}", ".timeline tbody"),
            ("replay", f"replay/{thread}", ".turn .foot"), ("usage", "usage", ".meter"),
        ]:  # fmt: skip
            await page.js(f"location.hash = '#/{place}'")
            await drawn(page, f"#view-{view} {what}")
            await page.picture(f"{view}-{scheme}-{width}")
            assert await page.js("document.documentElement.scrollWidth <= innerWidth"), f"nothing sticks out of {view}"
            wide = "[...document.querySelectorAll('main *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1"
            sticking = f"{wide} && !one.closest('.scroller, pre, svg, .hidden')).map((one) => one.outerHTML.slice(0, 120))"
            assert await page.js(sticking) == []
            assert await page.js(CONTRAST) == []
        quiet(page, front)


async def test_runs_are_listed_live_and_filtered(front, browser):
    record(front, "list-1", [finished("a")], agent="assistant")
    record(front, "list-2", [("run_failed", {"error": {"reason": "X", "message": "no", "retryable": False}, "usage": {}})], agent="fail")
    rows = "[...document.querySelectorAll('#view-runs tbody tr')].map((row) => row.innerText.replace(/\\s+/g, ' '))"
    async with browser.page() as page:
        await enter(page, front, "#/runs")
        await drawn(page, "tr[data-run]")
        before = len(await page.js(rows))
        choose = (
            "(() => { const at = document.querySelector('#view-runs select'); at.value = %s; at.dispatchEvent(new Event('input')); })()"
        )
        await page.js(choose % "'failed'")
        failed = await page.js(rows)
        assert 0 < len(failed) < before
        assert all("Failed" in row for row in failed)
        await page.js(
            "(() => { const one = document.querySelector('#view-runs select'); one.value = ''; one.dispatchEvent(new Event('input')); })()"
        )
        await page.js("document.querySelector('#view-runs input[type=search]').focus()")
        await page.type("list-3")
        await page.until("document.querySelector('#view-runs .placeholder h3')?.textContent === 'No run fits'", "nothing fits yet")
        record(front, "list-3", [step(1)], agent="slow")
        shown = await page.until(f"{rows}.length === 1 && {rows}", "a run that began meanwhile stands there")
        assert "slow" in shown[0]
        assert "At work" in shown[0]
        quiet(page, front)
        await page.js("document.querySelector('#sign-out').click()")
        assert "slow" not in await page.js("document.querySelector('#view-runs').outerHTML"), "also not among the agents to choose from"
        assert await page.js("document.querySelector('#view-runs input[type=search]').value") == ""


async def test_what_waits_for_a_person_is_decided_beside_the_runs(front, browser):
    run = record(front, "decide", [step(1)])
    approval_id = ask_for(front, run, "decide", n=1)
    async with browser.page() as page:
        await enter(page, front, "#/runs")
        await drawn(page, ".asked .approval button")
        await page.picture("approval-waiting")
        assert (await page.accessible())["region"].count("May wipe be called?") == 1
        await page.js("[...document.querySelectorAll('.asked button')].find((one) => one.textContent === 'Approve').focus()")
        await page.press("Enter")
        await page.until("document.querySelector('.asked').hidden", "nothing waits any more")
        assert await page.js("document.activeElement.matches('#view-runs h1')"), "whoever decided with the keyboard has a place"
        decided = asked(front, approvals_pb2.DecideApprovalRequest)[-1]
        assert (decided.approval_id, decided.WhichOneof("decision"), decided.arguments_digest) == (approval_id, "approve", "d" * 64)
        quiet(page, front)


def long_run(events: int) -> list:
    """A run of many events: steps with model and tool calls, words, a take-over, a warning, a child, an approval."""
    slower = {"code": "w", "capability_lost": "cache", "user_message": "Slower.", "attributes": {}}
    child = {"run_id": "run_child", "agent": "researcher"}
    made = [("attempt_superseded", {"from_seq": 1}), ("warning", slower)]
    made += [("child_run_started", {"call_id": "k", "thread_id": "t", **child})]
    made += [("child_run_finished", {"status": "succeeded", "usage": {}, **child})]
    number = 0
    while len(made) < events - 3:
        number += 1
        made += [step(number), ("message_delta", {"text": f"Part {number}. ", "message_id": f"m{number}"}), usage(number, 100, 50)]
        made += call(f"c{number}", f"tool_{number % 7}", {"number": number}, {"value": number})
        made += [("step_completed", {"step": number, "usage": {}})]
    return [*made[: events - 3], finished("done")]


async def test_a_run_of_a_thousand_events_is_painted_within_a_second(front, browser, capsys):
    run = record(front, "long", long_run(1000), every_ms=20)
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        await page.js(f"location.hash = '#/runs/{run}'")
        await page.until("performance.getEntriesByName('run-paint').length", "it is painted")
        measured = "performance.getEntriesByName('{}').at(-1).duration"
        took, whole = [await page.js(measured.format(name)) for name in ("run-paint", "run-open-to-paint")]
        with capsys.disabled():
            print(f"\n1,000 events: painted in {took:.0f} ms; from the click, with all that was read, {whole:.0f} ms")
        assert took < 5000, "a second on a machine that does nothing else"
        rows = await page.js("document.querySelectorAll('.timeline tbody tr.row').length")
        assert rows > 400
        text = await page.js("document.querySelector('#view-run').innerText")
        assert "1,000 events" in text
        assert "Another worker took the run over" in text
        assert "Slower." in text
        assert await page.js("document.querySelector('.timeline tr.child a').getAttribute('href')") == "#/runs/run_child"
        fits = "one.offsetLeft >= 0 && one.offsetLeft <= one.parentNode.offsetWidth"
        inside = f"[...document.querySelectorAll('.bar-fill')].every((one) => {fits})"
        assert await page.js(inside)
        await page.js("document.querySelector('.timeline tr.tool button').click()")
        assert '"number"' in await page.js("document.querySelector('.timeline tr.detail').innerText")
        await page.picture("run-1000-events")
        # Tabs: one stop for the Tab key, arrows between them.
        await page.js("document.querySelector('[role=tab]').focus()")
        await page.press("ArrowLeft")
        assert await page.js("document.activeElement.textContent") == "Events"
        assert await page.js("[...document.querySelectorAll('[role=tab]')].map((one) => one.tabIndex)") == [-1, -1, 0]
        assert await page.js("document.querySelectorAll('.raw li').length") == 200
        assert await page.js("document.querySelector('.raw pre').textContent") == "", "the JSON is written when it is asked for"
        await page.js("document.querySelector('.raw summary').click()")
        await page.until("document.querySelector('.raw pre').textContent.includes('\"seq\": 1')", "as it is in the log")
        await page.picture("run-events")
        quiet(page, front)


async def test_a_replay_shows_the_chat_as_it_was_at_any_moment(front, browser):
    events = [step(1), ("message_delta", {"text": "One ", "message_id": "m"}), *call("c1", "tide", {}, {})]
    events += [("message_delta", {"text": "two", "message_id": "m"})]
    events += [("message_completed", {"text": "One two", "message_id": "m"}), finished("One two")]
    record(front, "again", events, every_ms=400)
    seek = "(() => { const at = document.querySelector('#replay-slider'); at.value = %d; at.dispatchEvent(new Event('input')); })()"
    fast = "(() => { const at = document.querySelector('#replay-speed'); at.value = 2; at.dispatchEvent(new Event('change')); })()"
    play = "document.querySelector('#replay-play').textContent"
    words = "(document.querySelector('#view-replay .prose')?.textContent ?? '')"
    async with browser.page() as page:
        await enter(page, front, "#/replay/again")
        await page.until(f"{words} === 'One two'", "it begins at the end")
        assert 3190 <= await page.js("Number(document.querySelector('#replay-slider').max)") <= 3210
        await page.js(seek % 1300)
        await page.until(f"{words} === 'One'", "the words of then")
        assert await page.js("document.querySelector('#view-replay .tool') === null"), "the call was not yet"
        assert "writing" in await page.js("document.querySelector('#replay-slider').getAttribute('aria-valuetext')")
        await page.js(seek % 1700)
        await drawn(page, "#view-replay .tool")
        assert await page.js("document.querySelector('#view-replay .tool').dataset.outcome ?? ''") == "", "it was at work"
        await page.picture("replay-moment")
        await page.js(seek % 0)
        await page.until("document.querySelector('#view-replay .recent').innerText.includes('1 of')", "the beginning")
        await page.js(fast)
        began = asyncio.get_running_loop().time()
        await page.js("document.querySelector('#replay-play').focus()")
        await page.press("Enter")
        assert await page.js(play) == "Pause"
        await page.until(f"{words} === 'One two' && {play} === 'Play'", "it is played to its end")
        assert asyncio.get_running_loop().time() - began > 1.4, "in its own time, at twice its speed"
        doing = "document.querySelector('#view-replay .thumbs, #view-replay .approval button')"
        assert await page.js(f"{doing} === null"), "nothing can be done in it"
        quiet(page, front)


# The log of one thread comes when it is let go, and says when the page has seen it.
LATE = """
(() => {
  const ask = window.fetch;
  window.fetch = async (url, ...more) => {
    const answer = await ask(url, ...more);
    if (!String(url).includes('/replay/race-first')) return answer;
    await new Promise((done) => (window.letGo = done));
    const read = answer.json.bind(answer);
    answer.json = async () => {
      const log = await read();
      setTimeout(() => (window.seen = true));
      return log;
    };
    return answer;
  };
})()"""


async def test_of_two_replays_the_one_that_was_asked_for_last_is_shown(front, browser):
    for name in ("first", "second"):
        record(front, f"race-{name}", [finished(name)])
    words = "document.querySelector('#view-replay .prose')?.textContent"
    async with browser.page() as page:
        await enter(page, front, "#/replay")
        await page.js(LATE)
        await page.js("location.hash = '#/replay/race-first'")
        await page.until("window.letGo !== undefined", "the first is under way")
        await page.js("location.hash = '#/replay/race-second'")
        await page.until(f"{words} === 'second'", "the second is shown")
        await page.js("window.letGo()")
        await page.until("window.seen === true", "the first has come")
        assert await page.js(words) == "second"
        assert await page.js("document.querySelector('#replay-thread').value") == "race-second"
        quiet(page, front)


async def test_quota_and_queue_are_shown_and_no_key(front, browser):
    run = record(front, "queue", [])
    waiting = front.log.runs[(TENANT, run)].run
    waiting.status, waiting.queue_position = pb.RUN_STATUS_QUEUED, 3
    spent = llm_pb2.BudgetState(scope="user", scope_id="ana", period="1d", limit_microusd=2_000_000, spent_microusd=1_700_000)
    rate = llm_pb2.RateLimitState(scope="key", scope_id="k_1", kind="tokens_per_minute", limit=40_000, remaining=0)
    runs = admin_pb2.Allowance(used=3, limit=8)
    records = front.log.records
    records.quota = admin_pb2.GetQuotaResponse(tier="team", concurrent_runs=runs, queued_runs=admin_pb2.Allowance(used=1))
    records.budget = llm_pb2.GetBudgetResponse(budgets=[spent], limits=[rate])
    async with browser.page() as page:
        await enter(page, front, "#/usage")
        await drawn(page, ".meter")
        await page.until("document.querySelector('#view-usage tbody')?.innerText.includes('#3')", "its place in the queue")
        assert "team tier" in await page.js("document.querySelector('#view-usage').innerText")
        meters = await page.js("[...document.querySelectorAll('[role=meter]')].map((one) => [one.ariaLabel, one.ariaValueText])")
        assert meters == [
            ["At work", "3 of 8"],
            ["user ana, 1d", "$1.70 of $2.00"],
            ["tokens per minute, key k_1", "0 of 40,000 left"],
        ]
        assert await page.js("[...document.querySelectorAll('.meter')].map((one) => one.className.trim())") == [
            "meter", "meter", "meter", "meter warn", "meter bad",
        ]  # fmt: skip
        await page.picture("usage-limits")
        assert front.key not in await page.js("document.documentElement.outerHTML")
        waiting.queue_position = 2
        await page.until("document.querySelector('#view-usage tbody').innerText.includes('#2')", "it moves up")
        quiet(page, front)
