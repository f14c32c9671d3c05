"""Memory and disk are bounded, survive what happens to them, and cost nothing where there is nothing to do."""

import asyncio
import os
import timeit
from array import array

import pytest

from services.common.testing import eventually_async
from services.llm_gateway.adapters.disk_cache import DiskCache
from services.llm_gateway.caching import Caches
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_records import Record, decode
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.replay import Replay
from services.llm_gateway.single_flight import SingleFlight


def record(body=b"body", owner="0a", form="answer", **fields):
    return Record(form, body, 1.0, 2.0, owner, "d", "g", **fields)


def test_memory_is_bounded_in_entries_and_in_bytes():
    memory = MemoryCache(max_entries=10, max_bytes=100_000)
    for number in range(50):
        memory.put("t", str(number), record(), 0.0)
    assert len(memory) == 10
    assert memory.get("t", "39") is None
    assert memory.get("t", "40") is not None
    memory.put("t", "new", record(), 0.0)
    assert memory.get("t", "40") is not None  # used last
    assert memory.get("t", "41") is None
    for number in range(50):
        memory.put("t", f"large {number}", record(b"x" * 12_000), 0.0)
        memory.put("t", "same", record(b"x" * (number + 1) * 100), 0.0)
        assert memory.size <= 100_000
    memory.put("t", "huge", record(b"x" * 20_000), 0.0)
    assert memory.get("t", "huge") is None
    for owner in ("0a", "0b"):
        memory.erase("t", owner)
    assert (len(memory), memory.size) == (0, 0)


def test_records_survive_the_wire_and_strangers_do_not():
    made = record(array("f", [0.5, 1.5, 2.5]).tobytes(), form="vectors", sizes=(2, 1), input_tokens=3)
    again = decode(made.encode())
    assert again == made
    assert again.vectors().vectors == [array("f", [0.5, 1.5]), array("f", [2.5])]
    for raw in (b"", b"\n", b"{}\n", b"not json\nx", made.encode().replace(b'"v":1', b'"v":2'), b"[]\nx", b"1\nx"):
        assert decode(raw) is None


async def started(folder, **options):
    disk = DiskCache(folder, **options)
    await disk.start()
    return disk


async def settled(disk):
    await eventually_async(lambda: not disk._pending, "everything is written")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_the_disk_is_bounded_and_survives_a_restart(tmp_path):
    disk = await started(tmp_path, max_bytes=20_000)
    for number in range(100):
        disk.put("t", [(f"{number:04x}", bytes([number]) * 1_000)], "0a", 60.0)
        await settled(disk)
    assert sum(path.stat().st_size for path in files(tmp_path)) == disk.size <= 20_000
    assert await disk.get("t", ["0000", "0063"]) == [None, bytes([0x63]) * 1_000]
    await disk.stop()
    disk = await started(tmp_path, max_bytes=10_000)
    assert disk.size <= 10_000
    assert await disk.get("t", ["0063"]) == [bytes([0x63]) * 1_000]
    assert await disk.get("other", ["0063"]) == [None]
    await disk.stop()


async def test_what_the_disk_keeps_is_for_its_own_user_alone(tmp_path):
    folder = tmp_path / "cache"
    disk = await started(folder)
    disk.put("t", [("0a", b"secret")], "0a", 60.0)
    await settled(disk)
    await disk.stop()
    assert folder.stat().st_mode & 0o077 == files(folder)[0].parent.stat().st_mode & 0o077 == 0


async def test_torn_ended_and_left_over_files_are_misses(tmp_path):
    now = [1_000.0]
    disk = await started(tmp_path, clock=lambda: now[0])
    disk.put("t", [("aa", b"one"), ("bb", b"two"), ("cc", b"three")], "0a", 60.0)
    await settled(disk)
    torn, gone, _ = files(tmp_path)
    torn.write_bytes(torn.read_bytes()[:-1])
    gone.unlink()
    assert await disk.get("t", ["aa", "bb", "cc"]) == [None, None, b"three"]
    now[0] += 100
    assert await disk.get("t", ["cc"]) == [None]
    assert files(tmp_path) == []
    assert disk.size == 0
    left = torn.parent / "abc.tmp"
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    (torn.parent / "no-such-name-at-all").write_bytes(b"x")
    await disk.stop()
    disk = await started(tmp_path, clock=lambda: now[0])
    assert not left.exists()
    await disk.stop()


async def test_a_full_disk_is_no_callers_error(tmp_path, monkeypatch):
    disk = await started(tmp_path)

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        disk.put("t", [("aa", b"one")], "0a", 60.0)
        await settled(disk)
    assert await disk.get("t", ["aa"]) == [None]
    assert files(tmp_path) == []
    disk.put("t", [("aa", b"one")], "0a", 60.0)  # not tried again at once
    await settled(disk)
    assert files(tmp_path) == []
    await disk.stop()


async def test_what_another_process_wrote_is_erased_too(tmp_path):
    one, two = await started(tmp_path), await started(tmp_path)
    one.put("t", [("aa", b"one")], "0a", 60.0)
    two.put("t", [("aa", b"newer"), ("bb", b"two")], "0a", 90.0)
    two.put("t", [("cc", b"three")], "0b", 90.0)
    await settled(one)
    await settled(two)
    assert await one.erase("t", "0a") == 2
    assert [path.name.split("-")[0] for path in files(tmp_path)] == ["cc"]
    assert await two.get("t", ["aa", "bb", "cc"]) == [None, None, b"three"]
    await one.stop()
    await two.stop()


class Inner:
    """Model calls that do nothing."""

    registry = None

    async def complete(self, call):
        return call

    def stream(self, call):
        return call


async def test_a_plain_call_passes_all_layers_for_next_to_nothing():
    inner = Inner()
    layers = Replay(Caches(SingleFlight(inner), Levels(MemoryCache()), CachePolicy), None)
    call = ChatCall("m", {"messages": [], "temperature": 1})
    assert layers.stream(call) is call
    assert await layers.complete(call) is call

    def run(made):
        coroutine = made.complete(call)
        with pytest.raises(StopIteration):
            coroutine.send(None)

    async def costs(made, runs=3_000):
        await asyncio.sleep(0)
        return min(timeit.repeat(lambda: run(made), number=runs, repeat=5)) / runs

    # Three layers; the goal is 1 µs each, the bound leaves room for a machine that does other things.
    assert await costs(layers) - await costs(inner) < 10e-6
