"""What the store keeps of a run, encrypted: sealed with the key of the run's user on its way in, opened on its way out.

What scripts of the store read stays outside: numbers, names and times of a record, and the usage within a checkpoint. What was stored in
plain text before stays readable. What was sealed with a key that is destroyed by now is gone: its run is not there, its event is empty.
"""

import base64
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import orjson

from services.common.envelope import Envelope, is_sealed
from services.common.errors import Overloaded
from services.orchestrator.records import Draft, Event, RunRef, Terminal

EVENT, MESSAGE, OUTBOX, SPEC, STATE, COMMAND, RESULT = "event", "message", "outbox", "spec", "state", "command", "result"
# Fields of a run's record, and as what they are sealed. A result is the data of the last event, or more.
_FIELDS = {b"spec": SPEC, b"result": EVENT, b"carry": STATE}
ERASED = b'{"erased":true}'
MOST_KNOWN = 10_000


class Sealing:
    """Seals and opens; without an envelope it seals nothing and opens nothing, and says so of what it finds sealed."""

    def __init__(self, envelope: Envelope | None = None, user_of: Callable[[RunRef], Awaitable[str]] | None = None) -> None:
        """`user_of` asks the store whose thread it is."""
        self._envelope, self._user_of = envelope, user_of
        # Of the runs that this process owns or owned: their users do not change.
        self._users: OrderedDict[RunRef, str] = OrderedDict()

    def known(self, ref: RunRef, user: str) -> None:
        """Whose run it is, for what is written of it later."""
        if self._envelope is not None:
            self._users[ref] = user
            self._users.move_to_end(ref)
            if len(self._users) > MOST_KNOWN:
                self._users.popitem(last=False)

    async def seal(self, ref: RunRef, items: Sequence[tuple[str, bytes]], user: str | None = None) -> list[bytes]:
        """Each (kind, bytes) sealed; what is empty stays so. Raises Overloaded."""
        if self._envelope is None or not any(plain for _, plain in items):
            return [plain for _, plain in items]
        if user is None:
            user = self._users.get(ref)
        if user is None:
            assert self._user_of is not None
            user = await self._user_of(ref)
        sealed = await self._envelope.seal_all(ref.tenant, user, items)
        return [_stored(kind, plain, blob) for (kind, plain), blob in zip(items, sealed, strict=True)]

    async def drafts(self, ref: RunRef, events: Sequence[Draft]) -> Sequence[Draft]:
        """Events that are to be written."""
        if self._envelope is None or not events:
            return events
        sealed = await self.seal(ref, [(EVENT, event.data) for event in events])
        return [event._replace(data=data) for event, data in zip(events, sealed, strict=True)]

    async def written(
        self, ref: RunRef, events: Sequence[Draft], state: bytes, messages: Sequence[bytes], terminal: Terminal | None
    ) -> tuple[Sequence[Draft], bytes, Sequence[bytes], Terminal | None]:
        """All that one write of an owner brings."""
        if self._envelope is None:
            return events, state, messages, terminal
        ends = [] if terminal is None else [
            (EVENT, terminal.result), (OUTBOX, terminal.outbox), (EVENT, terminal.data), (STATE, terminal.carry),
        ]  # fmt: skip
        items = [(STATE, state), *ends, *((EVENT, event.data) for event in events), *((MESSAGE, message) for message in messages)]
        sealed = await self.seal(ref, items)
        state, rest = sealed[0], sealed[1:]
        if terminal is not None:
            terminal = replace(terminal, result=rest[0], outbox=rest[1], data=rest[2], carry=rest[3])
            rest = rest[4:]
        drafts = [event._replace(data=data) for event, data in zip(events, rest, strict=False)]
        return drafts, state, rest[len(events) :], terminal

    async def open(self, tenant: str, kind: str, stored: bytes) -> bytes | None:
        """Bytes as they were; None where their key is destroyed. Raises Overloaded, Internal."""
        if kind == STATE and stored[:10] == b'{"sealed":':
            stored = base64.b64decode(orjson.loads(stored)["sealed"])
        return (await self._open_all(tenant, kind, [stored]))[0]

    async def _open_all(self, tenant: str, kind: str, stored: Sequence[bytes]) -> Sequence[bytes | None]:
        if not any(map(is_sealed, stored)):
            return stored
        if self._envelope is None:
            raise Overloaded("the data is encrypted, and this process has no keys", reason="ENVELOPE_KEY_MISSING", retry_after_s=5.0)
        return await self._envelope.open_all(tenant, kind, stored)

    async def fields(self, tenant: str, fields: Sequence | Mapping[bytes, bytes] | None) -> Mapping[bytes, bytes] | None:
        """Fields of a run's record; None where there are none, or none that can be read any more."""
        if not fields:
            return None
        found = dict(fields) if isinstance(fields, Mapping) else {fields[i]: fields[i + 1] for i in range(0, len(fields), 2)}
        state = found.get(b"state")
        if state and (opened := await self.open(tenant, STATE, state)) is not state:
            found[b"state"] = opened or b""
        for name, kind in _FIELDS.items():
            stored = found.get(name)
            if not stored:
                continue
            opened = await self.open(tenant, kind, stored)
            if opened is None and name == b"spec":
                return None
            found[name] = opened or b""
        return found

    async def messages(self, tenant: str, stored: Sequence[bytes]) -> Sequence[bytes] | None:
        """Checkpointed messages; None where one cannot be read any more."""
        opened = [raw for raw in await self._open_all(tenant, MESSAGE, stored) if raw is not None]
        return opened if len(opened) == len(stored) else None

    async def events(self, tenant: str, events: Sequence[Event]) -> None:
        """Opens the data of events in place."""
        for event, opened in zip(events, await self._open_all(tenant, EVENT, [event.data for event in events]), strict=True):
            event.data = ERASED if opened is None else opened


def _stored(kind: str, plain: bytes, sealed: bytes) -> bytes:
    if not plain:
        return b""
    if kind != STATE:
        return sealed
    # JSON, so that scripts find the usage.
    return orjson.dumps({"sealed": base64.b64encode(sealed).decode(), "usage": orjson.loads(plain).get("usage", {})})
