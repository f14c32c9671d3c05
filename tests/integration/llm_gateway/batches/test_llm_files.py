"""Files as callers see them: the openai SDK, raw forms, a disk that is full, and what is left behind."""

import asyncio
import resource
from dataclasses import replace
from datetime import timedelta

import aiohttp
import openai
import orjson
import psutil
import pytest
from openai.types import FileObject

from services.common import testing

LOCAL = {"provider": False}


def contents(folder) -> list[str]:
    """Names of all files on the disk."""
    return sorted(path.name for path in folder.glob("files/**/*") if path.is_file())


async def test_the_sdk_uploads_lists_reads_and_deletes(gateway):
    async with gateway(LOCAL) as g:
        files = g.client.files
        made = [await files.create(file=(f"näme {n}.jsonl", b'{"a":%d}\n' % n), purpose="batch") for n in range(5)]
        FileObject.model_validate(made[0].model_dump())
        assert (made[0].filename, made[0].bytes, made[0].purpose, made[0].status) == ("näme 0.jsonl", 8, "batch", "processed")
        assert made[0].expires_at - made[0].created_at == 30 * 86400
        assert await files.retrieve(made[3].id) == made[3]
        assert (await files.content(made[3].id)).content == b'{"a":3}\n'
        ids = [file.id for file in made]
        assert [file.id async for file in files.list(limit=2)] == ids[::-1]
        assert [file.id async for file in files.list(order="asc", limit=3)] == ids
        assert (await files.list(purpose="batch_output")).data == []
        page = await files.list(after=ids[2])
        assert [file.id for file in page.data] == ids[1::-1]
        assert not page.has_more
        deleted = await files.delete(ids[0])
        assert (deleted.id, deleted.deleted, deleted.object) == (ids[0], True, "file")
        for call in (files.retrieve, files.content, files.delete):
            with pytest.raises(openai.NotFoundError) as raised:
                await call(ids[0])
            assert raised.value.body["code"] == "file_not_found"
        assert contents(g.folder) == sorted(ids[1:])
        short = await files.create(file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
        assert short.expires_at - short.created_at == 3600


async def test_a_stranger_finds_nothing(gateway):
    async with gateway(LOCAL) as g:
        mine = await g.client.files.create(file=b"secret", purpose="batch")
        other = await g.accounts.create_key(tenant="globex", user="eve", tier="enterprise", scopes=["*"])
        async with openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=other.secret, max_retries=0) as stranger:
            assert (await stranger.files.list()).data == []
            for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(mine.id)
        weak = await g.accounts.create_key(tenant="acme", user="ana", tier="enterprise", scopes=["other"])
        async with openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=weak.secret, max_retries=0) as client:
            with pytest.raises(openai.PermissionDeniedError):
                await client.files.list()


def form(*parts: tuple[str, bytes], boundary: str = "xyz", end: bool = True) -> bytes:
    """A form by hand."""
    found = b"".join(b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), content) for head, content in parts)
    return found + (b"--%s--\r\n" % boundary.encode() if end else b"")


PURPOSE = ('Content-Disposition: form-data; name="purpose"', b"batch")
FILE = ('Content-Disposition: form-data; name="file"; filename="a.jsonl"', b"{}\n")
MULTIPART = "multipart/form-data; boundary=xyz"
BAD_FORMS = [
    (MULTIPART, b"", 400, None),
    (MULTIPART, b"no form at all", 400, None),
    (MULTIPART, form(PURPOSE), 400, "file"),
    (MULTIPART, form(FILE), 400, "purpose"),
    (MULTIPART, form(FILE, PURPOSE, end=False), 400, None),
    (MULTIPART, form(("Content-Disposition: form-data", b"x"), FILE, PURPOSE), 400, None),
    (MULTIPART, form((PURPOSE[0], b"assistants"), FILE), 400, "purpose"),
    (MULTIPART, form((PURPOSE[0], b"x" * 5000), FILE), 400, "purpose"),
    (MULTIPART, form(PURPOSE, FILE, (PURPOSE[0], b"fine-tune")), 400, "purpose"),
    (MULTIPART, form(("X: " + "y" * 20_000, b"")), 400, None),
    (MULTIPART, form(*[(f'Content-Disposition: form-data; name="f{n}"', b"") for n in range(40)]), 400, None),
    ("multipart/form-data", form(PURPOSE, FILE), 415, None),
    ("application/json", b'{"purpose": "batch"}', 415, None),
    (MULTIPART, form(PURPOSE, ('Content-Disposition: form-data; name="expires_after[seconds]"', b"5"), FILE), 400, "expires_after"),
]


async def test_forms_that_are_none_are_refused_and_leave_nothing(gateway):
    async with gateway(LOCAL) as g, aiohttp.ClientSession() as http:
        for content_type, body, status, param in BAD_FORMS:
            headers = {"authorization": f"Bearer {g.secret}", "content-type": content_type}
            async with http.post(f"{g.url}/v1/files", data=body, headers=headers) as answer:
                error = orjson.loads(await answer.read())["error"]
                assert (answer.status, error["param"]) == (status, param), (body[:200], error)
                assert error["type"] == "invalid_request_error"
        assert contents(g.folder) == []
        assert (await g.client.files.list()).data == []
        # Fields may stand behind the file, as some clients have it.
        headers = {"authorization": f"Bearer {g.secret}", "content-type": MULTIPART}
        async with http.post(f"{g.url}/v1/files", data=form(FILE, PURPOSE), headers=headers) as answer:
            assert answer.status == 200


async def test_a_file_beyond_the_cap_is_refused_and_leaves_nothing(gateway):
    async with gateway({**LOCAL, "most_bytes": 1_000_000}) as g:
        await g.client.files.create(file=b"x" * 1_000_000, purpose="batch")
        with pytest.raises(openai.APIStatusError) as raised:
            await g.client.files.create(file=b"x" * 1_000_001, purpose="batch")
        assert (raised.value.status_code, raised.value.body["code"]) == (413, "file_too_large")
        assert len(contents(g.folder)) == 1


async def test_an_upload_that_is_broken_off_leaves_nothing(gateway):
    async with gateway(LOCAL) as g:

        async def endless():
            yield form(PURPOSE, (FILE[0], b"x" * 100_000), end=False)
            while True:
                yield b"x" * 2_000_000
                await asyncio.sleep(0.05)

        headers = {"authorization": f"Bearer {g.secret}", "content-type": MULTIPART}
        async with aiohttp.ClientSession() as http:
            task = asyncio.create_task(http.post(f"{g.url}/v1/files", data=endless(), headers=headers))
            await testing.eventually_async(lambda: contents(g.folder), "the upload has begun")
            task.cancel()
            await asyncio.wait([task])
        await testing.eventually_async(lambda: not contents(g.folder), "nothing is left of it")
        assert (await g.client.files.list()).data == []


async def test_a_large_file_comes_back_as_it_went_and_is_never_whole_in_memory(processes):
    g, process = await processes(**LOCAL)
    block = bytes(range(256)) * 4096
    await g.client.files.create(file=b"warm", purpose="batch")
    before = psutil.Process(process.pid).memory_info().rss
    made = await g.client.files.create(file=block * 48, purpose="batch")
    content = (await g.client.files.content(made.id)).content
    assert content == block * 48
    grown = psutil.Process(process.pid).memory_info().rss - before
    assert grown < 32 * 2**20, grown


async def test_a_full_disk_is_told_and_leaves_nothing_and_a_batch_waits_for_room(processes, line, sim):
    g, process = await processes(env={"BATCH_MOST_BYTES": "40000"}, **LOCAL)
    with pytest.raises(openai.InternalServerError) as raised:
        await g.client.files.create(file=b"x" * 60_000, purpose="batch")
    assert raised.value.status_code == 507
    assert (raised.value.body["type"], raised.value.body["code"]) == ("server_error", "storage_full")
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert contents(g.folder) == []
    # A batch whose results do not fit waits, and goes on when there is room: nothing is lost and nothing is asked twice.
    lines = [line(f"c{n}", "write 30 words") for n in range(100)]
    batch = await g.begun(lines)
    await testing.eventually_async(lambda: "batch_journal_blocked" in process.output(), "the disk is full")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    done = await g.ended(batch)
    answers, _ = await g.outputs(done)
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(100)]
    assert len(await sim.log()) == 100


async def test_without_a_folder_every_route_says_so(gateway):
    async with gateway(files_dir=None) as g:
        for call in (g.client.files.list, g.client.batches.list):
            with pytest.raises(openai.APIStatusError) as raised:
                await call()
            assert (raised.value.status_code, raised.value.body["code"]) == (501, "files_not_configured")


async def test_files_whose_time_has_come_and_what_crashes_left_are_swept_away(gateway):
    async with gateway({**LOCAL, "sweep_every_s": 3600}) as g:
        files, records = g.parts.files, g.parts.files._records
        kept = await g.client.files.create(file=b"kept", purpose="batch")
        old = await g.client.files.create(file=b"old", purpose="batch")
        now_ms = await records.now_ms()
        record = await records.get("acme", old.id)
        await records.put(replace(record, expires_ms=now_ms - 1))
        await records.settle_due("acme", old.id, now_ms - 1)
        # A process that died while it wrote, and one that died before the record.
        folder = next(path for path in g.folder.glob("files/*") if path.is_dir())
        (folder / "file-half.abcd.part").write_bytes(b"half")
        (folder / "file-whole").write_bytes(b"whole")
        for lost in ("file-half", "file-whole"):
            await records.announce("acme", lost, now_ms - int(timedelta(days=1).total_seconds() * 1000))
        with pytest.raises(openai.NotFoundError):
            await g.client.files.retrieve(old.id)
        # An entry that says too early is put right and removes nothing.
        await records.settle_due("acme", kept.id, now_ms - 1)
        assert await files.sweep() == 3
        assert contents(g.folder) == [kept.id]
        assert await files.sweep() == 0
        assert [file.id for file in (await g.client.files.list()).data] == [kept.id]


async def test_the_sync_sdk_uploads_a_path_and_streams_a_content(gateway, line, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(orjson.dumps(line("a", "say exactly: hello")) + b"\n")

    def work(url: str, key: str) -> tuple[bytes, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            file = client.files.create(file=path, purpose="batch")
            batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
            done = testing.eventually(lambda: _completed(client, batch.id), "the batch ends")
            with client.files.with_streaming_response.content(done.output_file_id) as streamed:
                content = b"".join(streamed.iter_bytes(7))
            return content, client.files.retrieve(file.id).filename

    async with gateway(LOCAL) as g:
        content, name = await asyncio.to_thread(work, g.url, g.secret)
    assert orjson.loads(content)["response"]["body"]["choices"][0]["message"]["content"] == "hello"
    assert name == "requests.jsonl"


def _completed(client: openai.OpenAI, batch_id: str):
    found = client.batches.retrieve(batch_id)
    return found if found.status == "completed" else None
