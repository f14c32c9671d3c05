"""How the console draws content, in a real browser before a gateway over fakes: each type by its renderer, none breaks the page."""

import json

import aiohttp
import pytest

from tests.system.console_runs import CHARTS, CODE, TABLE, blob, call, drawn, enter, finished, png, quiet, record, week

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

STOPS = ["figure.table", "figure.plot", ".marks.pie", "figure.image", "figure.code", ".prose table", ".foot"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_one_of_everything_is_drawn(front, browser, scheme):
    record(front, f"harbour-{scheme}", week())
    async with browser.page() as page:
        await enter(page, front, f"#/chat/harbour-{scheme}", scheme=scheme)
        await drawn(page)
        for number, at in enumerate(STOPS):
            await page.js(f"document.querySelector({json.dumps(at)}).scrollIntoView({{block: 'start', behavior: 'instant'}})")
            await page.until("!document.querySelector('.picture[data-state=loading]') || scrollY === 0", "what is in sight is loaded")
            await page.picture(f"content-{number}-{scheme}")
        await page.until("document.querySelector('.picture').dataset.state === 'done'", "the picture is there")
        shown = "(({alt, src, naturalWidth}) => [alt, src.split(':')[0], naturalWidth])(document.querySelector('.picture img'))"
        assert await page.js(shown) == ["Berth B1 at noon, two ships", "blob", 480]
        assert await page.js("document.querySelectorAll('.chart').length") == len(CHARTS)
        assert await page.js("document.querySelector('figure.code code').textContent") == CODE
        assert await page.js("document.querySelectorAll('figure.code .tok-keyword').length") >= 2
        assert await page.js("document.querySelector('.notice b').textContent") == "Without long term memory"
        assert "window only" in await page.js("document.querySelector('.notice p').textContent")
        assert await page.js("document.querySelector('.unknown summary').innerText.startsWith('hologram')")
        await page.js("document.querySelector('.prose a.cite').click()")
        assert "harbour-rules.md" in await page.js("document.activeElement.innerText"), "a citation leads to its source"
        assert {url.rsplit("/", 2)[-2] for url in page.served} == {"blob_1"}, "only what is seen is loaded, and no file by itself"
        roles = await page.accessible()
        assert {f"A {kind} chart of the harbour" for kind in CHARTS} <= set(roles["img" if "img" in roles else "image"]), roles
        quiet(page, front)


LATE = """
(async () => {
  const { bytesOf, key } = await import('/console/api.js');
  const coming = bytesOf('/v1/agents');
  key.set('');
  return coming.then(() => 'taken', (error) => error.message);
})()"""


async def test_a_content_that_comes_after_signing_out_is_nobodys(front, browser):
    async with browser.page() as page:
        await enter(page, front, "#/chat")
        assert await page.js(LATE) == "You have signed out."


async def test_a_table_is_put_in_order_by_its_columns(front, browser):
    record(front, "order", [*call("c2", "harbour_table", {}, {}, ("table", TABLE)), finished("")])
    first = "[...document.querySelectorAll('figure.table tbody tr')].map((row) => row.cells[0].textContent).join(' ')"
    async with browser.page() as page:
        await enter(page, front, "#/chat/order")
        await drawn(page)
        assert await page.js(first) == "A1 A2 B1 B2"
        sort = "document.querySelectorAll('figure.table .sort')[2]"
        await page.js(f"{sort}.focus()")
        await page.press("Enter")
        assert await page.js(first) == "B2 A2 A1 B1", "numbers are compared as numbers"
        assert await page.js(f"{sort}.closest('th').getAttribute('aria-sort')") == "ascending"
        await page.press("Enter")
        assert await page.js(first) == "B1 A1 A2 B2"
        await page.js("document.querySelectorAll('figure.table .sort')[3].click()")
        assert (await page.js(first)).endswith("B1"), "what is empty stands last"
        assert await page.js("document.querySelector('figure.table caption').textContent") == TABLE["title"]
        assert await page.js("[...document.querySelectorAll('figure.table thead th')].every((head) => head.scope === 'col')")
        quiet(page, front)


async def test_a_chart_has_its_numbers_as_a_table(front, browser):
    events = [("chart", {"title": kind, "chart_type": kind, "series": series, "alt": kind}) for kind, series in CHARTS.items()]
    record(front, "numbers", [*events, finished("")])
    async with browser.page() as page:
        await enter(page, front, "#/chat/numbers")
        await drawn(page)
        await page.js("document.querySelectorAll('figure.plot details').forEach((one) => (one.open = true))")
        bar = await page.js("document.querySelectorAll('figure.plot')[1].querySelector('table').innerText")
        assert all(word in bar for word in ("2025", "2026", "North", "58", "-6"))
        # The bar below zero begins where those above end.
        box = "[Number(one.getAttribute('y')), Number(one.getAttribute('height'))]"
        tops = await page.js(f"[...document.querySelectorAll('.marks.bar .s0 rect')].map((one) => {box})")
        assert abs(tops[3][0] - (tops[0][0] + tops[0][1])) < 0.01
        assert await page.js("document.querySelectorAll('.marks.pie path').length") == 4
        assert "44 %" in await page.js("document.querySelector('.marks.pie').textContent")
        quiet(page, front)


async def test_what_is_not_what_it_says_harms_nothing(front, browser):
    wrong = [
        ("table", {"title": "no rows", "columns": "A", "rows": "nothing"}),
        ("table", {}),
        ("chart", {"chart_type": "radar", "series": [{"points": [[1, 2]]}]}),
        ("chart", {"chart_type": "line", "series": "x"}),
        ("chart", {"chart_type": "line", "series": [None, {"points": [[0, None], [1], "x", [2, "9"]]}]}),
        ("chart", {"chart_type": "pie", "series": [{"name": "n", "points": [["a", -1], ["b", 0]]}]}),
        ("image", {"mime_type": "image/svg+xml", "blob_id": "blob_9"}),
        ("audio", {"mime_type": "text/html", "blob_id": "blob_9"}),
        ("code_block", {"text": None}),
        ("file", {"name": "../../etc/\u202egnp.exe", "blob_id": "blob_9"}),
        ("citation", {"citation_id": "c9"}),
        ("a_type_of_next_year", {"anything": [1, 2, 3]}),
        ("message_completed", {"text": "still here", "message_id": "m"}),
    ]
    record(front, "wrong", [*wrong, finished("still here")])
    async with browser.page() as page:
        await enter(page, front, "#/chat/wrong")
        await drawn(page)
        await page.until("document.querySelector('.prose')?.textContent === 'still here'", "the answer is drawn")
        assert await page.js("document.querySelectorAll('.unknown').length") == 3
        assert await page.js("document.querySelectorAll('.marks path').length") == 0, "no slice of nothing"
        assert "NaN" not in await page.js("document.querySelector('.turn').outerHTML")
        names = await page.js("[...document.querySelectorAll('.file-name')].map((one) => one.textContent).join(' ')")
        assert "\u202e" not in names
        assert "/" not in names
        assert page.served == []
        quiet(page, front)


async def test_a_picture_that_cannot_be_had_says_so_and_can_be_asked_for_again(front, browser):
    picture = blob("c1/0", "", "gate.png", "image/png", "blob_7", alt="The lock gate")
    record(front, "gone", [("image", picture), finished("")])
    answers = [(404, "application/problem+json", b'{"detail": "it is gone"}'), (200, "image/png", b"no png"), (200, "image/png", png())]
    async with browser.page() as page:
        await enter(page, front, "#/chat/gone", blobs=lambda url, key: answers.pop(0))
        again = "document.querySelector('.picture button').click()"
        await page.until(
            "document.querySelector('.picture')?.innerText.includes('The lock gate. it is gone')", "it says what it is and why"
        )
        await page.js(again)
        await page.until("document.querySelector('.picture').innerText.includes('damaged')", "bytes that are no picture")
        await page.js(again)
        await page.until("document.querySelector('.picture').dataset.state === 'done'", "it is there")
        assert answers == []


async def test_a_picture_is_read_from_the_blob_routes(front, browser):
    headers = front.headers(content_type="image/png")
    async with aiohttp.ClientSession(front.url) as http, http.post("/v1/blobs?name=b1.png", data=png(), headers=headers) as answer:
        assert answer.status == 201, await answer.text()
        kept = await answer.json()
    about = {name: kept[name] for name in ("blob_id", "mime_type", "size", "sha256", "name")}
    record(front, "kept", [("image", {"content_id": "c/0", "call_id": "c", "title": "", "alt": "Kept", **about}), finished("")])
    async with browser.page() as page:
        await enter(page, front, "#/chat/kept", blobs=None)
        await page.until("document.querySelector('.picture')?.dataset.state === 'done'", "the picture is there")
        assert await page.js("document.querySelector('.picture img').naturalWidth") == 480
        quiet(page, front)


async def test_a_file_is_saved_under_its_name_with_the_key(front, browser):
    record(front, "saved", [("file", blob("c1/0", "", "week-46.pdf", "application/pdf", "blob_3")), finished("")])
    keys = []
    async with browser.page() as page:
        await enter(
            page, front, "#/chat/saved", blobs=lambda url, key: keys.append(key) or (200, "text/html", b"<script>window.ran=1</script>")
        )
        await drawn(page)
        await page.js("""
            window.saved = []; document.addEventListener('click', (event) => event.target.download && event.preventDefault(), true);
            HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href.split(':')[0]]); };""")
        await page.js("document.querySelector('figure.file button').click()")
        assert await page.until("window.saved.length && window.saved", "it is saved") == [["week-46.pdf", "blob"]]
        assert keys == [f"Bearer {front.key}"]
        quiet(page, front)
