"""`bulkhead chat`: one message, or a conversation."""

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from services.cli.client import Api, segment
from services.cli.connection import Connection
from services.cli.failure import FAILED, INTERRUPTED, CommandFailure, Interrupted, Unreachable
from services.cli.following import follow
from services.cli.rendering import ENDINGS, Renderer, print_json

HELP = "/new starts another thread, /quit leaves; Ctrl-C stops an answer"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Where the messages go. An empty agent is the first one of the configuration."""

    connection: Connection
    thread_id: str
    agent: str = ""
    as_json: bool = False


def new_thread_id() -> str:
    """A thread of one's own."""
    return f"chat-{secrets.token_hex(4)}"


def say_once(conversation: Conversation, text: str) -> int:
    """One message; answers the exit status: 0 answered, 1 failed, 130 cancelled by Ctrl-C."""
    ending = asyncio.run(_turn(conversation, text, Renderer()))
    return {"run_finished": 0, "run_cancelled": INTERRUPTED}.get(ending, FAILED)


def converse(conversation: Conversation) -> int:
    """Message after message from the terminal until /quit or the end of the input."""
    renderer = Renderer()
    renderer.note(f"thread {conversation.thread_id}; {HELP}")
    with asyncio.Runner() as runner:
        while True:
            try:
                text = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return 0
            if text in ("/quit", "/exit"):
                return 0
            if text == "/new":
                conversation = Conversation(conversation.connection, new_thread_id(), conversation.agent, conversation.as_json)
                renderer.note(f"thread {conversation.thread_id}")
            elif text.startswith("/"):
                renderer.note(HELP)
            elif text:
                try:
                    runner.run(_turn(conversation, text, Renderer()))
                except Unreachable:
                    raise
                except CommandFailure as failure:
                    renderer.note(str(failure))


async def _turn(conversation: Conversation, text: str, renderer: Renderer) -> str:
    """Runs one message to its end; answers the type of the last event."""
    run_id = f"run_{secrets.token_hex(12)}"
    async with Api(conversation.connection) as api:
        with _CancelOnInterrupt(api, run_id):
            try:
                async for event in _events(api, conversation, run_id, text):
                    if conversation.as_json:
                        print_json(event)
                    else:
                        renderer.show(event)
                    if event.get("type") in ENDINGS:
                        return str(event["type"])
            except Interrupted as failure:
                raise Interrupted(f"{failure}; `bulkhead runs watch {run_id}` tells how it goes on") from None
    raise AssertionError("a stream is followed without end")


def _events(api: Api, conversation: Conversation, run_id: str, text: str) -> AsyncGenerator[dict[str, Any], None]:
    """The events of the run. A broken stream is taken up again where it ended: the run itself goes on meanwhile."""
    body: dict[str, Any] = {"input": text, "run_id": run_id, "stream": True}
    if conversation.agent:
        body["agent"] = conversation.agent
    started = api.events("POST", f"/v1/threads/{segment(conversation.thread_id)}/runs", body=body)
    return follow(api, f"/v1/runs/{segment(run_id)}/events", first=started)


class _CancelOnInterrupt:
    """While it is entered, Ctrl-C asks for the end of the run; a second Ctrl-C leaves at once."""

    def __init__(self, api: Api, run_id: str) -> None:
        self._api, self._run_id = api, run_id
        self._asking: asyncio.Task | None = None
        self._left = False

    def __enter__(self) -> None:
        self._loop, self._turn = asyncio.get_running_loop(), asyncio.current_task()
        self._loop.add_signal_handler(signal.SIGINT, self._interrupted)

    def __exit__(self, *_: object) -> None:
        self._loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._asking is not None:
            # The run has ended, or nobody waits for that: what is still to come over this connection is of no use.
            self._asking.cancel()
        if self._left:
            raise KeyboardInterrupt

    def _interrupted(self) -> None:
        if self._asking is None:
            self._asking = self._loop.create_task(self._cancel())
        elif self._turn is not None:
            self._left = True
            self._turn.cancel()

    async def _cancel(self) -> None:
        # When this fails the stream goes on, and a second Ctrl-C leaves.
        with suppress(CommandFailure):
            await self._api.post(f"/v1/runs/{segment(self._run_id)}/cancel", {"reason": "Ctrl-C in bulkhead chat"})
