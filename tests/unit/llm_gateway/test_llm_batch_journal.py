"""Journals of batches: torn anywhere, interleaved in any way, each line has one result."""

import asyncio
import io
import os
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_gateway.adapters.batch_workspace import Workspace
from services.llm_gateway.adapters.file_store import DiskContents
from services.llm_gateway.batches import journal
from services.llm_gateway.batches.journal import Entry, Results
from services.llm_gateway.batches.ports import LeaseLost
from services.llm_gateway.batches.requests import scanned, split_lines
from services.llm_gateway.batches.threads import DiskThreads
from services.llm_gateway.money import NOTHING, Usage

TOTAL = 12
entries = st.builds(
    Entry,
    st.integers(0, TOTAL - 1),
    st.booleans(),
    st.builds(Usage, input=st.integers(0, 10**6), output=st.integers(0, 10**6), cost_picousd=st.integers(0, 10**15)),
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3).map(orjson.dumps),
)


@given(st.lists(st.tuples(st.lists(entries, max_size=8), st.integers(0, 200), st.binary(max_size=12)), min_size=1, max_size=5))
def test_whole_entries_count_once_whatever_a_crash_has_torn(epochs):
    results, files, expected = Results(TOTAL), [], {}
    for number, (written, torn, junk) in enumerate(epochs):
        raw = b"".join(entry.packed() for entry in written)
        # A crash leaves any beginning of what was written, and on some disks other bytes behind it.
        raw = raw[: max(0, len(raw) - torn)] + junk
        files.append(raw)
        for found in journal.read(io.BytesIO(raw)):
            entry = Entry(found.number, found.failed, found.usage, raw[found.offset : found.offset + found.length])
            assert entry in written
            first = found.number not in expected
            assert results.add(number, found) is first
            expected.setdefault(found.number, entry)
        whole = [
            entry for index, entry in enumerate(written) if len(b"".join(e.packed() for e in written[: index + 1])) <= len(raw) - len(junk)
        ]
        assert {entry.number for entry in whole} <= set(expected)
    assert list(results.missing()) == [number for number in range(TOTAL) if number not in expected]
    assert results.completed + results.failed == len(expected)
    assert results.usage == sum((entry.usage for entry in expected.values()), NOTHING)
    for number, entry in expected.items():
        file, offset, length, failed = results.place(number)
        assert files[file][offset : offset + length] == entry.result
        assert failed == entry.failed


@given(st.lists(entries, min_size=1, max_size=6), st.data())
def test_a_flipped_byte_spoils_one_entry_at_most_two(written, data):
    raw = bytearray(b"".join(entry.packed() for entry in written))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    found = list(journal.read(io.BytesIO(raw)))
    # A line break that goes or comes spoils its neighbour too.
    assert len(found) >= len(written) - 2
    for entry in found:
        assert any(entry.number == one.number and entry.usage == one.usage for one in written)


@pytest.fixture
def workspace(tmp_path):
    """A batch of TOTAL lines whose work has begun."""
    contents = DiskContents(tmp_path, DiskThreads())
    path = contents.path("acme", "file-1")
    path.parent.mkdir(parents=True)
    lines = [{"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}} for n in range(TOTAL)]
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    made = Workspace(contents, "acme", "batch_1")
    made.begin("file-1")
    return SimpleNamespace(open=lambda: Workspace(contents, "acme", "batch_1"), folder=made.folder)


def entry(number: int, text: str, failed: bool = False) -> Entry:
    return Entry(number, failed, Usage(input=1), orjson.dumps({"n": number, "text": text}))


async def test_what_append_has_returned_is_there_for_the_next_holder(workspace):
    one = workspace.open()
    results = one.results(TOTAL)
    file = one.journal(1, results)
    await asyncio.gather(*(file.append(entry(n, "first")) for n in range(5)))
    assert (results.completed, results.usage.input) == (5, 5)
    # The zombie of epoch 1 goes on beside the holder of epoch 2, which has read what there was.
    two = workspace.open()
    found = two.results(TOTAL)
    assert list(found.missing()) == list(range(5, TOTAL))
    other = two.journal(2, found)
    await file.append(entry(5, "zombie"))
    await asyncio.gather(*(other.append(entry(n, "second", failed=n == 7)) for n in range(5, TOTAL)))
    scan = two.scan("/v1/embeddings")
    merged = [(n, orjson.loads(raw)["text"]) for n, raw in two.merged(scan, found, wants_failed=False)]
    assert merged == [(n, "first" if n < 5 else "second") for n in range(TOTAL) if n != 7]
    assert [n for n, _ in two.merged(scan, found, wants_failed=True)] == [7]
    # A third holder finds all journals, and takes the first result of each line.
    third = workspace.open().results(TOTAL)
    assert list(third.missing()) == []
    assert third.completed + third.failed == TOTAL
    await file.close()
    await other.close()
    with pytest.raises(LeaseLost):
        await other.append(entry(0, "late"))


async def test_two_holders_never_write_one_journal(workspace):
    one = workspace.open()
    file = one.journal(1, one.results(TOTAL))
    with pytest.raises(Exception, match="disk cannot be used"):
        workspace.open().journal(1, Results(TOTAL))
    await file.close()


async def test_a_write_that_fails_is_made_again_and_leaves_no_trace_of_the_first(workspace, monkeypatch):
    made = workspace.open()
    results = made.results(TOTAL)
    file = made.journal(1, results)
    monkeypatch.setattr("services.llm_gateway.adapters.batch_workspace.FULL_PAUSE_S", 0.01)

    real, failures = os.pwrite, iter([True, True])

    def half(handle, data, at):
        if next(failures, False):
            real(handle, bytes(data)[: len(data) // 2], at)
            raise OSError(28, "No space left on device")
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", half)
    await asyncio.gather(*(file.append(entry(n, "x" * 50)) for n in range(3)))
    await file.append(entry(3, "y"))
    await file.close()
    raw = (workspace.folder / "1.journal").read_bytes()
    assert [found.number for found in journal.read(io.BytesIO(raw))] == [0, 1, 2, 3]
    assert raw == b"".join(entry(n, "x" * 50).packed() for n in range(3)) + entry(3, "y").packed()


bodies = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda custom_id, more: orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/x", "body": {"model": "m"}, **more}),
        st.sampled_from(["a", "b", "c", "", 7]),
        st.sampled_from([{}, {"method": "GET"}, {"url": "/v1/y"}, {"body": []}, {"body": {}}]),
    ),
)


@settings(max_examples=200)
@given(st.lists(bodies, max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans())
def test_a_scan_finds_each_request_where_it_stands_or_says_what_is_wrong(lines, end, closed, mark):
    raw = (b"\xef\xbb\xbf" if mark else b"") + end.join(lines) + (end if closed else b"")
    scan = scanned(split_lines(io.BytesIO(raw)), "/v1/x")
    found = [orjson.loads(raw[o : o + n]) for o, n in zip(scan.offsets, scan.lengths, strict=True)]
    assert len({line["custom_id"] for line in found}) == len(found)
    for line in found:
        assert line["body"]["model"] == "m"
    assert scan.problems or found
    numbers = [problem["line"] for problem in scan.problems if problem["line"]]
    assert numbers == sorted(set(numbers))


def test_too_many_and_too_long_lines_are_named(monkeypatch):
    monkeypatch.setattr("services.llm_gateway.batches.requests.MAX_LINE_BYTES", 200)
    good = [orjson.dumps({"custom_id": str(n), "method": "POST", "url": "/v1/x", "body": {"model": "m"}}) for n in range(4)]
    scan = scanned(split_lines(io.BytesIO(b"\n".join([good[0], b"x" * 500, good[1]]))), "/v1/x")
    assert [(problem["code"], problem["line"]) for problem in scan.problems] == [("line_too_large", 2)]
    assert len(scan) == 2
    scan = scanned(((n, raw) for n, raw in enumerate(good)), "/v1/x", most=3)
    assert [(problem["code"], problem["line"]) for problem in scan.problems] == [("too_many_lines", 4)]
