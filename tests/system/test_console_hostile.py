"""What models, tools and people may write to harm who looks at it: nothing of it runs in the console, and no request leaves."""

import json

import pytest
import pytest_asyncio
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway import fake_scripts
from services.gateway.fakes import gateway
from tests.system.console_runs import TENANT, ask_for, blob, drawn, enter, finished, record

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

# Each would set `window.ran`, or ask this address, where it became more than text.
AWAY = "http://127.0.0.1:9"
CORPUS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror=window.ran=2>",
    f"<img src='{AWAY}/pixel.png'>",
    "<svg onload=window.ran=3><script>window.ran=3</script></svg>",
    f"<iframe src='javascript:window.top.ran=4'></iframe><iframe src='{AWAY}/frame'></iframe>",
    "</textarea></pre></code></title></script><script>window.ran=5</script>",
    "<a href='javascript:window.ran=6' autofocus onfocus=window.ran=6>x</a>",
    "[click](javascript:window.ran=7) [click](data:text/html,<script>window.ran=7</script>)",
    "[click](vbscript:x) [x](java\tscript:window.ran=7)",
    "[x](JaVaScRiPt:window.ran=8) ![x](javascript:window.ran=8) <javascript:window.ran=8>",
    f"![pixel]({AWAY}/markdown.png) ![pixel](//127.0.0.1:9/scheme.png)",
    f"<link rel=stylesheet href={AWAY}/s.css><style>@import '{AWAY}/i.css'; body {{ background: url({AWAY}/b.png) }}</style>",
    f"<meta http-equiv=refresh content='0; url={AWAY}/meta'><base href='{AWAY}/'>",
    f"<form action='{AWAY}/form'><input name=a><button autofocus>go</button></form>",
    f"<video src={AWAY}/v.mp4 autoplay><source src={AWAY}/w.mp4 onerror=window.ran=9></video>",
    f"<object data={AWAY}/o></object><embed src={AWAY}/e>",
    "\"'><script>window.ran=10</script>",
    "javascript:window.ran=11",
    "{{constructor.constructor('window.ran=12')()}} ${window.ran=12} <%= window.ran=12 %>",
    "\u202egnp.exe\u202c \u0000 \ufeff <b onmouseover=window.ran=13>x</b>",
    "```html\n<script>window.ran=14</script>\n```\n<details open ontoggle=window.ran=14>",
    "| <img src=x onerror=window.ran=15> | b |\n|---|---|\n| <svg/onload=window.ran=15> | [x](javascript:window.ran=15) |",
    "__proto__",
    "constructor",
    "```constructor\nwindow.ran = 16\n```\n\n```__proto__\nx\n```",
]
ALL = "\n\n".join(CORPUS)

CHECKS = """
(() => {
  const all = (what) => [...document.querySelectorAll(what)];
  const brief = (nodes) => nodes.map((one) => one.outerHTML.slice(0, 100));
  const ours = (one) => one.tagName === 'SCRIPT' && one.src.startsWith(location.origin + '/console/') && one.closest('head');
  const ways = ['http:', 'https:', 'mailto:'];
  return {
    ran: window.ran ?? null,
    made: brief(all('script, iframe, frame, object, embed, base, meta[http-equiv], video, style, form form').filter((one) => !ours(one))),
    handlers: brief(all('*').filter((one) => [...one.attributes].some(({ name }) => /^on/i.test(name)))),
    links: all('a[href]').map((one) => one.protocol).filter((name) => !ways.includes(name)),
    images: all('img').map((one) => one.src).filter((src) => !src.startsWith('blob:') && !src.startsWith(location.origin)),
    inputs: all('body link, body meta').length,
    origin: location.pathname,
  };
})()"""
CLEAN = {"ran": None, "made": [], "handlers": [], "links": [], "images": [], "inputs": 0, "origin": "/"}


def harmful(text: str) -> list:
    """A run with `text` wherever a model, a tool or a document can put one."""
    call = {"call_id": text, "tool": text, "version": text}
    table = {
        "title": text,
        "columns": [text, text],
        "rows": [[text, text], [{"a": text}, [text]]],
        "total_rows": 9,
        **blob("c/1", text, text, text, "b"),
    }
    series = [{"name": text, "points": [[text, 1], [text + "2", 2]]}]
    drawing = {"title": text, "x_label": text, "y_label": text, "alt": text, "series": series}
    charts = [("chart", {**drawing, "chart_type": kind}) for kind in ("line", "bar", "pie", text)]
    cited = {"citation_id": text[:40], "document_id": text, "title": text, "heading": text, "char_start": 0, "char_end": 2}
    return [
        ("run_queued", {"agent": text, "agent_version": text, "input": [{"role": "user", "text": text}]}),
        ("agent_status", {"status": text}),
        ("step_started", {"step": 1, "name": text}),
        ("memory_recalled", {"parts": 1, "kinds": {text: 1}}),
        ("plan_updated", {"version": 1, "steps": [{"title": text, "status": text}]}),
        ("tool_call_started", {**call, "arguments": {text: text}}),
        ("tool_call_progress", {"call_id": text, "message": text, "text": text}),
        ("tool_call_completed", {**call, "output": text, "note": text, "duration_ms": 1}),
        ("tool_call_started", {**call, "call_id": "2", "arguments": text}),
        ("tool_call_failed", {"call_id": "2", "tool": text, "error": {"code": text, "message": text}}),
        ("image", blob("c/2", text, text, "image/png", text, alt=text, width=text, height=text)),
        ("image", blob("c/3", text, text, text, text, alt=text)),
        ("audio", blob("c/4", text, text, "audio/wav", text, transcript=text)),
        ("file", blob("c/5", text, text, text, text)),
        ("table", table),
        ("code_block", {"title": text, "language": text, "text": text, "name": text}),
        ("code_block", {"title": "", "language": "js", "text": text, "name": ""}),
        *charts,
        (text[:60], {"anything": text}),
        ("child_run_started", {"call_id": "k", "run_id": text, "thread_id": text, "agent": text}),
        ("child_run_finished", {"run_id": text, "agent": text, "status": text, "usage": {}}),
        ("handoff_requested", {"target": text, "label": text, "reason": text}),
        ("guard_triggered", {"stage": text, "action": "refuse", "reason": text, "detector": text}),
        ("warning", {"code": text, "capability_lost": text, "fallback": text, "user_message": text, "attributes": {}}),
        ("interrupt_raised", {"kind": "client_tools", "calls": [{"tool_call_id": text, "name": text, "arguments": text}]}),
        ("steer_applied", {"number": 1, "step": 1, "text": text}),
        ("usage", {"step": 1, "model": text, "provider": text, "input_tokens": 1, "output_tokens": 1}),
        ("message_delta", {"text": text, "message_id": text}),
        ("citation", cited),
        ("message_completed", {"text": text + " [c1]", "message_id": "m2"}),
        finished(text, citations=[cited], finish_reason=text),
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server):
    """A gateway over fakes; one of its agents has a harmful name and description."""
    name = "<img src=x onerror=window.ran=20>"

    async def agent(run):
        async for step in fake_scripts.echo(run):
            yield step

    agent.__doc__ = ALL
    fake_scripts.SCRIPTS[name] = agent
    try:
        async with gateway(identities, _state_server) as made:
            yield made
    finally:
        del fake_scripts.SCRIPTS[name]


async def harmless(page, front) -> None:
    """Nothing ran, nothing was made, nobody was asked and the policy had nothing to refuse."""
    assert await page.js(CHECKS) == CLEAN
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith((front.url + "/", "about:", f"blob:{front.url}"))] == []


async def opened(page) -> None:
    """Opens, presses and focuses what can be, so that handlers and links would have their chance."""
    await page.js("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    await page.js("document.querySelectorAll('.sort').forEach((one) => one.click())")
    await page.js("document.querySelectorAll('.disclose').forEach((one) => one.click())")
    await page.js("document.querySelectorAll('main *').forEach((one) => one.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))")
    await page.js("new Promise((done) => setTimeout(done, 300))")


@pytest.mark.parametrize("number", [*range(0, len(CORPUS), 3), "all"])
async def test_no_text_becomes_more_than_text(front, browser, number):
    texts = [ALL] if number == "all" else CORPUS[number : number + 3]
    runs = [record(front, f"hostile-{number}", harmful(text)) for text in texts]
    async with browser.page() as page:
        await enter(page, front, f"#/chat/hostile-{number}", blobs=lambda url, key: (200, "text/html", ALL.encode()))
        await page.until(f"document.querySelectorAll('.turn .foot').length === {len(texts)}", "drawn")
        await page.until("document.querySelectorAll('.turn .prose').length >= 2", "with its words")
        assert await page.js("document.querySelector('.turn .user').textContent") == texts[0], "it is there, as it was written"
        await opened(page)
        await harmless(page, front)
        for run in runs:
            await page.js(f"location.hash = '#/runs/{run}'")
            await page.until(f"document.querySelector('#view-run .id')?.textContent === {json.dumps(run)}", "the run")
            await drawn(page, "#view-run .timeline tbody tr")
            for tab in (1, 2, 0):
                await page.js(f"document.querySelectorAll('#view-run [role=tab]')[{tab}].click()")
                await opened(page)
            await harmless(page, front)
        await page.js(f"location.hash = '#/replay/hostile-{number}'")
        await drawn(page, "#view-replay .turn .foot")
        await opened(page)
        await harmless(page, front)


async def test_names_of_threads_runs_agents_and_approvals_are_text(front, browser):
    for number, text in enumerate(CORPUS):
        run = record(front, f"{text[:100]}-{number}", harmful(text), agent=text)
        fake = front.log.runs[(TENANT, run)].run
        fake.status, fake.queue_position = (pb.RUN_STATUS_QUEUED, 2) if number % 2 else (pb.RUN_STATUS_FAILED, 0)
        fake.error.reason = fake.error.message = text
    approval = record(front, "ask", [])
    ask_for(front, approval, "ask", 0, note=ALL)
    front.log.desk.approvals[(TENANT, f"{approval}/1/0")].tool = ALL
    front.log.desk.approvals[(TENANT, f"{approval}/1/0")].reason = ALL
    async with browser.page() as page:
        await enter(page, front, "#/runs")
        await drawn(page, "tr[data-run]")
        await drawn(page, ".asked .approval")
        await page.until("document.querySelectorAll('#threads li').length >= 20", "the threads")
        await opened(page)
        await harmless(page, front)
        await page.js("[...document.querySelectorAll('.asked button')].find((one) => one.textContent === 'Edit arguments').click()")
        await harmless(page, front)
        await page.js(f"location.hash = '#/runs/{run}'")
        await drawn(page, "#view-run .facts .no")
        await harmless(page, front)
        await page.js("location.hash = '#/usage'")
        await drawn(page, "#view-usage .catalogue")
        await page.until("document.querySelector('#view-usage').innerText.includes('window.ran=20')", "agents are named")
        await opened(page)
        await harmless(page, front)


ADDRESSES = [
    "#/<img src=x onerror=window.ran=1>", "#/chat/%E0%A4%A", "#/runs/..%2f..%2fv1%2fquota", "#/__proto__/x",
    "?thread=<svg onload=window.ran=1>",
]  # fmt: skip


@pytest.mark.parametrize("place", ADDRESSES)
async def test_an_address_is_no_way_in(front, browser, place):
    async with browser.page() as page:
        await enter(page, front, place)
        await page.js("new Promise((done) => setTimeout(done, 200))")
        found = await page.js(CHECKS)
        assert found == CLEAN
        assert await page.js("document.querySelectorAll('#main > section:not([hidden])').length") == 1
        assert not [url for url in page.requests if "/v1/quota" in url]


LONG = [
    "> " * 3000 + "deep",
    "\n".join("  " * min(depth, 400) + f"- {depth}" for depth in range(1500)),
    *(sign * 20_000 for sign in ("*", "[", "# h\n", "_a", "![")),
    "**a " * 49_000,
    "`" * 9999 + "x",
    "| a " * 5000 + "|\n" + "|-" * 5000 + "|\n",
    "x" * 300_000,
    "# " + " " * 100_000 + "x",
]


async def test_deep_and_long_texts_do_not_stop_the_page(front, browser):
    async with browser.page() as page:
        await page.open(front.url + "/")
        for text in LONG:
            took = await page.js(f"""(async () => {{
                const {{ prose }} = await import('/console/markup.js');
                const begun = performance.now();
                const nodes = prose({json.dumps(text)}, 'a');
                return nodes.length ? performance.now() - begun : -1;
            }})()""")
            assert 0 <= took < 5000, (text[:40], took)
