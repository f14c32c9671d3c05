"""Runs for tests of the store."""

import uuid

import orjson

from services.orchestrator.records import Limits, RunRef, RunSpec, Terminal

LEASE_S = 0.001
CRASHES = 3
QUEUED, CANCELLED = b'{"input":[]}', b'{"output_text":"","usage":{}}'


def spec(thread_id="t", append_only=False):
    return RunSpec(
        thread_id, "a", "1", "d", [{"role": "user", "text": "hi"}], Limits(), {"tenant": "acme", "user": "ana"}, append_only=append_only
    )


def done(text="ok"):
    data = orjson.dumps({"output_text": text})
    return Terminal("succeeded", data, "run_finished", data)


async def accept(store, ref, *, slots=0, key="", print_="", append_only=False, user="ana"):
    reservation = await store.reserve(ref, user, slots, key, print_)
    if reservation.verdict != "new":
        return reservation.verdict
    accepted = await store.accept(ref, user, spec(ref.thread_id, append_only), "stable", reservation, "", (QUEUED, CANCELLED))
    return accepted.verdict


def new_ref(thread_id=None):
    return RunRef("acme", thread_id or uuid.uuid4().hex, uuid.uuid4().hex)


async def log_of(store, ref):
    return (await store.read(ref, 0, 10_000, False))[3]
