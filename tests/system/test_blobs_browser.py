"""Contents of blobs in a real browser: whatever a hostile page does with their links, none of them runs."""

import json

import aiohttp
import pytest
from aiohttp import web

from services.common import testing
from services.gateway import fakes
from tests.integration.real_gateway import answered
from tests.integration.test_gateway_blobs_real import CORPUS
from tests.system.browser import Browser

pytestmark = pytest.mark.system
RAN = "ran"
# Each way in which a page can have an address shown or run; `%s` is the link. A page is complete once each of them is settled.
WAYS = {
    "script": '<script src="%s"></script>',
    "iframe": '<iframe src="%s"></iframe>',
    "object": '<object data="%s"></object>',
    "embed": '<embed src="%s">',
    "style": '<link rel="stylesheet" href="%s">',
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.process.stop()


@pytest.fixture
async def hostile():
    """A site of its own, whose page `/{way}` has the address `?at=` in it that way; it keeps what is reported to it."""
    reports = []

    async def page(request):
        way = WAYS[request.match_info["way"]] % request.query["at"]
        return web.Response(text=f"<!doctype html><title>quiet</title><body>{way}</body>", content_type="text/html")

    async def report(request):
        reports.append(request.path_qs)
        return web.Response(text="")

    app = web.Application()
    app.router.add_get("/report", report)
    app.router.add_get(f"/{{way:{'|'.join(WAYS)}}}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    port = testing.free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}", reports
    await runner.cleanup()


def marked(content, site):
    """A content of the corpus that reports to the site where it runs, beside changing the title."""
    return content.replace(b"document.title='ran'", f"document.title='ran';new Image().src='{site}/report'".encode())


async def test_no_content_runs_in_whatever_way_a_page_has_it(identities, state_url, browser, hostile):
    site, reports = hostile
    async with fakes.gateway(identities, state_url) as served, aiohttp.ClientSession(served.url, headers=served.headers()) as http:
        links = {}
        for name, kind, content in CORPUS:
            made = await answered(
                http.post("/v1/blobs", data=marked(content, site), headers={"content-type": kind}, params={"name": name}), 201
            )
            links[name, kind] = served.url + (await answered(http.post(f"/v1/blobs/{made['blob_id']}/links"), 201))["url"]
        async with browser.page() as page:
            # That it would be seen: the same script, of the page's own.
            await page.open(f"{site}/script?at=data:text/javascript,document.title='ran'")
            await page.until(f"document.title === '{RAN}'", "what does run is seen")
            for about, link in links.items():
                for way in WAYS:
                    await page.open(f"{site}/{way}?at={link}")
                    assert await page.js("document.title") == "quiet", (about, way)
                    assert link in page.requests, (about, way)
            for about, link in links.items():
                # By itself: an image is shown, and everything else is saved, so that the page stays that was there.
                await page.open(f"{site}/style?at=data:text/css,")
                await page.call("Page.navigate", url=link)
                shown = [link, "image/gif" if "gif" in about[1] else "image/png"] if about[1].startswith("image/") else None
                if shown is not None:
                    await page.until(f"location.href === {json.dumps(link)} && document.readyState === 'complete'", f"{about} is shown")
                found = json.loads(await page.js("JSON.stringify([location.href, document.contentType])"))
                assert found == (shown or [f"{site}/style?at=data:text/css,", "text/html"]), about
                assert RAN not in await page.js("document.title"), about
    assert reports == []
