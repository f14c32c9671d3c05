"""Threads as a whole where processes die at any call, at random checkpoints, and on a cluster with encrypted records."""

import base64
import json
import os
import random

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import NotFound, Overloaded
from services.common.valkey import connect
from services.orchestrator import app
from services.orchestrator.adapters import store_threads
from services.orchestrator.testing.harness import served, settings_for, types, write_config
from services.orchestrator.testing.stores import cluster_of_one
from services.orchestrator.testing.whole_threads import MAILS, delete, fork, keys_of, remembered, roll_back, said, shown
from services.orchestrator.threads import tending


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, impatient):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"))


class Dying(store_threads.ValkeyThreads):
    """Loses its process, as it were, at the call `left` calls ahead."""

    left = 0

    async def _ask(self, call):
        type(self).left -= 1
        if type(self).left == 0:
            call.close() if hasattr(call, "close") else call.cancel()
            raise Overloaded("died here", reason="DIED")
        return await super()._ask(call)


@pytest.mark.system
@pytest.mark.parametrize("what", ["delete", "fork", "roll_back"])
async def test_whatever_is_left_half_done_is_gone_on_with(identities, behind, settings, valkey, monkeypatch, what):
    monkeypatch.setattr(app, "ValkeyThreads", Dying)
    # Nobody looks by himself, so that every call counted is one of the request.
    monkeypatch.setattr(tending, "TURN_S", 1_000.0)
    async with served(settings, identities) as client:
        for point in range(1, 40):
            name = f"{what}{point}"
            first = await said(client, "say one", name)
            await remembered(behind, await said(client, "say two", name))
            Dying.left = point + 1
            try:
                if what == "delete":
                    await delete(client, name)
                elif what == "fork":
                    await fork(client, name, pb.Checkpoint(run_id=first.run_id), new_thread_id=f"{name}-fork", idempotency_key=name)
                else:
                    await roll_back(client, name, pb.Checkpoint(run_id=first.run_id), idempotency_key=name)
            except Overloaded:
                pass
            over = Dying.left > 0
            Dying.left = 0
            # Asking again is what a client does; where it does not, the look does it.
            if what == "delete":
                assert await delete(client, name)
                assert await keys_of(valkey, f"/{name}}}") == [f"t:{{acme/{name}}}:meta"]
            elif what == "fork":
                made = await fork(client, name, pb.Checkpoint(run_id=first.run_id), new_thread_id=f"{name}-fork", idempotency_key=name)
                log = await client.log(thread_id=f"{name}-fork")
                assert shown(log)[:-1] == shown(await client.log(thread_id=name))[: first.terminal_seq]
                assert made.thread.last_seq == first.terminal_seq + 1
                assert "say two" not in (await said(client, "echo context", f"{name}-fork")).output_text
            else:
                await roll_back(client, name, pb.Checkpoint(run_id=first.run_id), idempotency_key=name)
                assert types(await client.log(thread_id=name)).count("thread_rolled_back") == 1
                assert "say two" not in (await said(client, "echo context", name)).output_text
            if over:
                return
        raise AssertionError("it never came to its end")


@pytest.mark.system
@pytest.mark.parametrize("seed", range(4))
async def test_every_checkpoint_of_a_random_thread_can_be_forked_and_is_the_conversation_of_then(identities, behind, settings, seed):
    chance = random.Random(seed)
    async with served(settings, identities) as client:
        gone, runs, texts = None, [], {}
        for number in range(6):
            tools = [f'tool calculator {{"expression":"{number}+{n}"}}' for n in range(chance.randrange(4))]
            text = "\n".join(tools) or f"say {number}"
            run = await said(client, text, "t")
            texts[run.run_id] = text
            await remembered(behind, run)
            runs.append(run)
            if gone is None and number > 1 and chance.random() < 0.4:
                back = chance.choice(runs[:-1])
                gone = (await roll_back(client, "t", pb.Checkpoint(run_id=back.run_id)), back)
        log = await client.log(thread_id="t")
        asked = [[(m.role, m.text) for m in call.request.messages] for call in behind.models.calls]
        after = {}
        # What the model was given next, at the end of each step within a run and of each run.
        calls = iter(asked)
        previous, pending = None, None
        for event in log:
            if event.type == "step_started":
                given = next(calls)
                if pending is not None:
                    after[pending] = given
                pending = None
                if previous is not None:
                    said_now = [m for m in given if m == ("user", texts[event.run_id])][-1:]
                    after[previous] = given[: len(given) - len(said_now)]
                    previous = None
            elif event.type == "step_completed":
                pending = event.seq
            elif event.type in ("run_finished", "thread_rolled_back"):
                previous, pending = event.seq, None
        assert len(after) > 5
        for seq, given in after.items():
            made = (await fork(client, "t", pb.Checkpoint(seq=seq))).thread
            assert shown(await client.log(thread_id=made.thread_id))[:-1] == shown(log)[: made.forked_at_seq]
            assert made.forked_at_seq == seq
            before = len(behind.models.calls)
            await said(client, "say probe", made.thread_id)
            probe = [(m.role, m.text) for m in behind.models.calls[before].request.messages]
            assert probe[-1] == ("user", "say probe")
            assert probe[:-1] == given
        assert len(behind.tools.calls) == sum(event.type == "tool_call_started" for event in log)


async def moved(valkey, thread_id):
    return not await valkey.exists(f"t:{{acme/{thread_id}}}:log")


@pytest.mark.system
async def test_threads_on_a_cluster_whose_records_are_encrypted(identities, behind, settings, tmp_path):
    keys_file = tmp_path / "roots.json"
    keys_file.write_text(json.dumps({"keys": [{"id": "one", "key": base64.b64encode(os.urandom(32)).decode()}]}))
    with cluster_of_one() as url:
        sealed = settings.model_copy(
            update={"state_url": url, "envelope_keys_file": keys_file, "segments_dir": tmp_path / "segments", "segments_after_s": 0.2}
        )
        async with served(sealed, identities) as client:
            run = await said(client, MAILS.replace("ana", "plainword"), "t1")
            last = await said(client, "say plainword", "t1")
            valkey = connect(url)
            await testing.eventually_async(lambda: moved(valkey, "t1"), "the log is in segments")
            made = await fork(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1), continue_run=True)
            assert (await client.wait(made.run.run_id)).output_text == run.output_text
            prefix = shown(await client.log(thread_id="t1"))[: made.thread.forked_at_seq]
            assert shown(await client.log(thread_id=made.thread.thread_id))[: made.thread.forked_at_seq] == prefix
            await roll_back(client, "t1", pb.Checkpoint(run_id=run.run_id, step=1))
            assert "plainword" in (await said(client, "echo context", "t1")).output_text
            dumps = [key + (await valkey.dump(key) or b"") for key in await valkey.keys("*")]
            assert not [dump for dump in dumps if b"plainword" in dump]
            for name in ("t1", made.thread.thread_id):
                assert await delete(client, name)
            assert sorted(await valkey.keys("t:*")) == sorted(f"t:{{acme/{name}}}:meta".encode() for name in ("t1", made.thread.thread_id))
            assert not [path for path in (tmp_path / "segments").rglob("*") if path.is_file()]
            await valkey.aclose()
            with pytest.raises(NotFound):
                await client.get(last.run_id)
