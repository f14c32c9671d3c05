"""What is left of files and batches by processes that died, answers that were lost and files that were deleted in use."""

import asyncio
from datetime import timedelta

import aiohttp
import openai
import pytest

from services.common import testing
from services.common.errors import Overloaded
from services.llm_gateway.adapters.batch_store import DUE
from services.llm_gateway.adapters.batch_store_files import EXPIRING, ValkeyFiles
from services.llm_gateway.adapters.batch_workspace import Workspace
from services.llm_gateway.batches import files as batch_files

LOCAL = {"provider": False}
COUNTS = "llm:{acme}:files:sizes", "llm:{acme}:files:inputs"


def on_disk(g) -> list[str]:
    """All files and folders of tenants, but for the folder of what runs."""
    return sorted(path.name for path in g.folder.glob("files/*/**/*") if path.name != "running")


async def test_an_input_that_is_deleted_takes_its_room_until_the_batches_over_it_have_ended(gateway, line, sim):
    lines = [line(f"c{n}", "say exactly: hello " + "x" * 3_000) for n in range(3)]
    await sim.order("first_token_delay=1500", endpoint="chat", times=6)
    async with gateway({**LOCAL, "tenant_bytes": 15_000}) as g:
        first = await g.begun(lines)
        second = await g.client.batches.create(input_file_id=first.input_file_id, endpoint="/v1/chat/completions", completion_window="24h")
        await testing.eventually_async(lambda: len(list(g.folder.glob("files/*/running/*/input.jsonl"))) == 2, "both have their input")
        await g.client.files.delete(first.input_file_id)
        with pytest.raises(openai.BadRequestError, match="storage quota"):
            await g.client.files.create(file=b"x" * 10_000, purpose="batch")
        for batch in (first, second):
            assert (await g.ended(batch)).request_counts.completed == 3

        async def gone():
            return not await g.store.exists(COUNTS[1])

        await testing.eventually_async(gone, "no batch keeps anything")
        for batch in (first, second):
            await g.client.files.delete((await g.client.batches.retrieve(batch.id)).output_file_id)
        assert await g.store.exists(*COUNTS) == 0
        assert on_disk(g) == []


async def test_a_file_counts_until_nobody_needs_it_whatever_comes_first(valkey):
    files = ValkeyFiles(valkey)

    async def held() -> tuple[int, int]:
        return int(await valkey.hget(COUNTS[0], "") or 0), await valkey.exists(COUNTS[1])

    await files.hold("acme", "file-1", 100)
    for _ in range(2):
        await files.keep("acme", "file-1", "batch_1")
    await files.keep("acme", "file-1", "batch_2")
    await files.keep("acme", "file-0", "batch_3")  # of which nothing is counted
    for _ in range(2):
        await files.free("acme", "file-1")
    await files.leave("acme", "batch_1")
    await files.leave("acme", "batch_1")
    assert await held() == (100, 1)
    await files.leave("acme", "batch_2")
    assert await held() == (0, 0)
    # Deleted and uploaded again under the same name: the batch over the first takes nothing from the second.
    await files.hold("acme", "file-1", 100)
    await files.keep("acme", "file-1", "batch_1")
    await files.free("acme", "file-1")
    await files.hold("acme", "file-1", 70)
    await files.leave("acme", "batch_1")
    assert await held() == (70, 0)


async def test_an_erased_batch_leaves_nothing_though_its_holder_dies_behind_the_end(gateway, line, sim, monkeypatch):
    real, deaths = Workspace.remove, []

    def dies_once(self):
        if not deaths:
            deaths.append(self.folder)
            raise RuntimeError("killed here")
        real(self)

    monkeypatch.setattr(Workspace, "remove", dies_once)
    await sim.order("first_token_delay=60000", endpoint="chat", times=2)
    async with gateway({**LOCAL, "lease_s": 0.6}) as g:
        await g.begun([line("c0", "a secret"), line("c1", "another")])
        await testing.eventually_async(lambda: list(g.folder.glob("files/*/running/*/*.journal")), "it runs")
        assert await g.parts.batches.erase("acme", "ana") == ("batch_files", 1)

        async def looked_after():
            return not await g.store.zcard(DUE)

        await testing.eventually_async(looked_after, "nobody looks for it any more")
        assert len(deaths) == 1
        assert on_disk(g) == []
        assert await g.store.exists(*COUNTS) == 0


async def test_an_upload_whose_record_was_written_unheard_of_leaves_no_record_without_content(gateway, monkeypatch):
    real = ValkeyFiles.put

    async def unheard(self, record):
        await real(self, record)
        raise Overloaded("the state store cannot be reached", reason="STORE_UNAVAILABLE")

    async with gateway(LOCAL) as g:
        with monkeypatch.context() as patched:
            patched.setattr(ValkeyFiles, "put", unheard)
            with pytest.raises(openai.InternalServerError):
                await g.client.files.create(file=b"x" * 10, purpose="batch")
        assert (await g.client.files.list()).data == []
        assert on_disk(g) == []
        assert await g.store.exists(EXPIRING, *COUNTS) == 0


async def test_an_upload_is_kept_while_it_comes_and_swept_away_when_nothing_does(gateway, monkeypatch):
    monkeypatch.setattr(batch_files, "ABANDONED", timedelta(seconds=0.5))
    monkeypatch.setattr(batch_files, "PUT_OFF_S", 0.05)
    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    head = (
        b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    released = asyncio.Event()

    async def slow(pieces: int, last: asyncio.Event | None = None):
        yield head
        for _ in range(pieces):
            yield b"x" * 100_000
            await asyncio.sleep(0.1)
        if last is not None:
            await last.wait()
        yield b"\r\n--xyz--\r\n"

    async with (
        gateway({**LOCAL, "sweep_every_s": 0.1}) as g,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {g.secret}"}) as http,
    ):
        async with http.post(f"{g.url}/v1/files", data=slow(8), headers=headers) as answer:
            made = await answer.json()
        assert (answer.status, made["bytes"]) == (200, 800_000)
        task = asyncio.create_task(http.post(f"{g.url}/v1/files", data=slow(8, released), headers=headers))
        await testing.eventually_async(lambda: len(on_disk(g)) == 2, "it has begun")

        async def freed():
            return set(await g.store.hkeys(COUNTS[0])) == {b"", made["id"].encode()}

        await testing.eventually_async(freed, "its room is free")
        assert on_disk(g) == [made["id"]]
        released.set()
        assert (await task).status == 503
        assert set(await g.store.hkeys(COUNTS[0])) == {b"", made["id"].encode()}
