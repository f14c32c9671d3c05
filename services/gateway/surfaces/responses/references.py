"""Items of earlier responses that an input names instead of sending them again."""

from contextlib import aclosing

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import NotFound
from services.common.rpc import context as call_context
from services.gateway.adapters.backends import Backends
from services.gateway.following import Follower
from services.gateway.surfaces.responses import ids, reading
from services.gateway.surfaces.responses.input import Reference
from services.gateway.surfaces.responses.request import ResponseRequest


class References:
    """Holds references against what a response goes on from. That has them already, so there is nothing to add."""

    def __init__(self, backends: Backends, follower: Follower) -> None:
        self._runs, self._follower = backends.runs, follower

    async def check(self, asked: ResponseRequest) -> None:
        """Raises InvalidInput that names the first reference to what is not there, and PermissionDenied for who may not read it."""
        if not asked.input.references:
            return
        call_context.principal().require("runs:read")
        thread_id = asked.thread_id
        if asked.previous_run:
            try:
                thread_id = (await self._runs.GetRun(pb.GetRunRequest(run_id=asked.previous_run))).run.thread_id
            except NotFound:
                raise ids.no_previous() from None
        wanted: dict[str, list[Reference]] = {}
        for one in asked.input.references:
            wanted.setdefault(ids.run_of_item(one.item_id), []).append(one)
        # What was said behind the previous response is no part of what goes on from it.
        reached = not asked.previous_run
        try:
            async with aclosing(reading.newest_first(self._runs, thread_id)) as runs:
                async for run in runs:
                    reached = reached or run.run_id == asked.previous_run
                    if reached and not run.rolled_back_seq:
                        await self._check_items(run, thread_id, wanted.pop(run.run_id, []))
                    if not wanted:
                        break
        except NotFound:
            raise ids.not_found("conversation") from None
        for missing in wanted.values():
            raise ids.no_item(missing[0].where)

    async def _check_items(self, run: pb.Run, thread_id: str, references: list[Reference]) -> None:
        if not references:
            return
        known = {item["id"] for item in reading.items_of(await reading.of_thread(self._follower, run, thread_id))}
        for one in references:
            if one.item_id not in known:
                raise ids.no_item(one.where)
