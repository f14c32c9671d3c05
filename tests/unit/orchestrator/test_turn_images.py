"""Images of an input in the model calls of a turn: as many as there is room for, and never in what is kept."""

import base64

import orjson
import pytest

from services.common.errors import NotFound, Overloaded
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.ports import Message
from services.orchestrator.testing.turn_world import Journal, World, agent
from services.orchestrator.turn import patience

PNG = b"\x89PNG\r\n\x1a\n"


class Blobs:
    """Images by id, as a Keeper reads them."""

    def __init__(self, **contents):
        self.contents, self.read_by, self.away = contents, [], 0

    async def read(self, tenant, user, blob_id):
        self.read_by.append((tenant, user, blob_id))
        if self.away:
            self.away -= 1
            raise Overloaded("away", reason="BLOBS_UNAVAILABLE", retry_after_s=1.0)
        if blob_id not in self.contents:
            raise NotFound("no such blob", reason="BLOB_NOT_FOUND")
        content = self.contents[blob_id]
        return BlobRecord(blob_id, tenant, user, "image/png", len(content), "", "", 0), content


def said(*blob_ids, text="what is it?", detail=""):
    return {"role": "user", "text": text, "images": [{"blob_id": blob_id, "detail": detail} for blob_id in blob_ids]}


def seeing(blobs, *messages, reply=lambda call: "a cat", **fields):
    return World(reply, agent(), asked_for={"input": list(messages)}, blobs=blobs, **fields)


def parts_of(call, place=1):
    return orjson.loads(call.messages[place].content)


def url(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_images_come_before_the_text_in_each_call_and_stand_nowhere_else():
    steps = iter([[("look", {})], "a cat"])
    blobs = Blobs(a=PNG, b=PNG + b"2")
    world = seeing(blobs, said("a", "b", detail="low"), reply=lambda call: next(steps))
    world.run()
    for call in world.asked:
        assert parts_of(call) == [
            {"type": "image_url", "image_url": {"url": url(PNG), "detail": "low"}},
            {"type": "image_url", "image_url": {"url": url(PNG + b"2"), "detail": "low"}},
            {"type": "text", "text": "what is it?"},
        ]
    assert set(blobs.read_by) == {("acme", "ana", "a"), ("acme", "ana", "b")}
    kept = [*world.journal.messages, world.journal.state, orjson.dumps(world.journal.events), world.journal.terminals[0].result]
    assert not any(b"base64" in raw or base64.b64encode(PNG)[:8] in raw for raw in kept)
    assert any(Message.decode(raw).images == (("a", "low"), ("b", "low")) for raw in world.journal.messages)


def test_one_that_is_gone_is_told_in_words_and_once_by_a_warning():
    steps = iter([[("look", {})], "a cat"])
    world = seeing(Blobs(b=PNG), said("a", "b"), reply=lambda call: next(steps))
    world.run()
    assert parts_of(world.asked[1])[0] == {"type": "text", "text": "[An image that the user sent here is no longer there.]"}
    assert parts_of(world.asked[1])[1]["type"] == "image_url"
    assert [(data["code"], data["attributes"]["blob_id"]) for data in world.journal.of("warning")] == [("image_gone", "a")]


def test_the_oldest_are_left_out_where_a_request_would_not_hold_them_all():
    large = PNG + bytes(1_200_000)
    world = seeing(Blobs(a=large, b=large, c=large), said("a", "b"), {"role": "assistant", "text": "and?"}, said("c", text="this one"))
    world.run()
    (call,) = world.asked
    kinds = [[part["type"] for part in parts_of(call, place)] for place in (1, 3)]
    assert kinds == [["text", "image_url", "text"], ["image_url", "text"]]
    assert sum(len(m.content or m.text.encode()) for m in call.messages) < 4 * 1024 * 1024
    assert [data["code"] for data in world.journal.of("warning")] == ["image_left_out"]
    # Those behind it are not even read, small as they may be.
    blobs = Blobs(tiny=PNG, a=large, b=large, c=large)
    seeing(blobs, said("tiny", "a", "b", "c")).run()
    assert {blob_id for _, _, blob_id in blobs.read_by} == {"a", "b", "c"}


def test_a_store_that_is_away_is_waited_for_and_one_that_stays_away_ends_the_run(monkeypatch):
    monkeypatch.setattr(patience, "AWAY_WAIT_S", 0.0)
    blobs = Blobs(a=PNG)
    blobs.away = 5
    assert seeing(blobs, said("a")).run()["output_text"] == "a cat"
    blobs.away = 10_000
    result = seeing(blobs, said("a")).run()
    assert (result["error"]["reason"], result["error"]["retryable"]) == ("BLOBS_UNAVAILABLE", True)


@pytest.mark.parametrize("lost", [{n: survives} for n in range(1, 5) for survives in (True, False)])
def test_the_next_owner_has_the_images_too(lost):
    world = seeing(Blobs(a=PNG), said("a"), reply=lambda call: "a cat" if len(call.messages) > 3 else [("look", {})], journal=Journal(lost))
    world.run()
    assert all(parts_of(call)[0]["type"] == "image_url" for call in world.asked)
