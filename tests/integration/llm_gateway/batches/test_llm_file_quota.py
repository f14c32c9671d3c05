"""What the files of one tenant may take up together: exact over replicas, restarts and uploads that run side by side."""

import asyncio
import os
from pathlib import Path

import aiohttp
import openai
import pytest

from services.common import testing

LOCAL = {"provider": False}
SIZES = "llm:{acme}:files:sizes"
MULTIPART = "multipart/form-data; boundary=xyz"
HEAD = (
    b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
)


async def upload(client, size):
    """The id of an upload of `size` bytes, or the error that it got."""
    try:
        return (await client.files.create(file=b"x" * size, purpose="batch")).id
    except openai.APIStatusError as error:
        return error


def on_disk(folder):
    """Bytes of all contents and parts of contents."""
    return sum(path.stat().st_size for path in folder.glob("files/**/*") if path.is_file())


async def test_a_tenant_has_room_for_so_many_bytes_and_no_more(serve, sim, models, tmp_path):
    quota = {"files_dir": tmp_path / "files", "files_tenant_bytes": 10_000, "files_tenant_count": 3}
    async with serve(models(sim.url), **quota) as own:
        async with openai.AsyncOpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0) as client:
            first = await upload(client, 6_000)
            refused = await upload(client, 4_001)
            assert (refused.status_code, refused.body["type"], refused.body["code"]) == (
                400,
                "invalid_request_error",
                "file_quota_exceeded",
            )
            assert "10000 bytes" in refused.body["message"]
            assert on_disk(tmp_path) == 6_000
            # To the byte; and what was refused has taken nothing.
            second = await upload(client, 4_000)
            assert (await upload(client, 1)).body["code"] == "file_quota_exceeded"
            await client.files.delete(second)
            assert isinstance(await upload(client, 2_000), str)
    # What is counted outlives the process.
    async with serve(models(sim.url), **quota) as own:
        async with openai.AsyncOpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0) as client:
            assert (await upload(client, 2_001)).body["code"] == "file_quota_exceeded"
            assert isinstance(await upload(client, 1), str)
            # Three files are enough, however small.
            assert (await upload(client, 1)).body["code"] == "file_quota_exceeded"
            await client.files.delete(first)
            assert isinstance(await upload(client, 1), str)


async def test_uploads_side_by_side_on_two_gateways_never_pass_the_bound_together(gateway):
    rules = {**LOCAL, "tenant_bytes": 10_000_000}
    async with gateway(rules) as one, gateway(rules) as two:
        uploads = [upload((one, two)[n % 2].client, 1_500_000) for n in range(12)]
        peaks = []

        async def watched():
            while True:
                peaks.append(on_disk(one.folder))
                await asyncio.sleep(0.005)

        watch = asyncio.create_task(watched())
        found = await asyncio.gather(*uploads)
        watch.cancel()
        await asyncio.wait([watch])
        kept = [item for item in found if isinstance(item, str)]
        assert {item.body["code"] for item in found if not isinstance(item, str)} == {"file_quota_exceeded"}
        assert 1 <= len(kept) <= 6
        assert max(peaks) <= 10_000_000
        assert on_disk(one.folder) == len(kept) * 1_500_000
        # Those who were refused have given back all that they had taken: what is left can be used to the last byte.
        rest = 10_000_000 - len(kept) * 1_500_000
        assert (await upload(two.client, rest + 1)).status_code == 400
        assert isinstance(await upload(one.client, rest), str)


async def test_an_upload_under_way_takes_its_room_and_gives_it_back_when_it_is_broken_off(gateway):
    async with gateway({**LOCAL, "tenant_bytes": 4_000_000}) as g, aiohttp.ClientSession() as http:
        released = asyncio.Event()

        async def stuck():
            yield HEAD + b"x" * 3_000_000
            await released.wait()

        headers = {"authorization": f"Bearer {g.secret}", "content-type": MULTIPART}
        task = asyncio.create_task(http.post(f"{g.url}/v1/files", data=stuck(), headers=headers))
        # Counted step by step, before it is written.
        await testing.eventually_async(lambda: on_disk(g.folder) >= 2_000_000, "most of it is on the disk")
        assert (await upload(g.client, 2_000_000)).body["code"] == "file_quota_exceeded"
        task.cancel()
        await asyncio.wait([task])

        async def fits():
            return isinstance(await upload(g.client, 4_000_000), str)

        await testing.eventually_async(fits, "the room is free again")
        assert on_disk(g.folder) == 4_000_000


async def test_results_count_and_are_never_refused(gateway, line):
    async with gateway({**LOCAL, "tenant_bytes": 1_000}) as g:
        batch = await g.ended(await g.begun([line(f"c{n}", "say exactly: hello") for n in range(3)]))
        assert batch.status == "completed"
        answers, _ = await g.outputs(batch)
        assert len(answers) == 3
        assert on_disk(g.folder) > 1_000
        assert (await upload(g.client, 1)).body["code"] == "file_quota_exceeded"
        for file_id in (batch.output_file_id, batch.input_file_id):
            await g.client.files.delete(file_id)
        assert isinstance(await upload(g.client, 1_000), str)


async def test_what_is_erased_swept_or_left_by_a_crash_takes_no_room(gateway):
    async with gateway({**LOCAL, "sweep_every_s": 3600}) as g:
        files, records = g.parts.files, g.parts.files._records
        for _ in range(3):
            await upload(g.client, 100)
        assert await files.erase("acme", "ana") == 3
        assert await g.store.exists(SIZES) == 0
        # A process that died in the middle of an upload.
        await records.announce("acme", "file-lost", await records.now_ms() - 1)
        await records.hold("acme", "file-lost", 5_000_000)
        assert await files.sweep() == 1
        assert await g.store.exists(SIZES) == 0


@pytest.mark.parametrize("sizes", [[0], [1, 0, 7]])
async def test_the_sum_is_that_of_its_parts(gateway, sizes):
    async with gateway(LOCAL) as g:
        made = [await upload(g.client, size) for size in sizes]
        held = {name.decode(): int(value) for name, value in (await g.store.hgetall(SIZES)).items()}
        assert held == {"": sum(sizes), **dict(zip(made, sizes, strict=True))}
        for file_id in made:
            await g.client.files.delete(file_id)
        assert await g.store.exists(SIZES) == 0


@pytest.mark.system
async def test_a_disk_without_room_is_told_and_nothing_of_the_upload_stays(processes, tmp_path):
    # A file system of 3 MiB in a namespace of its own; who is not root needs one of users for it.
    mount = 'mount -t tmpfs -o size=3m none "$BULKHEAD_FILES_DIR" && exec "$@"'
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    inside = ["unshare", *as_root, "--mount", "sh", "-c", mount, "sh"]
    (tmp_path / "files").mkdir()
    g, process = await processes(inside=inside, **LOCAL)
    disk = Path(f"/proc/{process.pid}/root") / (tmp_path / "files").relative_to("/")
    kept = await upload(g.client, 2_000_000)
    refused = await upload(g.client, 2_000_000)
    assert (refused.status_code, refused.body["type"], refused.body["code"]) == (507, "server_error", "storage_full")
    assert [path.name for path in disk.glob("**/*") if path.is_file()] == [kept]
    assert (await g.store.hgetall(SIZES))[b""] == b"2000000"
    await g.client.files.delete(kept)
    assert isinstance(await upload(g.client, 2_000_000), str)
