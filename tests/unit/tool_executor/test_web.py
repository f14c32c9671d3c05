"""The open web's guard: what counts as public, what an allow-list covers, and that an address is looked up once."""

import ipaddress

import pytest
from aiohttp import web as server
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.public_address import is_public
from services.tool_executor.adapters.web import OpenWeb
from services.tool_executor.builtin.http_fetch import Host, HttpFetchOptions
from services.tool_executor.builtin.page_text import text_of_html
from services.tool_executor.failures import ToolFailure


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255",
        "224.0.0.1", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:0:53aa:64c:0:fbff:f5ff:fffe", "2001:db8::1", "::127.0.0.1", "::a00:1", "fec0::1", "168.63.129.16", "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public(address):
    assert is_public(address)


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_inside_ipv6_as_outside(address):
    assert is_public(f"::ffff:{address}") == is_public(str(address))
    if ipaddress.ip_address(address).is_private:
        assert not is_public(str(address))


ALLOW = HttpFetchOptions(
    allow=[
        Host(host="example.com"),
        Host(host="*.wiki.org"),
        Host(host="127.0.0.1", port=8099, private=True),
        Host(host="Upper.Example"),
    ]
).allowed()


@pytest.mark.parametrize(
    ("scheme", "host", "port", "answer"),
    [
        ("https", "example.com", 443, False),
        ("http", "example.com", 80, False),
        ("https", "EXAMPLE.com", 443, False),
        ("https", "upper.example", 443, False),
        ("http", "127.0.0.1", 8099, True),
        ("https", "en.wiki.org", 443, False),
        ("https", "a.b.wiki.org", 443, False),
        ("https", "wiki.org", 443, None),
        ("https", "evilwiki.org", 443, None),
        ("https", "notexample.com", 443, None),
        ("https", "sub.example.com", 443, None),
        ("https", "example.com.evil.org", 443, None),
        ("https", "example.com", 8443, None),
        ("http", "example.com", 443, None),
        ("http", "127.0.0.1", 80, None),
    ],
)
def test_the_allow_list(scheme, host, port, answer):
    assert ALLOW(scheme, host, port) is answer


def test_an_empty_allow_list_allows_nothing():
    assert HttpFetchOptions().allowed()("https", "example.com", 443) is None
    for host in ("*", "*.", "http://example.com", "exa mple.com", ""):
        with pytest.raises(ValidationError):
            Host(host=host)


class Names:
    """A name server that answers something else each time, as a rebinding attacker's does."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, host, port):
        self.asked.append(host)
        if not self.answers:
            raise OSError("no such host")
        return self.answers.pop(0)


def everywhere(scheme, host, port):
    return False


async def get(names, url, allowed=everywhere):
    return await OpenWeb(names).get(url, allowed, 1000, lambda received, total: None)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"]])
async def test_a_name_that_leads_to_any_private_address_is_refused(addresses):
    with pytest.raises(ToolFailure) as caught:
        await get(Names(addresses), "http://public.example/")
    assert caught.value.code == "policy.denied"


async def test_the_connection_goes_to_the_address_that_was_checked():
    app = server.Application()

    async def host(request):
        return server.Response(text=request.host)

    app.router.add_get("/", host)
    runner = server.AppRunner(app)
    await runner.setup()
    await server.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    names = Names(["127.0.0.1"])
    try:
        # Allowed as private here, so that the test has something to connect to; a second look-up would fail.
        page = await get(names, f"http://rebinding.example:{port}/", lambda *_: True)
    finally:
        await runner.cleanup()
    assert page.body == f"rebinding.example:{port}".encode()
    assert names.asked == ["rebinding.example"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/", "input.invalid"),
        ("file:///etc/passwd", "input.invalid"),
        ("//example.com/", "input.invalid"),
        ("http://", "input.invalid"),
        ("http://user:pw@example.com/", "input.invalid"),
        ("http://user@example.com/", "input.invalid"),
        ("http://[::1", "input.invalid"),
        ("http://example.com:99999/", "input.invalid"),
        ("http://example.com/" + "x" * 5000, "input.invalid"),
        ("http://nowhere.example/", "transport.unreachable"),
    ],
)
async def test_bad_addresses(url, code):
    with pytest.raises(ToolFailure) as caught:
        await get(Names(), url)
    assert caught.value.code == code


@settings(deadline=None)
@given(st.text(max_size=60))
async def test_any_text_as_address_is_a_failure_of_the_tool_and_nothing_else(text):
    with pytest.raises(ToolFailure):
        await get(Names(), text)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a</p><p>b</p>", "a\nb"),
        ("<title> T </title>x", "T\nx"),
        ("a<script>var x = '<p>no</p>'</script>b", "ab"),
        ("<head><meta><body>shown", "shown"),
        ("a &lt;b&gt; &#65;", "a <b> A"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1\n2"),
        ("<p>unclosed <b>bold", "unclosed bold"),
        ("", ""),
    ],
)
def test_text_of_pages(html, text):
    assert text_of_html(html) == text


@settings(deadline=None)
@given(st.text(max_size=100), st.sampled_from(["script", "style", "noscript", "template"]))
def test_what_no_reader_sees_is_left_out(html, tag):
    before = html.replace("<", " ").replace("&", " ")
    assert "HIDDEN" not in text_of_html(f"<p>{before}</p><{tag}>HIDDEN</{tag}>")
    assert text_of_html(f"<p>{before}</p><{tag}>HIDDEN</{tag}><p>SHOWN</p>").endswith("SHOWN")
