"""Lists of approvals: they answer what each approval answers by itself, and the store is not asked the more often the more there are."""

import asyncio
import base64
import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from urllib.parse import urlsplit

import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2

from services.common.envelope import Envelope, RootKeys
from services.common.errors import PermissionDenied
from services.common.identity import Principal
from services.common.valkey import connect
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store import Store
from services.orchestrator.approvals.deciding import Deciding, state_of
from services.orchestrator.approvals.pages import MOST_PAGE_BYTES
from services.orchestrator.approvals.records import Decision, Interrupt, Who
from services.orchestrator.records import RunRef
from services.orchestrator.servicers.approvals import approval_message
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.runs import CANCELLED, CRASHES, QUEUED, done, spec

ALL = {"run_id": "", "thread_id": "", "state": "", "decidable": False}
# Users, each with one run, and how many questions each run asks.
FEW, MANY = (12, 10), (40, 26)
MOST_TRIPS = 61


class Counting:
    """A proxy before the store that counts how often one waits for an answer before something is said again."""

    def __init__(self) -> None:
        self.trips = 0

    @asynccontextmanager
    async def before(self, url):
        target = urlsplit(url)

        async def serve(reader, writer):
            upstream, sink = await asyncio.open_connection(target.hostname, target.port)
            asking = False

            async def out():
                nonlocal asking
                while data := await reader.read(1 << 20):
                    self.trips += not asking
                    asking = True
                    sink.write(data)
                sink.close()

            async def back():
                nonlocal asking
                while data := await upstream.read(1 << 20):
                    asking = False
                    writer.write(data)
                writer.close()

            await asyncio.gather(out(), back(), return_exceptions=True)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        try:
            yield client
        finally:
            await client.aclose()
            server.close()


def question(ref, number, user, n):
    who = Who(users=("bo",)) if n % 3 else Who()
    requester = {"tenant": "acme", "user": user}
    return Interrupt(
        f"{ref.run_id}/1/{number}", "tool_call", ref.run_id, ref.thread_id, 1, number, "c", requester, "wipe", "1", '{"n":1}', "d", "{}",
        "by_tool", n + 1, 10**13 if n % 5 else 5, "reject", who,
    )  # fmt: skip


@pytest.fixture
async def listed(request, state_url, tmp_path):
    """A tenant with many questions of many users, whose runs are at work, cancelled or ended: how its store is opened, and what counts."""
    users, each = request.param
    counting = Counting()
    roots = tmp_path / "roots.json"
    roots.write_bytes(orjson.dumps({"keys": [{"id": "1", "key": base64.b64encode(bytes(32)).decode()}]}))

    def sealed(client):
        store = Store(client, "one")
        store.sealing = Sealing(Envelope(client, RootKeys.from_file(roots)), store.user_of)
        return store

    plain = connect(state_url)
    store = sealed(plain)

    async def asks(number, user):
        ref = RunRef("acme", f"t-{user}", uuid.uuid4().hex)
        await store.open_thread("acme", user, ref.thread_id, {})
        whose = replace(spec(ref.thread_id), principal={"tenant": "acme", "user": user})
        reservation = await store.reserve(ref, user, 0, "", "")
        await store.accept(ref, user, whose, "stable", reservation, "", (QUEUED, CANCELLED))
        epoch = (await store.claim(ref, 600.0, CRASHES)).record.epoch
        questions = [question(ref, n, user, number * each + n) for n in range(each)]
        await store.enlist(ref, [q.interrupt_id for q in questions] + [f"{ref.run_id}/2/0"])
        raised, _ = await store.raise_interrupts(ref, epoch, "", questions)
        for one in raised[::4]:
            await store.settle_interrupt(ref, one, one.answered("approved", Decision("approve", "bo", 5, one.digest)), "")
        if number % 4 == 1:
            await store.cancel(ref, "", CANCELLED, "")
        if number % 4 == 2:
            await store.write(ref, epoch, 1, "", [], mode="f", terminal=done())

    for number in range(users):
        await asks(number, f"u{number}")
    async with counting.before(state_url) as client:
        yield partial(sealed, client), counting
    await plain.aclose()


def deciding(store):
    nothing = SimpleNamespace()
    return Deciding(store, store, nothing, nothing, nothing)  # type: ignore[arg-type]


async def pages(people, who, size, **asked):
    found, before = [], 0
    while True:
        some, before = await people.list_(who, **{**ALL, **asked}, before=before, size=size)
        found += some
        if not before:
            return found


@pytest.mark.parametrize("listed", [FEW], indirect=True)
async def test_a_list_answers_what_each_approval_answers_by_itself(listed):
    store = listed[0]()
    people = deciding(store)
    ids = [entry.interrupt_id for entry in await store.listed("acme", open_only=False, before=0, size=10_000)]
    for who in (Principal("acme", "bo"), Principal("acme", "u1"), Principal("acme", "u6"), Principal("acme", "eve")):
        expected = []
        for interrupt_id in ids:
            if interrupt_id.endswith("/2/0"):
                continue
            try:
                expected.append(await people.get(who, interrupt_id))
            except PermissionDenied:
                continue
        assert await pages(people, who, 7) == expected
        for state in ("open", "approved", "expired", "cancelled"):
            assert await pages(people, who, 1_000, state=state) == [s for s in expected if state_of(s) == state]
        assert await pages(people, who, 30, decidable=True) == [s for s in expected if s.decidable]
        assert await pages(people, who, 30, thread_id="t-u6", state="cancelled") == [
            s for s in expected if s.interrupt.thread_id == "t-u6" and s.state == "cancelled"
        ]
        for run_id in {s.interrupt.run_id for s in expected}:
            of_run = sorted((s for s in expected if s.interrupt.run_id == run_id), key=lambda s: -s.interrupt.created_ms)
            assert await pages(people, who, 1, run_id=run_id) == of_run
    # What leads nowhere, and what nobody can answer any more, is left out from now on; what is listed before it is made is not.
    users, each = FEW
    at_work = users * 3 // 4
    for open_only in (False, True):
        left = [entry.interrupt_id for entry in await store.listed("acme", open_only=open_only, before=0, size=10_000)]
        assert sum(interrupt_id.endswith("/2/0") for interrupt_id in left) == at_work
        assert len(left) == users * each + at_work or open_only


@pytest.mark.parametrize("listed", [MANY], indirect=True)
async def test_a_page_that_looks_at_a_thousand_questions_asks_the_store_a_few_times(listed):
    opened, counting = listed
    people = deciding(opened())
    await people.list_(Principal("acme", "bo"), **ALL, before=0, size=1)
    for user, asked in (("eve", {}), ("bo", {"state": "rejected"}), ("bo", {"decidable": True}), ("bo", {})):
        counting.trips = 0
        # No key of any user is at hand.
        people = deciding(opened())
        _, following = await people.list_(Principal("acme", user), **{**ALL, **asked}, before=0, size=1_000)
        assert following > 0
        assert counting.trips < MOST_TRIPS
    counting.trips = 0
    (run_id,) = {seen.interrupt.run_id for seen in await pages(people, Principal("acme", "u5"), 1_000)}
    counting.trips = 0
    assert len(await pages(people, Principal("acme", "u5"), 100, run_id=run_id)) == MANY[1]
    assert counting.trips <= 6


BIG = "x" * 200_000


@pytest.mark.parametrize("listed", [(1, 4)], indirect=True)
async def test_a_page_ends_before_it_is_more_than_a_message_holds(listed):
    store = listed[0]()
    ref = RunRef("acme", "t-big", uuid.uuid4().hex)
    await store.open_thread("acme", "u0", ref.thread_id, {})
    reservation = await store.reserve(ref, "u0", 0, "", "")
    await store.accept(ref, "u0", replace(spec(ref.thread_id), principal={"tenant": "acme", "user": "u0"}), "stable", reservation, "",
                       (QUEUED, CANCELLED))  # fmt: skip
    epoch = (await store.claim(ref, 600.0, CRASHES)).record.epoch
    asked = [replace(question(ref, n, "u0", n), arguments=orjson.dumps({"n": n, "text": BIG}).decode()) for n in range(25)]
    # Larger than a page by itself.
    asked[5] = replace(asked[5], arguments=orjson.dumps({"text": BIG * 17}).decode())
    await store.enlist(ref, [one.interrupt_id for one in asked])
    await store.raise_interrupts(ref, epoch, "", asked)
    people, whole = deciding(store), {"weigh": lambda one: approval_message(one).ByteSize()}
    for some in ({"run_id": ref.run_id}, {"thread_id": ref.thread_id}, {}):
        expected = await pages(people, Principal("acme", "u0"), 1_000, **some)
        assert {one.interrupt_id for one in asked} <= {one.interrupt.interrupt_id for one in expected}
        found, before, sizes = [], 0, []
        while not sizes or before:
            part, before = await people.list_(Principal("acme", "u0"), **{**ALL, **some}, before=before, size=30, **whole)
            sizes.append(sum(approval_message(one).ByteSize() for one in part))
            assert sizes[-1] <= MOST_PAGE_BYTES or len(part) == 1
            found += part
        assert found == expected
        assert len(sizes) < 7, "pages are not smaller than they need to be"


async def test_a_list_of_large_approvals_is_answered_over_the_wire(identities, behind, state_url, tmp_path):
    """What a tool is asked with is the model's and of any size; all of them together are more than a message holds."""
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities) as client:
        connection = connect(state_url)
        store = Store(connection, "test")
        ref = RunRef("acme", "t-big", uuid.uuid4().hex)
        await store.open_thread("acme", "ana", ref.thread_id, {})
        reservation = await store.reserve(ref, "ana", 0, "", "")
        await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
        epoch = (await store.claim(ref, 600.0, CRASHES)).record.epoch
        asked = [replace(question(ref, n, "ana", n), arguments=orjson.dumps({"text": BIG}).decode()) for n in range(30)]
        await store.enlist(ref, [one.interrupt_id for one in asked])
        await store.raise_interrupts(ref, epoch, "", asked)
        for fields in ({"run_id": ref.run_id}, {}):
            found, token = [], ""
            while not found or token:
                with client.calling():
                    page = await client.approvals.ListApprovals(approvals_pb2.ListApprovalsRequest(page_token=token, **fields))
                found, token = [*found, *(one.approval_id for one in page.approvals)], page.next_page_token
            assert sorted(found) == sorted(one.interrupt_id for one in asked)
        await connection.aclose()
