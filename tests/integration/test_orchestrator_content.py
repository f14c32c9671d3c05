"""What a real tool gives to be shown, behind a real executor: events, blobs, and what model, log and memory get in the place of bytes."""

import asyncio
import base64
import csv
import io
from contextlib import asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import NotFound
from services.common.limits import TierPolicy
from services.gateway.surfaces.schemas.events import SCHEMA
from services.orchestrator.adapters import blob_contents
from services.orchestrator.adapters.blob_records import DUE
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import ENDED
from services.orchestrator.blobs import tending
from services.orchestrator.records import RunRef
from services.orchestrator.testing.fakes import DONE
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from services.orchestrator.testing.whole_threads import delete, fork, remembered
from services.orchestrator.turn import content
from tests.contract.event_schema import problems
from tests.integration.blob_client import Blobs, contents, encoded, png
from tests.integration.rows import ASK, rows_outside

IMAGE, SOUND, PAPER = png(7, 5, b"swordfish4711"), b"OggS\0\2" + b"swordfish4711" * 9, b"%PDF-1.7 swordfish4711"
# What of the bytes, in base64, would tell that they are there; at each of its three places it begins differently.
TRACES = [base64.b64encode(b"-" * at + b"swordfish4711")[4:12] for at in range(3)]
CODE = "print('größe')\n"
TABLE = {"type": "table", "title": "Sums", "columns": ["a", "b"], "rows": [[1, "x"], [2.5, None], [True, 'größe, "so"\n']]}
CHART = {
    "type": "chart", "chart_type": "line", "title": "Rise", "x_label": "day", "y_label": "sum", "alt": "It rises.",
    "series": [{"name": "s", "points": [["mon", 1], ["tue", 2.5]]}, {"name": "t", "points": [[1, 2]]}],
}  # fmt: skip
PARTS = [
    {"type": "text", "text": "Here is all of it."},
    {"type": "image", "data": encoded(IMAGE), "mimeType": "image/png", "alt": "a square", "name": "../square.png"},
    {"type": "audio", "data": encoded(SOUND), "mimeType": "audio/ogg", "transcript": "a word"},
    {"type": "resource", "resource": {"uri": "file:///tmp/paper.pdf", "mimeType": "application/pdf", "blob": encoded(PAPER)}},
    {"type": "resource", "resource": {"uri": "x://notes.md", "mimeType": "text/markdown", "text": "# Notes"}},
    {"type": "file", "data": encoded(b"PK\x03\x04swordfish4711"), "mimeType": "application/vnd.ms-excel", "name": "sums.xls"},
    TABLE,
    {"type": "code", "language": "python", "text": CODE, "name": "a.py"},
    CHART,
]
SHOWN = ["image", "audio", "file", "file", "file", "table", "code_block", "chart"]


class Scene:
    def __init__(self, client, blobs, settings, outside, behind):
        self.client, self.blobs, self.settings, self.outside, self.behind = client, blobs, settings, outside, behind

    def gives(self, *parts, **more):
        """What the tool gives from now on."""
        body = orjson.dumps({"content": list(parts), **more})
        self.outside.answers["/rows"] = [(200, {"Content-Type": "application/json"}, body)]

    async def asked(self, thread_id="t1"):
        """A run that asks the tool, ended; its events."""
        run = await self.client.wait((await self.client.start(ASK, agent="reader", thread_id=thread_id)).run_id)
        assert run.status == pb.RUN_STATUS_SUCCEEDED
        return run, await self.client.log(run.run_id)

    def given(self):
        """What the model was given of the tool, call by call."""
        return [m.text for call in self.behind.models.calls for m in call.request.messages if m.role == "tool"]


@asynccontextmanager
async def scene_of(identities, behind, state_url, tmp_path, **fields):
    async with rows_outside(identities, behind, state_url, tmp_path, b"{}") as (outside, config):
        values = {"segments_dir": tmp_path / "blobs", "segments_after_s": 0.3, **fields}
        settings = settings_for(identities, behind, state_url, config, **values)
        async with served(settings, identities) as client, testing.dialer(
            "gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}
        ) as dialer:  # fmt: skip
            yield Scene(client, Blobs(dialer, identities), settings, outside, behind)


@pytest.fixture
async def scene(identities, behind, state_url, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(tending, "TURN_S", 0.05)
    async with scene_of(identities, behind, state_url, tmp_path) as made:
        yield made


def told(events, kind):
    return [data_of(event) for event in events if event.type == kind]


def shown(events):
    """The events right behind the result."""
    after = events[types(events).index("tool_call_completed") + 1 :]
    return [event for event in after if event.type in {*SHOWN, "warning"}]


async def test_each_part_is_an_event_right_behind_its_call_and_its_bytes_are_a_blob(scene, valkey):
    scene.gives(*PARTS, structuredContent={"sum": 3})
    _, events = await scene.asked()
    place = types(events).index("tool_call_completed")
    assert types(events)[place + 1 : place + 10] == [*SHOWN, "step_completed"]
    # One write has one date.
    assert len({event.occurred_at.ToNanoseconds() for event in events[place : place + 10]}) == 1
    assert not problems([native(event) for event in events[place : place + 9]])
    for number, event in enumerate(events[place + 1 : place + 9]):
        data = data_of(event)
        assert (data["content_id"], data["call_id"]) == (f"c0/{number}", "c0")
        if "blob_id" in data:
            blob, whole = await scene.blobs.read(data["blob_id"])
            assert (blob.mime_type, blob.size, blob.sha256, blob.name) == tuple(data[n] for n in ("mime_type", "size", "sha256", "name"))
            assert (blob.thread_id, len(whole), blob.HasField("expires_at")) == ("t1", data["size"], False)
    (image,) = told(events, "image")
    assert (image["width"], image["height"], image["alt"], image["name"], image["title"]) == (7, 5, "a square", "square.png", "")
    assert (await scene.blobs.read(image["blob_id"]))[1] == IMAGE
    (audio,) = told(events, "audio")
    assert (audio["mime_type"], audio["transcript"]) == ("audio/ogg", "a word")
    assert [(f["mime_type"], f["name"]) for f in told(events, "file")] == [
        ("application/pdf", "paper.pdf"), ("text/markdown", "notes.md"), ("application/octet-stream", "sums.xls"),
    ]  # fmt: skip
    (table,) = told(events, "table")
    assert (table["title"], table["columns"], table["rows"], table["total_rows"]) == ("Sums", TABLE["columns"], TABLE["rows"], 3)
    (code,) = told(events, "code_block")
    assert (code["language"], code["text"], code["name"]) == ("python", CODE, "a.py")
    (chart,) = told(events, "chart")
    assert {name: chart[name] for name in CHART if name != "type"} == {name: CHART[name] for name in CHART if name != "type"}
    assert not told(events, "warning")
    assert len(contents(scene.settings.segments_dir)) == 5


async def test_no_bytes_reach_the_model_the_log_the_checkpoint_or_memory(scene, valkey, caplog):
    scene.gives(*PARTS)
    run, events = await scene.asked()
    (image,) = told(events, "image")
    (given,) = scene.given()
    stands = orjson.loads(given)["content"]
    assert stands[0] == PARTS[0]
    assert stands[1] == {"type": "image", "blob_id": image["blob_id"], "mimeType": "image/png", "size": len(IMAGE), "alt": "a square"}
    assert [part["type"] for part in stands] == ["text", "image", "audio", "file", "resource", "file", "table", "code", "chart"]
    assert stands[3]["uri"] == "file:///tmp/paper.pdf"
    assert stands[4] == PARTS[4]
    assert orjson.loads(given) == told(events, "tool_call_completed")[0]["output"]
    await remembered(scene.behind, run)
    places = [given.encode(), *(event.data_json for event in events), repr(scene.behind.sessions.turns).encode(), caplog.text.encode()]
    for key in await valkey.keys("t:*"):
        places.append(await valkey.dump(key) or b"")
    for place in places:
        assert not [trace for trace in TRACES if trace in place]


async def test_what_is_no_list_of_parts_stays_byte_for_byte_as_it_is(scene):
    for body in (
        '{"content":"text", "a": 1}',
        '{"content":[1,"x",{"type":"unknown","data":"x"},{"type":"text","text":"a"},{}]}',
        '["content"]',
    ):
        scene.outside.answers["/rows"] = [(200, {"Content-Type": "application/json"}, body.encode())]
        _, events = await scene.asked()
        assert orjson.loads(scene.given()[-1]) == orjson.loads(body)
        assert not shown(events)


WRONG = [
    {"type": "image", "data": "no base64!", "mimeType": "image/png"},
    {"type": "image", "data": encoded(b"swordfish4711"), "mimeType": "image/png"},
    {"type": "image", "data": encoded(png(10_000, 10_000, b"swordfish4711")), "mimeType": "image/png"},
    {"type": "image", "data": encoded(b"<svg>swordfish4711</svg>"), "mimeType": "image/svg+xml"},
    {"type": "audio", "data": encoded(IMAGE), "mimeType": "audio/wav"},
    {"type": "audio", "data": encoded(IMAGE), "mimeType": "image/png"},
    {"type": "file", "data": "", "mimeType": "text/plain", "name": "a"},
    {"type": "file", "name": "a"},
    {"type": "resource", "resource": {"uri": "x", "blob": 7}},
    {"type": "resource", "resource": "x"},
    {"type": "table", "columns": ["a"], "rows": [[1, 2]]},
    {"type": "table", "columns": [], "rows": []},
    {"type": "table", "columns": ["a"], "rows": [[{"deep": 1}]]},
    {"type": "table", "columns": ["x" * 40_000], "rows": []},
    {"type": "code", "text": 1},
    {"type": "chart", "chart_type": "radar", "series": [{"name": "s", "points": [[1, 2]]}]},
    {"type": "chart", "chart_type": "bar", "series": []},
    {"type": "chart", "chart_type": "bar", "series": [{"name": "s", "points": [[1, "2"]]}]},
    {"type": "chart", "chart_type": "bar", "series": [{"name": "s", "points": [[1, True]]}]},
    {"type": "chart", "chart_type": "bar", "series": [{"name": "s", "points": [[1, 2]] * 2_001}]},
    {"type": "chart", "chart_type": "bar", "series": [{"name": "s", "points": [[1, 2]]}] * 21},
    {"type": "chart", "chart_type": "bar", "series": [{"name": "s", "points": [["x" * 40_000, 2]]}]},
]


async def test_parts_that_are_wrong_are_told_once_and_shown_by_nobody(scene, valkey):
    scene.gives(*WRONG, PARTS[1])
    _, events = await scene.asked()
    assert types(shown(events)) == ["image", "warning"]
    (warning,) = told(events, "warning")
    assert (warning["code"], warning["attributes"]["parts"]) == ("content_refused", list(range(len(WRONG))))
    assert (warning["attributes"]["tool"], warning["attributes"]["call_id"]) == ("read_rows", "c0")
    assert len(contents(scene.settings.segments_dir)) == 1
    stands = told(events, "tool_call_completed")[0]["output"]["content"]
    for part, stood in zip(WRONG[9:], stands[9:], strict=False):
        assert part == stood
    # Of bytes that were refused the model is told so, and has none.
    assert stands[1] == {"type": "image", "data": {"refused": "is no image/png, by its own bytes"}, "mimeType": "image/png"}
    for key in await valkey.keys("t:*"):
        place = await valkey.dump(key) or b""
        assert not [trace for trace in TRACES if trace in place]


async def test_no_more_parts_are_shown_than_can_be_looked_at(scene):
    scene.gives(*[{"type": "code", "text": f"{n}", "language": "x"} for n in range(70)])
    _, events = await scene.asked()
    assert types(shown(events)) == ["code_block"] * 64 + ["warning"]
    assert told(events, "warning")[0]["attributes"]["parts"] == list(range(64, 70))


async def test_what_is_large_is_shown_by_its_beginning_and_kept_whole(scene):
    rows = [[n, f"größe {n}", None, n % 2 == 0] for n in range(3_000)]
    text = "größe\n" * 12_000
    scene.gives(
        {"type": "table", "columns": ["n", "t", "e", "f"], "rows": rows}, {"type": "code", "language": "", "text": text, "name": ""}
    )
    _, events = await scene.asked()
    (table,), (code,) = told(events, "table"), told(events, "code_block")
    for data, mime_type in ((table, "text/csv"), (code, "text/plain")):
        assert 30 * 1024 < len(orjson.dumps(data)) <= 32 * 1024
        blob, whole = await scene.blobs.read(data["blob_id"])
        assert (data["mime_type"], data["size"], data["sha256"]) == (mime_type, len(whole), blob.sha256)
        if data is code:
            assert (whole.decode(), text.startswith(code["text"])) == (text, True)
        else:
            assert table["rows"] == rows[: len(table["rows"])]
            assert table["total_rows"] == 3_000
            read = list(csv.reader(io.StringIO(whole.decode())))
            assert read == [["n", "t", "e", "f"], *([str(n), t, "", "true" if f else "false"] for n, t, _, f in rows)]
    assert not problems([native(event) for event in shown(events)])


async def test_a_large_result_with_content_is_put_aside_as_a_whole_as_any_other(scene):
    words = "swordfish " * 12_000
    scene.gives({"type": "text", "text": words}, PARTS[1])
    _, events = await scene.asked()
    assert told(events, "tool_call_completed")[0]["output"]["content"][0]["text"] == words
    aside = [path for path in scene.settings.segments_dir.rglob("*") if path.parent.name.endswith("-results")]
    assert len(aside) == 1
    assert types(shown(events)) == ["image"]


# --- a store of blobs that is not there ---


def left_out(events, reason):
    (warning,) = told(events, "warning")
    assert (warning["code"], warning["attributes"]["reason"]) == ("content_unavailable", reason)
    assert warning["user_message"]


async def test_without_a_folder_the_run_goes_on_and_says_what_is_missing(identities, behind, state_url, tmp_path):
    async with scene_of(identities, behind, state_url, tmp_path, segments_dir=None) as scene:
        scene.gives(*PARTS)
        _, events = await scene.asked()
        assert types(shown(events)) == ["table", "code_block", "chart", "warning"]
        left_out(events, "BLOBS_NOT_CONFIGURED")
        stands = orjson.loads(scene.given()[0])["content"]
        assert stands[1] == {
            "type": "image", "unavailable": content._NOT_KEPT, "mimeType": "image/png", "size": len(IMAGE), "alt": "a square",
        }  # fmt: skip


async def test_a_folder_that_hangs_holds_no_run_up(scene, monkeypatch):
    monkeypatch.setattr(content, "KEEP_WITHIN_S", 0.3)
    monkeypatch.setattr(blob_contents, "ASK_WITHIN_S", 600.0)
    monkeypatch.setattr("services.orchestrator.adapters.blob_folder.FolderBlobs.put", lambda *_: asyncio.sleep(600))
    scene.gives(*PARTS)
    _, events = await scene.asked()
    left_out(events, "BLOBS_UNAVAILABLE")


async def test_a_tenant_without_room_is_told(identities, behind, state_url, tmp_path):
    async with scene_of(identities, behind, state_url, tmp_path, blobs_most_bytes_per_tenant=len(IMAGE) + 1) as scene:
        scene.gives(*PARTS)
        _, events = await scene.asked()
        assert types(shown(events)) == ["image", "table", "code_block", "chart", "warning"]
        left_out(events, "BLOB_BYTES_EXCEEDED")


# --- ends ---


async def test_what_a_call_gave_whose_run_was_cancelled_meanwhile_is_shown_too(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), segments_dir=tmp_path / "blobs")
    async with served(settings, identities) as client:
        behind.tools.gate.close()
        run = await client.start('tool calculator {"expression":"1+2"}', thread_id="t1")
        await testing.eventually_async(lambda: behind.tools.gate.waiting, "the tool is at work")
        ((key, seen),) = behind.tools.calls.items()
        # It was done in the moment in which it was to be ended.
        seen.output, behind.tools.forced[key] = orjson.dumps({"content": PARTS}), DONE
        await client.cancel(run.run_id)
        assert (await client.wait(run.run_id)).status == pb.RUN_STATUS_CANCELLED
        events = await client.log(run.run_id)
        assert types(shown(events)) == SHOWN
        assert told(events, "tool_call_completed")[0]["output"]["content"][1]["blob_id"] == told(events, "image")[0]["blob_id"]
        behind.tools.gate.open()


async def test_a_threads_blobs_go_with_it_and_a_forks_stay(scene):
    scene.gives(*PARTS)
    _, events = await scene.asked()
    (image,) = told(events, "image")
    copy = (await fork(scene.client, "t1")).thread.thread_id
    assert told(await scene.client.log(thread_id=copy), "image") == [image]
    link = await scene.blobs.sign(image["blob_id"])
    assert await delete(scene.client, "t1")
    assert (await scene.blobs.read(image["blob_id"]))[1] == await scene.blobs.follow(link.token) == IMAGE
    assert (await scene.blobs.get(image["blob_id"])).thread_id == copy
    assert await delete(scene.client, copy)
    assert not contents(scene.settings.segments_dir)
    for ask in (scene.blobs.read(image["blob_id"]), scene.blobs.follow(link.token)):
        with pytest.raises(NotFound):
            await ask


async def test_what_a_run_showed_ends_with_the_run_where_no_fork_has_it(scene, valkey, monkeypatch):
    scene.gives(PARTS[1])
    first, events = await scene.asked()
    (one,) = told(events, "image")
    copy = (await fork(scene.client, "t1")).thread.thread_id
    scene.gives({**PARTS[1], "data": encoded(png(8, 8))})
    second, events = await scene.asked()
    (two,) = told(events, "image")
    sent = await scene.blobs.put(png(9, 9), thread_id="t1")
    # The retention of the first is over, and whoever deletes it is lost behind that.
    store = Store(valkey, "another")

    async def expired():
        return await store.expire(RunRef("acme", "t1", first.run_id), 0.0)

    await testing.eventually_async(expired, "its outbox is empty")

    async def let_go():
        await valkey.zadd(DUE, dict.fromkeys(await valkey.zrange(DUE, 0, -1), 0), xx=True)
        return (await scene.blobs.get(one["blob_id"])).thread_id == copy

    await testing.eventually_async(let_go, "whoever looks finds that the thread has the run no more, and the fork has it")
    assert await delete(scene.client, copy)
    with pytest.raises(NotFound):
        await scene.blobs.get(one["blob_id"])
    assert (await scene.blobs.read(two["blob_id"]))[1] == png(8, 8)

    async def looked():
        seconds, _ = await valkey.time()
        return min(at for _, at in await valkey.zrange(DUE, 0, -1, withscores=True)) > (seconds + 3_600) * 1000

    await testing.eventually_async(looked, "nobody is to look at them before tomorrow")
    # That of the second is over.
    monkeypatch.setattr(TierPolicy, "retention_s", property(lambda policy: 0.1))
    await valkey.zadd(ENDED, {RunRef("acme", "t1", second.run_id).encode(): 0})
    await testing.eventually_async(lambda: len(contents(scene.settings.segments_dir)) == 1, "its image is gone")
    assert (await scene.blobs.read(sent.blob_id))[1] == png(9, 9)
    with scene.client.calling():
        assert (await scene.client.threads.GetThread(pb.GetThreadRequest(thread_id="t1"))).thread.thread_id == "t1"


def native(event):
    """An event as the gateway's schema has it."""
    return {
        "seq": event.seq, "ts": "2026-01-01T00:00:00.000000Z", "thread_id": event.thread_id, "run_id": event.run_id,
        "attempt": event.attempt, "type": event.type, "data": data_of(event), "provisional": event.provisional, "trace_id": None,
        "schema_version": 1,
    }  # fmt: skip


def test_the_schema_knows_every_kind_of_content():
    assert set(SHOWN) <= set(SCHEMA["$defs"])
