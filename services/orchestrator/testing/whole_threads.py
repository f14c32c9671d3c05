"""Calls that fork, roll back and delete threads, and what is seen of them."""

from collections.abc import Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import Client

# What a model is asked for: two steps, each with a tool call that changes nothing, or that sends a mail.
TWO = 'tool calculator {"expression":"1+2"}\ntool calculator {"expression":"4+5"}'
MAILS = 'tool send_mail {"to":"ana"}\ntool send_mail {"to":"bob"}'


async def said(client: Client, text: str, thread_id: str, agent: str = "helper") -> pb.Run:
    """A run of one message, ended."""
    return await client.wait((await client.start(text, thread_id=thread_id, agent=agent)).run_id)


async def create(client: Client, thread_id: str, ttl_s: int | None = None) -> pb.Thread:
    """A new thread, which lives for so long where a time to live is given."""
    ttl = None if ttl_s is None else Duration(seconds=ttl_s)
    with client.calling():
        return (await client.threads.CreateThread(pb.CreateThreadRequest(thread_id=thread_id, ttl=ttl))).thread


async def fork(client: Client, thread_id: str, at: pb.Checkpoint | None = None, **fields: Any) -> pb.ForkThreadResponse:
    """Forks a thread."""
    with client.calling():
        return await client.threads.ForkThread(pb.ForkThreadRequest(thread_id=thread_id, at=at, **fields))


async def roll_back(client: Client, thread_id: str, to: pb.Checkpoint | None = None, **fields: Any) -> pb.RollbackThreadResponse:
    """Rolls a thread back."""
    with client.calling():
        return await client.threads.RollbackThread(pb.RollbackThreadRequest(thread_id=thread_id, to=to, **fields))


async def delete(client: Client, thread_id: str) -> bool:
    """Deletes a thread; whether nothing is left."""
    with client.calling():
        return (await client.threads.DeleteThread(pb.DeleteThreadRequest(thread_id=thread_id))).completed


async def thread(client: Client, thread_id: str) -> pb.Thread:
    """A thread."""
    with client.calling():
        return (await client.threads.GetThread(pb.GetThreadRequest(thread_id=thread_id))).thread


def shown(events: Sequence[pb.Event]) -> list[tuple]:
    """What of events does not depend on their thread."""
    return [(e.seq, e.run_id, e.type, e.data_json, e.occurred_at.ToMilliseconds(), e.attempt) for e in events]


async def remembered(behind: Fakes, run: pb.Run) -> None:
    """Waits until the turn of a run has reached memory."""
    sessions = behind.sessions.turns
    await testing.eventually_async(lambda: run.run_id in sessions["acme", run.thread_id], "the turn is remembered")


async def keys_of(valkey: Any, thread_id: str) -> list[str]:
    """Keys of the store that bear a thread's name."""
    return sorted(key.decode() for key in await valkey.keys("*") if thread_id in key.decode())
