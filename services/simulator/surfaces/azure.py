"""Azure's addresses of what OpenAI has under /v1: files, batches and completions, with a version in the query and a key of its own name."""

import re

from services.simulator.refusals import Refused
from services.simulator.surfaces.batches import BatchSurface
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.openai import OpenAiSurface

PATH = "/openai/"
ENDPOINTS = ("/chat/completions",)
_CALL = re.compile(r"/openai/deployments/[^/]+/(chat/completions|embeddings)")


class AzureSurface:
    """Answers Azure's endpoints out of those of OpenAI."""

    def __init__(self, openai: OpenAiSurface, batches: BatchSurface):
        self._openai = openai
        self._batches = batches

    async def call(self, exchange: Exchange, method: str) -> None:
        """Any method on /openai/; without a version there is nothing, as with Azure."""
        if not exchange.query("api-version"):
            raise Refused("Resource not found", status=404, code="404")
        if key := exchange.headers.get("api-key"):
            exchange.headers["authorization"] = f"Bearer {key}"
        found = _CALL.fullmatch(exchange.path)
        if found is not None and method == "POST":
            await (self._openai.chat(exchange) if found[1] == "chat/completions" else self._openai.embed(exchange))
            return
        exchange.path = f"/v1/{exchange.path.removeprefix(PATH)}"
        kind, _, rest = exchange.path.removeprefix("/v1/").partition("/")
        batches = self._batches
        match method, kind:
            case "POST", "files" if not rest:
                await batches.upload(exchange)
            case "GET", "files":
                await (batches.file(exchange) if rest else batches.files(exchange))
            case "DELETE", "files" if rest:
                await batches.delete_file(exchange)
            case "POST", "batches":
                await (batches.cancel(exchange) if rest else batches.create(exchange, ENDPOINTS))
            case "GET", "batches":
                await (batches.batch(exchange) if rest else batches.batches(exchange))
            case _:
                raise Refused("Resource not found", status=404, code="404")
