"""Sessions whose window is written anew or that are deleted, as threads are forked, rolled back and deleted."""

import base64
import json
import os

import pytest
from bulkhead.memory.v1 import memory_pb2

from services.common import testing
from services.common.errors import InvalidInput, NotFound
from services.memory import fakes


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
async def memory(request, identities, state_url, milvus_uri, tmp_path):
    options = {}
    if request.param:
        options["envelope_keys_file"] = tmp_path / "roots.json"
        root = base64.b64encode(os.urandom(32)).decode()
        options["envelope_keys_file"].write_text(json.dumps({"keys": [{"id": "one", "key": root}]}))
    async with (
        fakes.fake_llm(identities) as (_, address),
        fakes.memory_service(identities, state_url, milvus_uri, address, **options) as running,
    ):
        yield running


def turn(run_id, ended_s):
    made = memory_pb2.Turn(run_id=run_id, user_text=f"said in {run_id}", assistant_text="yes")
    made.ended_at.FromSeconds(ended_s)
    return made


async def window(memory, session):
    return [part.source_id for part in (await memory.sessions.Recall(memory_pb2.RecallRequest(session_id=session))).parts]


def append(memory, session, *turns):
    return memory.sessions.AppendTurns(memory_pb2.AppendTurnsRequest(session_id=session, turns=turns))


def replace(memory, session, turns, forgotten=(), **fields):
    request = memory_pb2.ReplaceSessionRequest(session_id=session, turns=turns, forgotten_run_ids=forgotten, **fields)
    return memory.sessions.ReplaceSession(request)


async def test_a_replacement_that_comes_late_or_twice_takes_away_nothing_that_was_said_since(memory, identities):
    with testing.calling(identities, testing.principal_of("whole-late")):
        await replace(memory, "s", [turn("r1", 1)], as_of=7)
        await append(memory, "s", turn("r2", 2))
        for number in (7, 6):
            assert (await replace(memory, "s", [turn("r0", 0)], ["r3"], as_of=number)).window_turns == 2
        await append(memory, "s", turn("r3", 3))
        assert await window(memory, "s") == ["r1", "r2", "r3"]
        await replace(memory, "s", [turn("r0", 0)], as_of=8)
        assert await window(memory, "s") == ["r0"]
        await replace(memory, "s", [turn("r1", 1)])
        assert await window(memory, "s") == ["r1"]
        with pytest.raises(InvalidInput):
            await replace(memory, "s", [], as_of=-1)


async def test_a_replaced_window_is_these_turns_and_what_was_forgotten_stays_away(memory, identities):
    with testing.calling(identities, testing.principal_of("whole-a")):
        await append(memory, "s", turn("r1", 1), turn("r2", 2), turn("r3", 3))
        for _ in range(2):
            assert (await replace(memory, "s", [turn("r0", 0), turn("r1", 1)], ["r2", "r3", "late"])).window_turns == 2
        assert await window(memory, "s") == ["r0", "r1"]
        await append(memory, "s", turn("late", 4))
        await append(memory, "s", turn("r3", 3), turn("r4", 5))
        assert await window(memory, "s") == ["r0", "r1", "r4"]
        # A session need not be there, and nothing is a window too.
        await replace(memory, "new", [turn("r1", 1)])
        assert await window(memory, "new") == ["r1"]
        await replace(memory, "new", [])
        assert await window(memory, "new") == []


async def test_a_deleted_session_takes_no_late_turn(memory, identities):
    with testing.calling(identities, testing.principal_of("whole-b")):
        await append(memory, "s", turn("r1", 1), turn("r2", 2))
        delete = memory_pb2.DeleteSessionRequest(session_id="s")
        assert [(await memory.sessions.DeleteSession(delete)).deleted_turns for _ in range(2)] == [2, 0]
        await append(memory, "s", turn("late", 3))
        assert await window(memory, "s") == []
        with pytest.raises(NotFound):
            await replace(memory, "s", [turn("r1", 1)])
        assert (await memory.sessions.DeleteSession(memory_pb2.DeleteSessionRequest(session_id="never"))).deleted_turns == 0


async def test_sessions_of_others_and_too_much_of_anything_are_refused(memory, identities):
    with testing.calling(identities, testing.principal_of("whole-c")):
        await append(memory, "mine", turn("r1", 1))
    with testing.calling(identities, testing.principal_of("whole-c", user="mallory")):
        for call in (replace(memory, "mine", []), memory.sessions.DeleteSession(memory_pb2.DeleteSessionRequest(session_id="mine"))):
            with pytest.raises(NotFound):
                await call
    with testing.calling(identities, testing.principal_of("whole-c")):
        for turns, forgotten in (([turn("r", 1)] * 101, ()), ([], ["r"] * 1001), ([turn("", 1)], ()), ([], [""])):
            with pytest.raises(InvalidInput):
                await replace(memory, "mine", turns, forgotten)
        assert await window(memory, "mine") == ["r1"]
