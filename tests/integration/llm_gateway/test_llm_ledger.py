"""The ledger: pages, filters, reports, spending, forgetting a user, and files."""

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from services.common import embedded, testing
from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import InvalidInput
from services.common.identity import Principal
from services.common.valkey import connect
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters import purse as purse_module
from services.llm_gateway.adapters.ledger import ERASED, Ledger, Subjects
from services.llm_gateway.adapters.ledger_archive import LedgerArchive
from services.llm_gateway.adapters.purse import LedgerBounds, ValkeyPurse
from services.llm_gateway.fakes import FixedLimits
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask

ANA = Principal("acme", "ana", "key_1", "blue", ("*",), "pro")
BEN = Principal("acme", "ben", "key_2", "red", ("*",), "pro")
TODAY = datetime.now(UTC).date()


def archived(folder: Path) -> list[dict]:
    """The lines of a tenant's files, oldest first."""
    return [orjson.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


class Book:
    """A purse that writes and a ledger that reads."""

    def __init__(self, client, bounds: LedgerBounds = LedgerBounds()) -> None:
        self.client = client
        self.plans = Plans(FixedLimits(PrincipalLimits()), lambda _: None, Subjects(client))
        self.purse = ValkeyPurse(client, self.plans, timeout_s=5.0, bounds=bounds)
        self.ledger = Ledger(client)

    async def call(self, call_id: str, principal: Principal = ANA, group: str = "gpt", *, status: str = "ok", metadata=None) -> None:
        asked = Ask(call_id, 1, principal, group, "d1", "openai", "chat", 100, 1_000_000, 60.0, run_id="r1")
        ticket = await self.purse.reserve(asked)
        usage = Usage(input=10, output=5, cached_input=2, reasoning=1, cost_picousd=250_000_000, estimated=status != "ok")
        self.purse.settle(ticket, usage, status=status, latency_s=0.1, metadata=metadata)
        assert await self.purse.drain(5.0) == 0

    async def all_pages(self, **filters) -> list[dict]:
        found, cursor = [], ""
        while True:
            page = await self.ledger.lines("acme", cursor=cursor, **filters)
            found += page.lines
            cursor = page.cursor
            if not cursor:
                return found

    async def reports(self, **filters) -> list:
        return [report async for report in self.ledger.reports("acme", TODAY - timedelta(days=1), TODAY + timedelta(days=1), **filters)]


@pytest_asyncio.fixture
async def book(valkey):
    made = Book(valkey)
    yield made
    await made.purse.stop()


async def test_pages_join_to_all_lines_in_order(book):
    for number in range(7):
        await book.call(f"c{number}")
    assert [line["call_id"] for line in await book.all_pages(limit=3)] == [f"c{number}" for number in range(7)]
    page = await book.ledger.lines("acme", limit=3)
    assert (len(page.lines), bool(page.cursor)) == (3, True)
    assert (await book.ledger.lines("globex")).lines == []


async def test_lines_are_found_by_whom_what_and_when(book):
    await book.call("c1")
    middle = (await book.ledger.lines("acme")).lines[0]["at"] + 1
    await asyncio.sleep(0.003)
    await book.call("c2", BEN, "mini")
    for filters in (
        {"key_id": "key_2"}, {"user": "ben"}, {"team": "red"}, {"model": "mini"}, {"call_id": "c2"}, {"start_ms": middle},
        {"user": "ben", "model": "mini", "run_id": "r1"},
    ):  # fmt: skip
        assert [line["call_id"] for line in await book.all_pages(**filters)] == ["c2"], filters
    for filters in ({"end_ms": middle}, {"user": "ana"}):
        assert [line["call_id"] for line in await book.all_pages(**filters)] == ["c1"], filters
    for filters in ({"user": "nobody"}, {"user": "ben", "model": "gpt"}, {"run_id": "r2"}):
        assert await book.all_pages(**filters) == []


@pytest.mark.parametrize("cursor", ["x", "1-2-3", "-", "1-", "99999999999999999999-0", "(1-1"])
async def test_a_cursor_that_is_none_is_refused(book, cursor):
    with pytest.raises(InvalidInput):
        await book.ledger.lines("acme", cursor=cursor)


async def test_reports_add_up_by_key_user_team_and_model(book):
    for principal, group, status in ((ANA, "gpt", "ok"), (ANA, "gpt", "cut"), (ANA, "mini", "ok"), (BEN, "gpt", "ok")):
        await book.call("c", principal, group, status=status)
    reports = await book.reports()
    assert {(r.key, r.user, r.team, r.model): r.counts.calls for r in reports} == {
        ("key_1", "ana", "blue", "gpt"): 2,
        ("key_1", "ana", "blue", "mini"): 1,
        ("key_2", "ben", "red", "gpt"): 1,
    }
    (both,) = await book.reports(key_id="key_1", model="gpt")
    assert both.day == TODAY
    assert both.counts._asdict() == {
        "calls": 2, "input_tokens": 20, "output_tokens": 10, "cached_tokens": 4, "reasoning_tokens": 2, "cost_nanousd": 500_000,
        "estimated": 1, "failed": 1,
    }  # fmt: skip
    assert sum(r.counts.cost_nanousd for r in await book.reports(team="red")) == 250_000


async def test_a_day_with_too_many_entries_gathers_the_rest(valkey):
    book = Book(valkey, LedgerBounds(report_entries=2))
    for number in range(5):
        await book.call("c", replace(ANA, user=f"u{number}"))
    reports = await book.reports()
    assert [(r.user, r.model, r.counts.calls) for r in reports if not r.key] == [("", "gpt", 3)]
    assert sum(r.counts.calls for r in reports) == 5
    assert all([await valkey.pttl(key) > 0 for key in await valkey.keys("llm:{acme}:report:*")])
    await book.purse.stop()


async def test_the_ledger_is_bounded(valkey):
    book = Book(valkey, LedgerBounds(lines=100))
    calls = [book.call(f"c{number}") for number in range(400)]
    await asyncio.gather(*calls)
    assert 100 <= await valkey.xlen("llm:{acme}:ledger") < 350
    (total, *_) = await book.ledger.spend("acme", "tenant", "acme")
    assert total.spent_nanousd == 400 * 250_000
    await book.purse.stop()


async def test_spending_is_known_without_any_cap(book):
    await book.call("c1")
    await book.call("c2", BEN)
    for scope, id_, spent in (("key", "key_1", 1), ("user", "ben", 1), ("team", "red", 1), ("tenant", "acme", 2), ("model", "gpt", 2)):
        total, day, month = await book.ledger.spend("acme", scope, id_)
        assert [b.spent_nanousd for b in (total, day, month)] == [spent * 250_000] * 3
        assert (total.period, day.period, month.period, total.limit_nanousd, total.resets_at) == ("", "1d", "1mo", None, 0)
        assert day.resets_at <= month.resets_at
    limited = await book.ledger.spend("acme", "key", "key_1", LimitSet(max_budget_microusd=5, budget_period="1mo"))
    assert [b.limit_nanousd for b in limited] == [None, None, 5_000]
    assert (await book.ledger.spend("acme", "user", "nobody"))[0].spent_nanousd == 0


async def test_a_forgotten_user_is_nowhere_to_be_found(book, tmp_path):
    await book.call("c1", metadata={"patient": "Jane Roe"})
    await book.call("c2", BEN)
    archive = LedgerArchive(book.client, tmp_path)
    assert await archive.copy() == 2
    assert await book.ledger.erase_user("acme", "ana") == 1
    book.plans.forget_user("acme", "ana")
    assert await book.ledger.erase_user("acme", "ana") == 0
    first, second = (await book.ledger.lines("acme")).lines
    assert (first["user"], first["cost_nanousd"], "metadata" in first) == (ERASED, 250_000, False)
    assert second["user"] == "ben"
    assert (await book.ledger.lines("acme", user="ana")).lines == []
    assert {report.user for report in await book.reports()} == {ERASED, "ben"}
    await book.call("c3")
    assert [line["call_id"] for line in (await book.ledger.lines("acme", user="ana")).lines] == ["c3"]
    stored = b"".join([path.read_bytes() for path in tmp_path.rglob("*.jsonl")])
    assert b"ana" not in stored
    assert b"Jane" not in stored
    await archive.stop()
    for key in await book.client.keys("llm:*"):
        if key not in (b"llm:{acme}:subjects", b"llm:{acme}:pseudonyms"):
            assert b"ana" not in key
            assert b"Jane" not in await book.client.dump(key)


async def test_everything_of_a_tenant_shares_one_hash_tag(book):
    await book.call("c1")
    assert {key for key in await book.client.keys("*") if not key.startswith(b"llm:{acme}:")} == {
        b"llm:{purse}:tenants",
        b"llm:{purse}:ledgers",
    }


async def test_files_hold_each_line_once_whatever_happens(book, tmp_path):
    tenants = [ANA, replace(ANA, tenant="../odd name")]
    for number in range(5):
        for principal in tenants:
            await book.call(f"c{number}", principal)
    first = LedgerArchive(book.client, tmp_path)
    assert await first.copy() == 10
    assert await first.copy() == 0
    second = LedgerArchive(book.client, tmp_path)
    # The folder has one writer.
    assert await second.copy() == 0
    await first.stop()
    # A crash has torn the last line.
    (file,) = (tmp_path / "acme").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    await book.call("c5")
    assert await second.copy() == 2
    await second.stop()
    assert [line["call_id"] for line in archived(tmp_path / "acme")] == [f"c{number}" for number in range(6)]
    assert [line["call_id"] for line in archived(tmp_path / "%2E.%2Fodd name")] == [f"c{number}" for number in range(5)]
    assert {path.parent for path in tmp_path.glob("*/*.jsonl")} == {tmp_path / "acme", tmp_path / "%2E.%2Fodd name"}


async def test_no_name_of_a_tenant_leads_out_of_the_archive_or_keeps_others_out_of_it(book, tmp_path):
    folder = tmp_path / "ledger"
    folder.mkdir()
    names = ["..", ".", ".lock", "ä" * 128, "ä" * 127 + "ö", "zoe"]
    for name in names:
        await book.call("c1", replace(ANA, tenant=name))
    archive = LedgerArchive(book.client, folder)
    assert await archive.copy() == len(names)
    await archive.stop()
    assert len(list(folder.glob("*/*.jsonl"))) == len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


async def test_the_archive_copies_by_itself(book, tmp_path):
    archive = LedgerArchive(book.client, tmp_path / "new", every_s=0.01)
    await archive.start()
    await book.call("c1")
    await testing.eventually_async(lambda: archived(tmp_path / "new" / "acme"), "the line is in a file")
    await book.call("c2")
    await archive.stop()
    assert len(archived(tmp_path / "new" / "acme")) == 2


async def test_the_calendar_of_the_store_is_right(valkey):
    code = Path(purse_module.__file__).with_name("purse.lua").read_text()
    functions = code[code.index("local known_day") : code.index("-- Where the window of a budget ends")]
    script = f"""local floor = math.floor
        {functions}
        local found = {{}}
        for i, day in ipairs(ARGV) do found[i] = {{month_of(tonumber(day)), day_of_month(month_of(tonumber(day)))}} end
        return found"""
    days = [*range(20_000, 22_500, 7), *range(20_450, 20_900), 0, 11_016, 47_540, 60_000]
    for day, (month, first) in zip(days, await valkey.eval(script, 0, *days), strict=True):
        expected = date(1970, 1, 1) + timedelta(days=day)
        assert month == (expected.year - 1970) * 12 + expected.month - 1
        assert date(1970, 1, 1) + timedelta(days=first) == expected.replace(day=1)


async def test_a_store_in_cluster_mode_finds_every_key_of_a_call_in_one_slot(tmp_path):
    port = testing.free_port()
    command = [*embedded.valkey_state_command(port, tmp_path), "--cluster-enabled", "yes", "--cluster-port", str(testing.free_port())]
    process = testing.Process(command, log=tmp_path / "valkey.log")
    testing.wait_for_port(port, process)
    client = connect(f"redis://127.0.0.1:{port}/0")
    try:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def formed():
            return b"cluster_state:ok" in await client.execute_command("CLUSTER", "INFO")

        await testing.eventually_async(formed, "the cluster is formed")
        book = Book(client)
        asked = Ask("c", 1, ANA, "gpt", "d1", "openai", "chat", 100, 1_000_000, 0.0, run_id="r", run_budget_microusd=1_000)
        late, ticket = await book.purse.reserve(asked), await book.purse.reserve(replace(asked, run_id="q"))
        assert await book.purse.sweep() == 2
        book.purse.settle(late, Usage(cost_picousd=10**9), status="ok", latency_s=0.1)
        book.purse.release(ticket)
        assert await book.purse.drain(5.0) == 0
        assert [line["status"] for line in (await book.ledger.lines("acme")).lines] == ["lost", "lost", "corrected", "corrected"]
        assert (await book.reports())[0].counts.cost_nanousd == 1_000_000
        await book.purse.stop()
    finally:
        await client.aclose()
        process.kill()
