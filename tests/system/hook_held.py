"""An orchestrator that takes messages for hooks and never answers: whoever kills it does so between the two."""

import asyncio

from services.common.rpc.server import serve
from services.common.settings import load
from services.orchestrator import app
from services.orchestrator.hooks.accepting import TakingMessages
from services.orchestrator.settings import Settings

TAKEN = "taken and not answered"


class Held(TakingMessages):
    """Takes messages as it should."""

    async def accept(self, message):
        """Never returns."""
        await super().accept(message)
        print(TAKEN, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    app.TakingMessages = Held
    serve(load(Settings), app.build)
