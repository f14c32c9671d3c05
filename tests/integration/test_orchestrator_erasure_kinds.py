"""ForgetSubject over every kind of thing that an orchestrator keeps, each with a word of its user's own: no word is left anywhere."""

import asyncio
import re
from contextlib import AsyncExitStack

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc, approvals_pb2, schedules_pb2, schedules_pb2_grpc, webhooks_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1.webhooks_pb2_grpc import WebhookServiceStub

from services.common import testing
from services.orchestrator.testing.harness import served, settings_for, types, write_config
from services.orchestrator.testing.receivers import receiver
from services.orchestrator.testing.stores import cluster_of_one
from services.orchestrator.testing.whole_threads import fork, roll_back, said
from tests import raw_content
from tests.integration.hook_sender import Keeper

KINDS = {
    "said", "label", "empty", "asked", "edited", "reason", "steered", "child", "liked", "corrected", "schedule", "tick", "told", "forked",
    "branch", "undone", "hook", "message",
}  # fmt: skip


class Scene:
    """Callers of one orchestrator, and all that it keeps."""

    def __init__(self, behind, state_url, folder):
        self.behind, self.state_url, self.folder = behind, state_url, folder

    def kept(self, user):
        """Kinds of which a user's word stands in the store or in a segment; "" is the user's name. With where each stands."""
        words = re.compile(rb"%s([a-z]*)" % user.encode())
        found: dict[str, set[str]] = {}
        for name, content in (*raw_content.of_store(self.state_url), *raw_content.of_folder(self.folder)):
            for kind in words.findall(content):
                found.setdefault(kind.decode(), set()).add(name)
        return found

    async def filled(self, client, dialer, user):
        """Everything there is, with words of this user."""
        thread = f"t-{user}"
        with client.calling():
            await client.threads.CreateThread(pb.CreateThreadRequest(thread_id=f"{thread}-empty", metadata={"about": f"{user}empty"}))
        run = await client.wait((await client.start(f"say {user}said", thread_id=thread, metadata={"a": f"{user}label"})).run_id)
        with client.calling():
            judged = pb.RecordFeedbackRequest(run_id=run.run_id, rating=1, text=f"{user}liked", corrected_answer=f"{user}corrected")
            await client.runs.RecordFeedback(judged)
        await self._approved(client, user)
        await self._steered(client, user)
        led = f'tool delegate_to_quick {{"task": "say {user}child"}}'
        assert f"{user}child" in (await client.wait((await client.start(led, agent="lead")).run_id)).output_text
        await fork(client, thread, metadata={"about": f"{user}branch"}, new_thread_id=f"{thread}-fork")
        await said(client, f"say {user}forked", f"{thread}-fork")
        first = (await said(client, "say one", f"{thread}-back")).run_id
        await said(client, f"say {user}undone", f"{thread}-back")
        await roll_back(client, f"{thread}-back", pb.Checkpoint(run_id=first))
        await self._scheduled(client, dialer, user)
        keeper = Keeper(dialer, client)
        hooked = await keeper.hook(instructions=f"{user}hook", description=f"{user}hook")
        await client.wait((await hooked.send({"text": f"{user}message"})).run.run_id)

    async def _approved(self, client, user):
        run = await client.start(f'tool send_mail {{"to": "{user}asked"}}', agent="careful", thread_id=f"t-{user}-mail")
        (one,) = await testing.eventually_async(lambda: client.asked(run.run_id), "somebody is asked")
        arguments = approvals_pb2.Edit(arguments_json=f'{{"to":"{user}edited"}}'.encode())
        await client.decide(one.approval_id, edit=arguments, reason=f"{user}reason")
        await client.wait(run.run_id)
        assert f"{user}edited" in self.behind.tools.sent

    async def _steered(self, client, user):
        gate = self.behind.models.gate
        gate.close()
        run = await client.start("say one two three four", thread_id=f"t-{user}-steer")
        await testing.eventually_async(lambda: gate.waiting == 1, "the model is held midway")
        with client.calling():
            await client.runs.SteerRun(pb.SteerRunRequest(run_id=run.run_id, text=f"say {user}steered"))
        gate.open()
        assert (await client.wait(run.run_id)).output_text == f"{user}steered"
        assert "steer_applied" in types(await client.log(run.run_id))

    async def _scheduled(self, client, dialer, user):
        """One schedule that has made a run, and one that waits."""
        stub = schedules_pb2_grpc.ScheduleServiceStub(dialer.channel("orchestrator"))
        for kind, timing in (("schedule", {"cron": "0 3 1 1 *"}), ("tick", {"interval": {"nanos": 200_000_000}})):
            words = [pb.InputMessage(role="user", text=f"say {user}{kind}")]
            definition = schedules_pb2.ScheduleDefinition(agent="quick", input=words, timing=schedules_pb2.ScheduleTiming(**timing))
            with client.calling():
                made = (await stub.CreateSchedule(schedules_pb2.CreateScheduleRequest(definition=definition))).schedule

        async def ticks():
            with client.calling():
                request = schedules_pb2.ListScheduleTicksRequest(schedule_id=made.schedule_id)
                return (await stub.ListScheduleTicks(request)).ticks

        first = await testing.eventually_async(ticks, "the schedule fires")
        with client.calling():
            await stub.PauseSchedule(schedules_pb2.PauseScheduleRequest(schedule_id=made.schedule_id))
        await client.wait(first[-1].run_id)


@pytest.fixture(params=["alone", "cluster"])
def store_url(request):
    """URL of a store of this test's own, also of one that refuses a step over two hash tags."""
    if request.param == "cluster":
        with cluster_of_one() as url:
            yield url
    else:
        with testing.valkey_server() as (url, _):
            yield url


@pytest.mark.system
async def test_no_word_of_an_erased_user_is_left_of_any_kind_and_all_of_the_other(identities, behind, store_url, tmp_path, impatient):
    config = write_config(tmp_path / "config")
    fields = {
        "segments_dir": tmp_path / "segments", "segments_after_s": 0.05, "webhook_allow_private": True, "schedule_least_interval_s": 0.1,
    }  # fmt: skip
    settings = settings_for(identities, behind, store_url, config, **fields)
    scene = Scene(behind, store_url, tmp_path)
    async with AsyncExitStack() as stack:
        got = await stack.enter_async_context(receiver())
        ana = await stack.enter_async_context(served(settings, identities, testing.principal_of(user="anaq")))
        dialer = await stack.enter_async_context(testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}))
        bob = type(ana)(dialer, identities, testing.principal_of(user="bobq"))
        for client, user in ((ana, "anaq"), (bob, "bobq")):
            await scene.filled(client, dialer, user)
        # The messages about these stay on their way.
        got.gate.close()
        hooks = WebhookServiceStub(dialer.channel("orchestrator"))
        with testing.calling(identities):
            await hooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url=got.url("/"), event_types=["run.finished"]))
        for client, user in ((ana, "anaq"), (bob, "bobq")):
            await client.wait((await client.start(f"say {user}told", thread_id=f"t-{user}")).run_id)
        await testing.eventually_async(lambda: got.gate.waiting == 2, "both are being told")

        def everywhere(user):
            found = scene.kept(user)
            moved = any(name.startswith("segments/") for name in found.get("said", ()))
            told = any(":hook-message:" in name for name in found.get("told", ()))
            return found if moved and told and found.keys() >= KINDS else None

        for user in ("anaq", "bobq"):
            await testing.eventually_async(lambda user=user: everywhere(user), f"the store and the segments have {user}'s words")
        admin = admin_pb2_grpc.AdminServiceStub(dialer.channel("orchestrator"))
        with testing.calling(identities):
            begun = (await admin.ForgetSubject(admin_pb2.ForgetSubjectRequest(user="anaq"))).erasure

        async def done():
            with testing.calling(identities):
                erasure = (await admin.GetErasure(admin_pb2.GetErasureRequest(erasure_id=begun.erasure_id))).erasure
            return erasure.state == admin_pb2.ERASURE_STATE_DONE

        await testing.eventually_async(done, "the erasure is done")
        words = {kind: names for kind, names in (await asyncio.to_thread(scene.kept, "anaq")).items() if kind in KINDS}
        assert not words, words
        # Lists of threads that have ended lose a name with the next look of whoever keeps them.
        await testing.eventually_async(lambda: not scene.kept("anaq"), "the name is nowhere")
        assert everywhere("bobq")
        got.gate.open()
