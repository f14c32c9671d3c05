"""One WebSocket connection: commands one after the other, watches beside them, and its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog
from uvicorn.protocols.utils import ClientDisconnected

from services.common.errors import BulkheadError, Conflict, NotFound, QuotaExceeded
from services.gateway.edge.exchange import Exchange
from services.gateway.edge.problems import problem
from services.gateway.surfaces.websocket import rules as farewells
from services.gateway.surfaces.websocket.asking import App, Ask, Header, http_scope
from services.gateway.surfaces.websocket.commands import Start, Unwatch, Verb, command, encoded, id_of, parsed
from services.gateway.surfaces.websocket.commands import Watch as WatchCommand
from services.gateway.surfaces.websocket.pacing import Pace
from services.gateway.surfaces.websocket.rules import BURST_S, COMMAND_CHARS, DEBT_S, FINISH_S, SUBPROTOCOL, ConnectionRules, Farewell
from services.gateway.surfaces.websocket.watches import Watch, Watches
from services.gateway.surfaces.websocket.wire import WebSocketWire

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
PATH = "/ws"
log = structlog.get_logger("bulkhead.websocket")


class Connection:
    """A connection that was admitted and accepted."""

    def __init__(
        self, http: App, scope: Any, send: Send, wire: WebSocketWire, about: Exchange, headers: Sequence[Header], rules: ConnectionRules
    ) -> None:
        """`about` is the handshake; `headers` go with every request to `http` that a command is."""
        self._http, self._scope, self._send, self._wire = http, scope, send, wire
        self._about, self._headers, self._rules = about, headers, rules
        self._pace = Pace(rules.commands_per_s, rules.commands_per_s * BURST_S, rules.commands_per_s * DEBT_S)
        self._watches = Watches(self._say)
        self._at_work = asyncio.Lock()
        self._active_at = time.monotonic()
        # None: the client has left.
        self._farewell: asyncio.Future[Farewell | None] = asyncio.get_running_loop().create_future()
        self.commands = 0

    async def serve(self, receive: Receive) -> str:
        """Serves it to its end; answers why it ended."""
        with self._about.watch() as barred:
            return await self._serve(receive, barred)

    async def _serve(self, receive: Receive, barred: asyncio.Future[BulkheadError]) -> str:
        """`barred` is done when the client's credential has ended."""
        told = asyncio.create_task(self._wire.told.wait())
        lapsing = asyncio.create_task(self._lapse())
        reading = asyncio.create_task(self._read(receive))
        try:
            await asyncio.wait({told, lapsing, reading, barred, self._farewell}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and (error := reading.exception()) is not None:
                log.error("internal_error", path=PATH, error_id=self._about.error_id, exc_info=error)
                self._end(farewells.BROKEN)
            if barred.done():
                self._end(farewells.UNAUTHENTICATED)
            if lapsing.done():
                self._end(lapsing.result())
            self._end(farewells.DRAINING)
            if (farewell := self._farewell.result()) is None:
                await self._watches.leave()
                return "client_left"
            if farewell in farewells.PATIENT:
                # No new command is read meanwhile, as whoever holds the lock keeps it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(FINISH_S):
                        await self._at_work.acquire()
            self._wire.leave(self._last_words(farewell), farewell.code, farewell.reason)
            return farewell.reason
        finally:
            for task in (told, lapsing, reading):
                task.cancel()
            await asyncio.wait({told, lapsing, reading})
            await self._watches.end()

    def _end(self, farewell: Farewell | None) -> None:
        if not self._farewell.done():
            self._farewell.set_result(farewell)

    @property
    def _client_left(self) -> bool:
        return self._farewell.done() and self._farewell.result() is None

    def _last_words(self, farewell: Farewell) -> str:
        words = {"type": "closing", "code": farewell.code, "reason": farewell.reason, "reconnect_ms": farewell.reconnect_ms}
        return orjson.dumps({**words, "watches": self._watches.cursors()}).decode()

    async def _lapse(self) -> Farewell:
        """Returns when nothing has happened for too long, or the connection is too old."""
        rules, old_at = self._rules, time.monotonic() + self._rules.max_age_s
        while True:
            now = time.monotonic()
            if now >= old_at:
                return farewells.TOO_OLD
            if self._watches or self._at_work.locked():
                self._active_at = now
            idle_at = self._active_at + rules.idle_s
            if now >= idle_at:
                return farewells.IDLE
            await asyncio.sleep(min(old_at, idle_at) - now)

    async def _say(self, message: bytes) -> None:
        """Sends a message. Does not return once the connection is ending: what waits here is ended with it."""
        if not self._farewell.done():
            try:
                # Whoever takes nothing for so long is not waited for any more; one who does take is not timed.
                async with asyncio.timeout(self._rules.slow_reader_s if self._wire.behind else None):
                    await self._send({"type": "websocket.send", "text": message.decode()})
                return
            except TimeoutError:
                self._end(farewells.SLOW_READER)
            except ClientDisconnected:
                self._end(None)
        await asyncio.Event().wait()

    async def _read(self, receive: Receive) -> None:
        """Carries out what comes, in its order."""
        await self._say(self._hello())
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._end(None)
                return
            text = message.get("text")
            if text is None:
                self._end(farewells.BINARY)
                return
            wait_s = self._pace.take(1 + len(text) // COMMAND_CHARS)
            if self._pace.flooded:
                self._end(farewells.FLOOD)
                return
            async with self._at_work:
                await self._answer(text, wait_s)
            self._active_at = time.monotonic()

    def _hello(self) -> bytes:
        rules = self._rules
        limits = {
            "message_bytes": rules.message_bytes, "json_depth": rules.json_depth, "commands_per_s": rules.commands_per_s,
            "watches": rules.watches, "idle_ms": round(rules.idle_s * 1000), "age_ms": round(rules.max_age_s * 1000),
            "ping_ms": round(rules.ping_s * 1000),
        }  # fmt: skip
        return orjson.dumps({"type": "hello", "protocol": SUBPROTOCOL, "request_id": self._about.request_id, "limits": limits})

    async def _answer(self, text: str, wait_s: float) -> None:
        command_id: str | None = None
        try:
            value = parsed(text, self._rules.json_depth)
            command_id = id_of(value)
            if wait_s:
                limit = {"policy": "websocket_commands_per_s", "limit": f"{self._rules.commands_per_s:g}"}
                raise QuotaExceeded("too many commands on this connection", retry_after_s=wait_s, metadata=limit)
            self.commands += 1
            await self._carry_out(*command(value))
        except BulkheadError as error:
            refused = {"type": "error", "id": command_id, "problem": problem(error, self._about, PATH)}
            await self._say(orjson.dumps(refused))

    async def _carry_out(self, verb: Verb, asked: Any) -> None:
        if isinstance(asked, Unwatch):
            if (watch := await self._watches.remove(asked.watch)) is None:
                raise NotFound("there is no such watch on this connection", reason="WATCH_NOT_FOUND")
            await self._acknowledge(asked.id, 200, orjson.dumps(watch.cursor()))
        elif isinstance(asked, WatchCommand):
            subject = {"run_id": asked.run_id} if asked.run_id else {"thread_id": asked.thread_id or ""}
            self._check_room(asked.id)
            watch = Watch(asked.id, subject, asked.after, self._say)
            ask = await self._ask(verb, asked, b"", asked.query(), watch)
            if ask is not None:
                await self._begin(watch, 200, watch.cursor())
        elif isinstance(asked, Start) and asked.watch:
            self._check_room(asked.id)
            watch = Watch(asked.id, {}, 0, self._say)
            ask = await self._ask(verb, asked, encoded(asked.body()), b"", watch)
            if ask is not None:
                watch.subject = {"run_id": ask.header("x-bulkhead-run-id")}
                told = {**watch.cursor(), "thread_id": ask.header("x-bulkhead-thread-id")}
                await self._begin(watch, 202, told, replayed=_replayed(ask))
        elif (ask := await self._ask(verb, asked, encoded(asked.body()))) is not None:
            await self._acknowledge(asked.id, ask.status, ask.body, replayed=_replayed(ask))

    def _check_room(self, watch_id: str) -> None:
        """Raises Conflict for an id that is taken, QuotaExceeded where there are enough watches."""
        if watch_id in self._watches:
            raise Conflict("a watch of this id is open on this connection", reason="WATCH_EXISTS")
        if len(self._watches) >= self._rules.watches:
            limit = {"policy": "websocket_watches", "limit": str(self._rules.watches)}
            raise QuotaExceeded("this connection has as many watches as it may have", metadata=limit)

    async def _ask(self, verb: Verb, asked: Any, body: bytes, query: bytes = b"", watch: Watch | None = None) -> Ask | None:
        """The request that a command is; None where it was refused, which the client has been told then."""
        headers = [*self._headers, (b"content-type", b"application/json"), (b"accept", b"application/json")]
        if asked.idempotency_key is not None:
            headers.append((b"idempotency-key", asked.idempotency_key.encode("ascii")))
        scope = http_scope(self._scope, verb.method, verb.path(asked), headers, query)
        ask = Ask(self._http, scope, body, watch.take if watch is not None else None)
        if watch is not None:
            watch.ask = ask
        try:
            await ask.answered()
        except asyncio.CancelledError:
            # What was asked for is not taken back with its connection; a watch that it brings goes with it, as its client has.
            await ask.finish(FINISH_S, leaving=self._client_left)
            raise
        if ask.status < 400:
            return ask
        told = orjson.Fragment(ask.body) if ask.header("content-type").startswith("application/problem+json") else None
        await self._say(orjson.dumps({"type": "error", "id": asked.id, "problem": told}))
        if ask.status == 401:
            self._end(farewells.UNAUTHENTICATED)
        return None

    async def _begin(self, watch: Watch, status: int, told: Mapping[str, Any], *, replayed: bool = False) -> None:
        # A client that has left by now is one that leaves its watch.
        self._watches.add(watch)
        await self._acknowledge(watch.watch_id, status, orjson.dumps(told), replayed=replayed)
        watch.acknowledged.set()

    async def _acknowledge(self, command_id: str, status: int, result: bytes, *, replayed: bool = False) -> None:
        told: Mapping[str, Any] = {"type": "ack", "id": command_id, "status": status, "replayed": replayed}
        await self._say(orjson.dumps({**told, "result": orjson.Fragment(result) if result else None}))


def _replayed(ask: Ask) -> bool:
    return ask.header("idempotent-replayed") == "true"
