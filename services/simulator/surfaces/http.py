"""The ASGI application: which path goes where, and what a path that leads nowhere answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import orjson
import structlog

from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator
from services.simulator.surfaces import gemini_batches
from services.simulator.surfaces.anthropic import AnthropicSurface
from services.simulator.surfaces.anthropic_batches import MessageBatchSurface
from services.simulator.surfaces.azure import AzureSurface
from services.simulator.surfaces.batches import BatchSurface
from services.simulator.surfaces.control import ControlSurface
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.gemini import GeminiSurface
from services.simulator.surfaces.openai import OpenAiSurface

Handler = Callable[[Exchange], Awaitable[None]]


class _AnyMethod(Protocol):
    async def call(self, exchange: Exchange, method: str) -> None: ...


_PAGE = b"""<!doctype html><title>Bulkhead model simulator</title>
<h1>Bulkhead model simulator</h1>
<p>This is no language model. It answers the APIs of OpenAI, Anthropic and Gemini by rules: see docs/simulator.md.</p>
<ul><li><a href="/v1/models">/v1/models</a><li><a href="/sim/log">/sim/log</a><li><a href="/sim/faults">/sim/faults</a>
<li><a href="/sim/scenarios">/sim/scenarios</a><li><a href="/sim/in-flight">/sim/in-flight</a></ul>
"""
log = structlog.get_logger("bulkhead.simulator")


class HttpApp:
    """Routes requests. `closing` is set when the process is to end, which lets go of stalled answers."""

    def __init__(self, simulator: Simulator, *, ready: Callable[[], bool] = lambda: True):
        self.closing = asyncio.Event()
        self._ready = ready
        openai, anthropic, gemini = OpenAiSurface(simulator), AnthropicSurface(simulator), GeminiSurface(simulator)
        control, batches = ControlSurface(simulator), BatchSurface(simulator)
        messages, contents = MessageBatchSurface(simulator), gemini_batches.ContentBatchSurface(simulator)
        self._batches = (batches, messages, contents)
        self._gemini, self._contents = gemini, contents
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/v1/chat/completions": {"POST": openai.chat},
            "/v1/messages": {"POST": anthropic.messages},
            "/v1/messages/count_tokens": {"POST": anthropic.count_tokens},
            "/v1/messages/batches": _all_of(messages, "GET", "POST"),
            "/v1/embeddings": {"POST": openai.embed},
            "/v1/models": {"GET": openai.models},
            "/v1beta/models": {"GET": gemini.models},
            "/v1beta/files": _all_of(contents, "GET"),
            "/v1beta/batches": _all_of(contents, "GET"),
            gemini_batches.UPLOAD: _all_of(contents, "POST", "PUT"),
            "/v1/rerank": {"POST": openai.rerank},
            "/v2/rerank": {"POST": openai.rerank},
            "/rerank": {"POST": openai.rerank},
            "/v1/files": {"GET": batches.files, "POST": batches.upload},
            "/v1/batches": {"GET": batches.batches, "POST": batches.create},
            "/health": {"GET": _healthy},
            "/ready": {"GET": self._answer_ready},
            "/": {"GET": _front_page},
            "/sim/faults": {"GET": control.list_faults, "POST": control.add_fault, "DELETE": control.delete_faults},
            "/sim/scenarios": {"GET": control.list_scenarios},
            "/sim/log": {"GET": control.read_log, "DELETE": control.clear_log},
            "/sim/in-flight": {"GET": control.in_flight},
        }
        self._named_routes: Mapping[str, Mapping[str, Handler]] = {
            "/v1/models/": {"GET": openai.model, "POST": gemini.call},
            "/v1beta/models/": {"GET": gemini.model, "POST": self._call_gemini},
            "/v1beta/files/": _all_of(contents, "GET", "DELETE"),
            "/v1beta/batches/": _all_of(contents, "GET", "POST", "DELETE"),
            "/v1/messages/batches/": _all_of(messages, "GET", "POST", "DELETE"),
            "/openai/": _all_of(AzureSurface(openai, batches), "GET", "POST", "DELETE"),
            "/v1/files/": {"GET": batches.file, "DELETE": batches.delete_file},
            "/v1/batches/": {"GET": batches.batch, "POST": batches.cancel},
            "/sim/faults/": {"DELETE": control.delete_fault},
            "/sim/scenarios/": {"PUT": control.put_scenario, "DELETE": control.delete_scenario},
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self.closing)
        try:
            await self._handler(scope["method"], scope["path"])(exchange)
        except Refused as refused:
            await exchange.respond(refused.status, refused.body())
        except Exception:
            # The one place where an unforeseen failure ends: it is logged, and the client gets OpenAI's form of it.
            log.exception("request_failed", path=scope["path"])
            if exchange.started:
                await exchange.break_off(at_once=False)
            else:
                await exchange.respond(500, Refused("The simulator has a defect; see its log.", status=500).body())
        finally:
            exchange.finish()

    def release(self) -> None:
        """Let go of stalled answers: the process is to end."""
        self.closing.set()
        for surface in self._batches:
            surface.stop()

    def _handler(self, method: str, path: str) -> Handler:
        handlers = self._routes.get(path)
        if handlers is None:
            handlers = next(
                (found for prefix, found in self._named_routes.items() if path.startswith(prefix) and len(path) > len(prefix)), None
            )
        if handlers is None:
            raise Refused(f"Unknown request URL: {method} {path[:200]}.", status=404, code="unknown_url")
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise Refused(f"Not allowed to {method} on {path[:200]}.", status=405, code="method_not_supported")
        return handler

    async def _call_gemini(self, exchange: Exchange) -> None:
        if exchange.path.endswith(gemini_batches.CREATE):
            await self._contents.call(exchange, "POST")
        else:
            await self._gemini.call(exchange)

    async def _answer_ready(self, exchange: Exchange) -> None:
        ready = self._ready() and not self.closing.is_set()
        await exchange.respond(200 if ready else 503, orjson.dumps({"status": "ready" if ready else "not ready"}))


def _all_of(surface: _AnyMethod, *methods: str) -> Mapping[str, Handler]:
    return {method: partial(surface.call, method=method) for method in methods}


async def _healthy(exchange: Exchange) -> None:
    await exchange.respond(200, b'{"status":"ok","server":"bulkhead-simulator"}')


async def _front_page(exchange: Exchange) -> None:
    await exchange.respond(200, _PAGE, content_type=b"text/html; charset=utf-8")
