"""BlobService over a real store and a real folder: whose blobs are seen, what is taken, links, limits, and what stands on the disk."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from bulkhead.orchestrator.v1 import blobs_pb2 as pb

from services.common import testing
from services.common.errors import (
    FailedPrecondition,
    IdempotencyMismatch,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)
from services.orchestrator.adapters import blob_contents
from services.orchestrator.testing import s3_server
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.whole_threads import create
from tests.integration.blob_client import Blobs, contents, png, sealing_keys

ANA, BOB, EVE = testing.principal_of(user="ana"), testing.principal_of(user="bob"), testing.principal_of("globex", user="ana")
MIB = 1024 * 1024
NOWHERE = "blob_" + "0" * 32


class Scene:
    """An orchestrator, and callers of it."""

    def __init__(self, settings, dialer, identities, client):
        self.settings, self.folder, self.threads = settings, settings.segments_dir, client
        self.ana, self.bob, self.eve = (Blobs(dialer, identities, principal) for principal in (ANA, BOB, EVE))
        self.dialer, self.identities = dialer, identities


@asynccontextmanager
async def scene_of(identities, behind, state_url, tmp_path, **fields):
    values = {"segments_dir": tmp_path / "segments", "envelope_keys_file": sealing_keys(tmp_path), **fields}
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), **values)
    addresses = {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}
    async with served(settings, identities, ANA) as client, testing.dialer("gateway", addresses) as dialer:
        yield Scene(settings, dialer, identities, client)


@pytest.fixture
async def scene(identities, behind, state_url, tmp_path):
    async with scene_of(identities, behind, state_url, tmp_path) as made:
        yield made


# --- what is kept ---


@pytest.mark.parametrize("size", [1, 256 * 1024, 25 * MIB])
async def test_what_was_put_is_what_is_read_and_stands_nowhere_in_the_open(scene, size):
    content = b"swordfish4711"[:size] + b"\x01" * (size - 13)
    blob = await scene.ana.put(content, "application/octet-stream", name="größe.bin")
    assert (blob.size, blob.name, blob.mime_type, blob.thread_id) == (size, "größe.bin", "application/octet-stream", "")
    assert await scene.ana.get(blob.blob_id) == blob
    assert await scene.ana.read(blob.blob_id) == (blob, content)
    assert blob.expires_at.seconds - blob.created_at.seconds == 30 * 86_400
    (file,) = contents(scene.folder)
    assert size <= file.stat().st_size < size + 200
    assert b"swordfish4711" not in file.read_bytes()


async def test_the_records_hold_no_word_in_the_open(scene, valkey):
    await scene.ana.put(b"swordfish4711", "text/plain", name="swordfish4711.txt")
    for key in await valkey.keys("*blob*"):
        assert b"swordfish" not in (await valkey.dump(key) or b"") + key


async def test_another_user_and_another_tenant_see_nothing_and_change_nothing(scene):
    blob = await scene.ana.put(png())
    for other in (scene.bob, scene.eve):
        for ask in (other.get, other.read, other.sign):
            with pytest.raises(NotFound) as refused:
                await ask(blob.blob_id)
            with pytest.raises(NotFound) as unknown:
                await ask(NOWHERE)
            assert (refused.value.reason, refused.value.message) == (unknown.value.reason, unknown.value.message)
        await other.delete(blob.blob_id)
    assert (await scene.ana.read(blob.blob_id))[1] == png()


@pytest.mark.parametrize("blob_id", ["", "../x", "blob_" + "0" * 31 + "/", "x" * 1_000, "blob_" + "ä" * 32, "a}b{c"])
async def test_ids_that_are_none_are_not_found(scene, blob_id):
    for ask in (scene.ana.get, scene.ana.read, scene.ana.sign):
        with pytest.raises(NotFound):
            await ask(blob_id)
    await scene.ana.delete(blob_id)


async def test_scopes(scene):
    blob = await scene.ana.put(png())
    reader, writer = (
        Blobs(scene.dialer, scene.identities, testing.principal_of(user="ana", scopes=(scope,))) for scope in ("blobs:read", "blobs:write")
    )
    assert (await reader.read(blob.blob_id))[0] == await reader.get(blob.blob_id) == blob
    await reader.sign(blob.blob_id)
    for refused in (
        reader.put(png()),
        reader.delete(blob.blob_id),
        writer.get(blob.blob_id),
        writer.read(blob.blob_id),
        writer.sign(blob.blob_id),
    ):
        with pytest.raises(PermissionDenied):
            await refused
    await writer.delete((await writer.put(png(5, 5))).blob_id)


async def test_deleting_takes_the_content_and_again_is_harmless(scene, valkey):
    blob = await scene.ana.put(png())
    for _ in range(2):
        await scene.ana.delete(blob.blob_id)
        assert not contents(scene.folder)
        with pytest.raises(NotFound):
            await scene.ana.read(blob.blob_id)
    assert set(await valkey.keys("*blob*")) == {b"blobs:{bl0}:due"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("content", "mime_type", "name"),
    [
        (b"\xff\xd8\xff no png", "image/png", "a.png"),
        (png(10_000, 10_000), "image/png", "bomb.png"),
        (b"<svg/>", "image/svg+xml", "a.svg"),
        (b"<html>", "text/html", "a.html"),
        (b"", "text/plain", "a.txt"),
        (b"x", "text/plain", "../a"),
        (b"x", "text/plain", "a\r\nSet-Cookie: b"),
        (b"x" * (25 * MIB + 1), "text/plain", "a.txt"),
    ],
)
async def test_what_is_not_taken_is_told_and_leaves_nothing(scene, valkey, content, mime_type, name):
    with pytest.raises(InvalidInput) as refused:
        await scene.ana.put(content, mime_type, name=name)
    assert refused.value.violations
    assert not contents(scene.folder)
    assert not await valkey.keys("*blob*")


async def test_a_thread_must_be_the_callers(scene):
    await create(scene.threads, "mine")
    assert (await scene.ana.put(png(), thread_id="mine")).thread_id == "mine"
    for caller, thread_id in ((scene.bob, "mine"), (scene.ana, "nowhere"), (scene.ana, "a}b{c/../")):
        with pytest.raises(NotFound) as refused:
            await caller.put(png(), thread_id=thread_id)
        assert refused.value.reason == "THREAD_NOT_FOUND"


# --- keys ---


async def test_the_same_key_and_content_answer_the_same_blob_and_others_are_refused(scene):
    first = await scene.ana.put(png(), idempotency_key="k", name="a.png")
    assert await scene.ana.put(png(), idempotency_key="k", name="a.png") == first
    for content, name in ((png(4, 4), "a.png"), (png(), "b.png")):
        with pytest.raises(IdempotencyMismatch):
            await scene.ana.put(content, idempotency_key="k", name=name)
    assert (await scene.bob.put(png(), idempotency_key="k", name="a.png")).blob_id != first.blob_id
    assert (await scene.ana.put(png(), name="a.png")).blob_id != first.blob_id
    assert len(contents(scene.folder)) == 3


async def test_many_at_once_with_one_key_keep_one(scene):
    answers = await asyncio.gather(*(scene.ana.put(png(), idempotency_key="k") for _ in range(8)), return_exceptions=True)
    assert len({answer.blob_id for answer in answers if not isinstance(answer, Exception)}) == 1
    assert {getattr(answer, "reason", "IDEMPOTENCY_IN_FLIGHT") for answer in answers} == {"IDEMPOTENCY_IN_FLIGHT"}
    assert len(contents(scene.folder)) == 1


# --- limits ---


async def test_a_tenant_has_so_many_bytes_also_where_all_come_at_once(identities, behind, state_url, tmp_path):
    async with scene_of(identities, behind, state_url, tmp_path, blobs_most_bytes_per_tenant=5 * 1000) as scene:
        puts = [who.put(b"%03d" % n + b"x" * 997, "text/plain") for n in range(6) for who in (scene.ana, scene.bob)]
        answers = await asyncio.gather(*puts, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        assert len(refused) == 7
        assert {type(error) for error in refused} == {QuotaExceeded}
        assert {error.reason for error in refused} == {"BLOB_BYTES_EXCEEDED"}
        assert len(contents(scene.folder)) == 5
        # Another tenant's are its own; and what is deleted gives room.
        await scene.eve.put(b"x" * 5_000, "text/plain")
        kept = next(answer for answer in answers[::2] if not isinstance(answer, Exception))
        await scene.ana.delete(kept.blob_id)
        await scene.ana.delete(kept.blob_id)
        await scene.bob.put(b"x" * 1_000, "text/plain")
        with pytest.raises(QuotaExceeded):
            await scene.bob.put(b"x", "text/plain")


async def test_where_there_is_neither_folder_nor_bucket_that_is_said(identities, behind, state_url, tmp_path, valkey):
    async with scene_of(identities, behind, state_url, tmp_path, segments_dir=None) as scene:
        with pytest.raises(FailedPrecondition) as refused:
            await scene.ana.put(png())
        assert (refused.value.reason, refused.value.code.name) == ("BLOBS_NOT_CONFIGURED", "FAILED_PRECONDITION")
        assert not await valkey.keys("*blob*")


async def test_a_bucket_will_do(identities, behind, state_url, tmp_path):
    with s3_server.s3_server(tmp_path) as server:
        async with scene_of(identities, behind, state_url, tmp_path, segments_dir=None, **server.settings("logs")) as scene:
            blob = await scene.ana.put(png(more=b"x" * MIB))
            assert await scene.ana.read(blob.blob_id) == (blob, png(more=b"x" * MIB))
            assert len(server.objects()) == 1
            await scene.ana.delete(blob.blob_id)
            assert not server.objects()


async def test_contents_that_come_at_once_take_no_more_memory_than_there_is_room_for(scene, monkeypatch):
    monkeypatch.setattr("services.orchestrator.blobs.kinds.MOST_BYTES", 200 * MIB)
    with pytest.raises(Overloaded) as refused:
        await scene.ana.put(b"x" * 129 * MIB, "text/plain", piece=MIB)
    assert refused.value.reason == "BLOBS_BUSY"
    # Whoever is refused, or leaves, gives the room back.
    leaving = asyncio.create_task(scene.ana.put(b"x" * 100 * MIB, "text/plain", piece=MIB))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    async def kept():
        try:
            return await scene.ana.put(b"y" * 60 * MIB, "text/plain", piece=MIB)
        except Overloaded:
            return None

    await testing.eventually_async(kept, "there is room again")


# --- a folder that is away or damaged ---


async def test_a_folder_that_cannot_be_used_is_told_and_what_is_there_is_there_again(scene, monkeypatch, tmp_path):
    blob = await scene.ana.put(png())
    kept = scene.folder.rename(tmp_path / "kept")
    scene.folder.symlink_to(scene.folder)
    for ask in (scene.ana.read(blob.blob_id), scene.ana.put(png(4, 4)), scene.ana.delete(blob.blob_id)):
        with pytest.raises(Overloaded) as refused:
            await ask
        assert refused.value.reason == "BLOBS_UNAVAILABLE"
    scene.folder.unlink()
    kept.rename(scene.folder)
    # That it is to go was said, and holds.
    with pytest.raises(NotFound):
        await scene.ana.read(blob.blob_id)
    await scene.ana.delete(blob.blob_id)
    assert not contents(scene.folder)


async def test_a_folder_that_hangs_is_waited_for_so_long_and_no_longer(scene, monkeypatch):
    monkeypatch.setattr(blob_contents, "ASK_WITHIN_S", 0.2)
    monkeypatch.setattr("services.orchestrator.adapters.blob_folder.FolderBlobs.get", lambda *_: asyncio.sleep(600))
    with pytest.raises(Overloaded) as refused:
        await scene.ana.put(png())
    assert refused.value.reason == "BLOBS_UNAVAILABLE"


@pytest.mark.parametrize("damage", [b"", b"x", None])
async def test_a_damaged_content_is_shown_to_nobody(scene, damage):
    blob, other = await scene.ana.put(png()), await scene.ana.put(png(9, 9))
    files = {path.read_bytes(): path for path in contents(scene.folder)}
    file = next(path for path in files.values() if abs(path.stat().st_size - blob.size) < 200)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    damaged = 0
    for one in (blob, other):
        try:
            await scene.ana.read(one.blob_id)
        except Internal as error:
            damaged += error.reason == "BLOB_DAMAGED"
    assert damaged == 1


async def test_a_content_in_the_place_of_another_is_shown_to_nobody(scene):
    await scene.ana.put(png())
    (file,) = contents(scene.folder)
    swapped = file.read_bytes()
    blob = await scene.ana.put(png(9, 9))
    (other,) = set(contents(scene.folder)) - {file}
    other.write_bytes(swapped)
    with pytest.raises(Internal):
        await scene.ana.read(blob.blob_id)


# --- links ---


async def test_a_link_is_followed_by_nobody_in_particular_and_ends_with_its_blob(scene):
    blob, other = await scene.ana.put(png()), await scene.ana.put(png(4, 4))
    link = await scene.ana.sign(blob.blob_id)
    assert 3_590 < link.expires_at.seconds - blob.created_at.seconds < 3_700
    assert await scene.ana.follow(link.token) == png()
    for wrong in (
        link.token[:-1] + "A",
        link.token[:-1] + "B",
        link.token[1:],
        link.token + "=",
        "",
        "x.y",
        (await scene.ana.sign(other.blob_id)).token[::-1],
    ):
        if wrong != link.token:
            with pytest.raises(NotFound) as refused:
                await scene.ana.follow(wrong)
            assert refused.value.reason == "LINK_NOT_FOUND"
    await scene.ana.delete(blob.blob_id)
    with pytest.raises(NotFound) as gone:
        await scene.ana.follow(link.token)
    assert (gone.value.message, gone.value.reason) == (refused.value.message, refused.value.reason)
    with pytest.raises(Unauthenticated):
        await scene.ana.stub.GetBlob(pb.GetBlobRequest(blob_id=other.blob_id), timeout=10)


async def test_a_link_ends_at_its_date(scene):
    blob = await scene.ana.put(png())
    short, long = await scene.ana.sign(blob.blob_id, 1), await scene.ana.sign(blob.blob_id, 7 * 86_400)

    async def ended():
        try:
            await scene.ana.follow(short.token)
        except NotFound:
            return True
        return False

    await testing.eventually_async(ended, "the short one has ended")
    assert await scene.ana.follow(long.token) == png()
    for lifetime_s in (0, 7 * 86_400 + 1, -1):
        with pytest.raises(InvalidInput):
            await scene.ana.sign(blob.blob_id, lifetime_s)


async def test_a_link_of_a_blob_is_none_of_the_next_that_has_its_id(scene, valkey):
    blob = await scene.ana.put(png(), idempotency_key="k")
    link = await scene.ana.sign(blob.blob_id)
    await scene.ana.delete(blob.blob_id)
    # As after a day, when nobody remembers the key.
    await valkey.delete(*await valkey.keys("idem:*"))
    assert (await scene.ana.put(png(), idempotency_key="k")).blob_id == blob.blob_id
    with pytest.raises(NotFound):
        await scene.ana.follow(link.token)
