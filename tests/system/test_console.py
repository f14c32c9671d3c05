"""The console in a real browser, over a real platform: what a person sees, with the keyboard and by assistive software."""

import itertools
import json
import os
import re
import signal

import httpx2 as httpx
import pytest

from services.common import testing
from tests.system.browser import CONTRAST

pytestmark = pytest.mark.system

WIDTH, HEIGHT = 1280, 860
QUESTION = "What is 17 * 23?"


@pytest.fixture(scope="module")
def platform(start_own):
    return start_own()


async def sign_in(page, platform) -> None:
    """Types the key and opens the session, with the keyboard alone."""
    await page.open(platform.url + "/")
    await page.until("document.activeElement.id === 'key'", "the key has the focus")
    await page.type(platform.key)
    await page.press("Enter")
    await page.until("document.querySelector('#agent').options.length > 1 && !document.querySelector('#send').disabled", "the agents")
    await page.until("document.activeElement.id === 'input'", "the message field has the focus")
    assert await page.js("document.querySelector('#key').value") == "", "the key is nowhere on the page"


async def ask(page, text: str) -> None:
    await page.type(text)
    await page.press("Enter")


async def answered(page, turns: int = 1) -> None:
    ended = "document.querySelectorAll('.turn .foot').length"
    await page.until(f"{ended} === {turns} && document.querySelector('#state').dataset.state === 'idle'", "the turn has ended")


def nothing_wrong(page, platform) -> None:
    assert page.complaints == []
    assert page.requests
    foreign = [url for url in page.requests if not url.startswith((platform.url + "/", "data:", "about:"))]
    assert foreign == []


async def test_a_turn_with_a_tool_is_seen_as_it_happens(platform, browser, tmp_path):
    fault = {"match": {"contains": QUESTION}, "fault": {"tokens_per_s": 2}}
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await page.scheme("light")
        await sign_in(page, platform)
        await page.screenshot(tmp_path / "welcome-light.png")
        httpx.post(f"{platform.simulator}/sim/faults", json=fault).raise_for_status()
        try:
            await page.js("""
                window.seen = []; new MutationObserver(() => {
                    const text = document.querySelector('.prose')?.textContent || '';
                    if (text && text !== seen.at(-1)) seen.push(text);
                }).observe(document.querySelector('#log'), {subtree: true, childList: true, characterData: true});""")
            await ask(page, QUESTION)
            await page.until("window.seen.length > 1", "text is on the page before the answer is whole")
            assert await page.js("document.querySelector('#state').dataset.state") == "writing"
            assert not await page.js("document.querySelector('#stop').hidden")
            await page.picture("streaming-light")
            await answered(page)
        finally:
            httpx.delete(f"{platform.simulator}/sim/faults").raise_for_status()
        seen = await page.js("window.seen")
        assert len(seen) >= 3
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
        assert "391" in seen[-1]
        # The call: its name and arguments in the line, all of it when opened with the keyboard.
        summary = await page.js("document.querySelector('.tool summary').innerText")
        assert "calculator" in summary
        assert "17 * 23" in summary
        assert "391" in summary
        assert await page.js("document.querySelector('.tool').dataset.outcome") == "done"
        await page.js("document.querySelector('.tool summary').focus()")
        await page.press("Enter")
        shown = await page.until("document.querySelector('.tool').open && document.querySelector('.tool dl').innerText", "the call is open")
        assert re.search(r'arguments\s*{\s*"expression": "17 \* 23"\s*}', shown), shown
        assert re.search(r'result\s*{[^}]*"391"', shown), shown
        await page.picture("answered-light")
        assert await page.js("document.querySelector('#total-turns').innerText") == "1"
        assert await page.js("document.querySelector('#total-tools').innerText") == "1"
        assert int((await page.js("document.querySelector('#total-tokens').innerText")).replace(",", "")) > 0
        nothing_wrong(page, platform)


async def test_citations_lead_to_their_source_and_a_thread_is_read_back(platform, browser, tmp_path):
    text = "# Harbour rules\n\nThe harbour master opens the lock gate at 06:40 every morning.\n"
    body = {"title": "harbour.md", "content_type": "text/markdown", "text": text}
    httpx.post(f"{platform.url}/v1/documents", json=body, headers={"authorization": f"Bearer {platform.key}"}).raise_for_status()
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await page.scheme("dark")
        await sign_in(page, platform)
        await page.screenshot(tmp_path / "welcome-dark.png")
        await ask(page, "When does the harbour master open the lock gate? Also what is 6 * 7?")
        await answered(page)
        await page.picture("cited-dark")
        assert await page.js("document.querySelector('.prose .cite').innerText") == "c1"
        assert await page.js(
            "document.querySelector(document.querySelector('.prose .cite').getAttribute('href')).innerText.includes('harbour')"
        )
        live, thread = await page.js("[document.querySelector('.turn').innerText, document.querySelector('#thread').value]")
        await page.open(f"{platform.url}/?thread={thread}")
        await page.until("document.querySelectorAll('.turn .foot').length === 1", "the thread is read back")
        await page.until("document.querySelector('.turn .prose')?.innerText.includes('06:40')", "its text is drawn")
        assert await page.js("document.querySelector('.turn').innerText") == live
        nothing_wrong(page, platform)


async def test_the_timeline_and_the_replay_of_a_real_turn(platform, browser):
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await page.scheme("light")
        await sign_in(page, platform)
        await ask(page, QUESTION)
        await answered(page)
        await page.js("document.querySelector('.run-link').click()")
        await page.until("document.querySelectorAll('.timeline tr.row').length >= 6", "the timeline")
        rows = await page.js("[...document.querySelectorAll('.timeline tr.row')].map((row) => row.innerText.replace(/\\s+/g, ' '))")
        kinds = await page.js("[...document.querySelectorAll('.timeline tr.row')].map((row) => row.classList[1])")
        assert kinds == ["queue", "step", "model", "tool", "step", "model"], rows
        assert all("tok" in row and "$" in row for row in rows if row.startswith("Model")), rows
        assert "calculator" in rows[3]
        await page.picture("run-real")
        facts = await page.js("document.querySelector('#view-run .facts').innerText.replace(/\\s+/g, ' ')")
        assert "2 model, 1 tool" in facts
        await page.press("c", alt=True)
        await page.js("document.querySelector('#replay-link').click()")
        await page.until("document.querySelector('#view-replay .turn .prose')?.innerText.includes('391')", "the replay")
        nothing_wrong(page, platform)


async def test_everything_works_with_the_keyboard_alone(platform, browser, tmp_path):
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await sign_in(page, platform)
        # The first stop of the page leads past the side to the message field.
        await page.js("document.querySelector('#nav a').focus()")
        await page.press("Tab", shift=True)
        assert await page.js("document.activeElement.className") == "skip"
        assert await page.js("document.activeElement.getBoundingClientRect().top >= 0"), "it is seen while it has the focus"
        await page.press("Enter")
        assert await page.js("document.activeElement.id") == "input"
        assert await page.tab_to("agent") == []
        for letter in "plain":
            await page.press(letter)
        assert await page.js("document.querySelector('#agent').value") == "plain"
        await page.js("document.querySelector('.skip').focus()")
        passed = await page.tab_to("input")
        assert {"thread", "open-name", "new-thread", "theme", "show-keys", "sign-out", "replay-link", "log"} <= set(passed), passed
        outlines = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.js(outlines) != "none", "what has the focus is marked"
        edge = "getComputedStyle(document.querySelector('#input')).borderTopColor"
        marked = await page.js(edge)
        await page.press("Tab")
        assert await page.js(edge) != marked, "and so is the box around the message"
        await page.press("Tab", shift=True)
        await page.type("Hello")
        await page.press("Enter", shift=True)
        assert "\n" in await page.js("document.querySelector('#input').value"), "shift makes a line"
        await page.press("Enter")
        await answered(page)
        assert await page.js("document.querySelector('.turn .who b').innerText") == "plain"
        assert await page.js("document.activeElement.id") == "input", "the focus stays for the next message"
        nothing_wrong(page, platform)


async def test_a_turn_goes_on_where_the_gateway_was_killed_in_its_middle(platform, browser):
    fault = {"match": {"contains": "lighthouse"}, "fault": {"tokens_per_s": 4}}
    httpx.post(f"{platform.simulator}/sim/faults", json=fault).raise_for_status()
    try:
        async with browser.page() as page:
            await sign_in(page, platform)
            await page.js("""
                window.states = []; new MutationObserver(() => states.push(document.querySelector('#state').dataset.state))
                    .observe(document.querySelector('#state'), {attributes: true});
                window.shown = []; new MutationObserver(() => shown.push(document.querySelector('.prose')?.textContent || ''))
                    .observe(document.querySelector('#log'), {subtree: true, childList: true, characterData: true});""")
            await ask(page, "Write 60 words about the lighthouse.")
            await page.until("document.querySelector('.prose')?.textContent.split(' ').length > 5", "it has begun to answer")
            gateway = platform.pid("gateway")
            os.kill(gateway, signal.SIGKILL)
            await page.until("states.includes('reconnecting')", "the page says that it has lost the gateway")
            await testing.eventually_async(lambda: platform.replaced("gateway", gateway), "another one stands in its place", timeout_s=60)
            await answered(page)
            states, shown = await page.js("[states, shown]")
            assert "writing" in states[states.index("reconnecting") :], "words came also after it"
            text = await page.js("document.querySelector('.prose').textContent")
            assert all(text.startswith(part.rstrip()) for part in shown), "nothing was lost, repeated or taken back"
            assert len(text.split()) >= 60
            thread = await page.js("document.querySelector('#title').title")
            whole = httpx.get(f"{platform.url}/replay/{thread}", headers={"authorization": f"Bearer {platform.key}"}).json()["events"]
            ends = [event["data"]["output_text"] for event in whole if event["type"] == "run_finished"]
            assert [" ".join(end.split()) for end in ends] == [" ".join(text.split())], "one run, and its whole answer"
            # The browser itself notes connections that broke; the page adds nothing.
            assert all("ERR_" in complaint for complaint in page.complaints), page.complaints
    finally:
        httpx.delete(f"{platform.simulator}/sim/faults").raise_for_status()


async def test_escape_stops_a_turn(platform, browser):
    fault = {"match": {"contains": "tortoise"}, "fault": {"tokens_per_s": 2}}
    httpx.post(f"{platform.simulator}/sim/faults", json=fault).raise_for_status()
    try:
        async with browser.page() as page:
            await sign_in(page, platform)
            await ask(page, "Write 200 words about the tortoise.")
            await page.until("document.querySelector('.prose')?.innerText", "it has begun to answer")
            await page.press("Escape")
            await answered(page)
            assert "stopped" in await page.js("document.querySelector('.foot').innerText")
            nothing_wrong(page, platform)
    finally:
        httpx.delete(f"{platform.simulator}/sim/faults").raise_for_status()


async def test_a_wrong_key_is_told_and_mended(platform, browser):
    async with browser.page() as page:
        await page.open(platform.url + "/")
        await page.until("document.activeElement.id === 'key'", "the key has the focus")
        await page.type("bh_wrong-wrong-wrong")
        await page.press("Enter")
        await page.until("document.querySelector('#key-note').innerText.includes('not valid')", "it says so")
        assert "not valid" in await page.js("document.querySelector('#alert').innerText"), "and to a screen reader"
        # 401 is what the browser itself notes; the page must add nothing.
        assert all("401" in complaint for complaint in page.complaints), page.complaints
        await page.js("document.querySelector('#key').select()")
        assert await page.js("document.activeElement.id") == "key", "the focus is where it can be mended"
        assert await page.js("sessionStorage.length") == 0, "a key that is not valid is not kept"
        await page.type(platform.key)
        await page.press("Enter")
        await page.until("document.querySelector('#agent').options.length > 1", "the agents")
        await page.until("document.querySelector('#state').dataset.state === 'idle'", "all is well")


async def test_the_page_has_names_for_assistive_software(platform, browser):
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await page.open(platform.url + "/")
        await page.until("document.activeElement.id === 'key'", "the key has the focus")
        roles = await page.accessible()
        assert {"API key"} <= set(roles["textbox"]), roles["textbox"]
        await sign_in(page, platform)
        await ask(page, QUESTION)
        await answered(page)
        roles = await page.accessible()
        for role in ("button", "textbox", "combobox", "link", "log", "navigation", "heading", "article", "group"):
            assert roles.get(role), (role, sorted(roles))
        for role in ("button", "textbox", "combobox", "link", "log", "navigation", "heading"):
            assert all(roles[role]), (role, roles[role])
        assert {"Thread by name", "Message"} <= set(roles["textbox"]), roles["textbox"]
        assert len(roles["main"]) == 1
        assert await page.js("document.querySelector('#announce').innerText.includes('391')"), "the answer is announced"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_is_readable_in_light_and_dark_on_wide_and_narrow_screens(platform, browser, tmp_path, scheme):
    async with browser.page() as page:
        await page.scheme(scheme)
        await page.size(WIDTH, HEIGHT)
        await page.open(platform.url + "/")
        await page.js("localStorage.clear()")
        await sign_in(page, platform)
        assert await page.js("document.documentElement.dataset.theme") == scheme
        assert await page.js(CONTRAST) == []
        await ask(page, "What is 17 * 23? Also fetch http://127.0.0.1:9/nothing")
        await answered(page)
        await page.js("document.querySelectorAll('.tool').forEach((tool) => (tool.open = true))")
        assert await page.js(CONTRAST) == []
        await page.screenshot(tmp_path / f"wide-{scheme}.png")
        for width in (760, 390):
            await page.size(width, 800)
            assert await page.js("document.documentElement.scrollWidth <= innerWidth"), f"nothing sticks out at {width} px"
            assert await page.js("document.querySelector('#send').getBoundingClientRect().bottom <= innerHeight"), "Send is in sight"
            await page.js("document.querySelector('.foot').scrollIntoView({behavior: 'instant'})")
            await page.screenshot(tmp_path / f"{width}-{scheme}.png")
        nothing_wrong(page, platform)


async def test_the_theme_button_changes_and_is_remembered(platform, browser):
    async with browser.page() as page:
        await page.scheme("light")
        await page.open(platform.url + "/")
        await page.js("localStorage.clear()")
        await page.open(platform.url + "/")
        theme = "document.documentElement.dataset.theme"
        assert await page.until(theme, "a theme") == "light"
        await page.tab_to("theme-gate")
        await page.press("Enter")
        assert await page.js(theme) == "dark"
        await page.open(platform.url + "/?again")
        assert await page.until(theme, "a theme") == "dark"
        await page.js("localStorage.clear()")


async def test_the_policy_of_the_page_refuses_foreign_and_inline_code(platform, browser):
    async with browser.page() as page:
        await page.open(platform.url + "/")
        tried = await page.js("""
            (async () => {
                const script = document.createElement('script'); script.append('window.injected = true');
                document.body.append(script);
                const fetched = await fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused');
                return JSON.stringify({injected: window.injected === true, fetched});
            })()""")
        assert json.loads(tried) == {"injected": False, "fetched": "refused"}
        await testing.eventually_async(
            lambda: sum("Content Security Policy" in complaint for complaint in page.complaints) >= 2, "both are reported as refused"
        )


async def test_the_api_page_lists_the_routes(platform, browser, tmp_path):
    async with browser.page() as page:
        await page.size(WIDTH, HEIGHT)
        await page.scheme("light")
        await page.open(platform.url + "/docs")
        await page.until("document.querySelectorAll('.route').length > 10", "the routes")
        await page.picture("docs-light")
        assert "/v1/chat/completions" in await page.js("document.body.innerText")
        nothing_wrong(page, platform)
