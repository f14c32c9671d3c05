"""Webhooks from the outside: real orchestrators, real receivers, signatures worked out as a receiver does."""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import orjson
import pytest
from bulkhead.orchestrator.v1 import webhooks_pb2 as pb
from bulkhead.orchestrator.v1 import webhooks_pb2_grpc as rpc
from standardwebhooks import Webhook, WebhookVerificationError

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied, QuotaExceeded
from services.orchestrator.testing.fakes import fakes
from services.orchestrator.testing.harness import dialed, process, served, settings_for, write_config
from services.orchestrator.testing.receivers import receiver

ALL = ["run.finished", "run.failed", "run.cancelled"]
PENDING, DELIVERED = pb.DELIVERY_STATUS_PENDING, pb.DELIVERY_STATUS_DELIVERED
FAILED, DROPPED = pb.DELIVERY_STATUS_FAILED, pb.DELIVERY_STATUS_DROPPED


class Hooks:
    """A caller of WebhookService."""

    def __init__(self, client, dialer, **principal):
        self.client, self.principal = client, testing.principal_of(**principal)
        self.stub = rpc.WebhookServiceStub(dialer.channel("orchestrator"))

    async def call(self, method, **fields):
        request = getattr(pb, f"{method}Request")(**fields)
        with testing.calling(self.client.identities, self.principal):
            return await getattr(self.stub, method)(request)

    async def create(self, url, event_types=ALL, **fields):
        return await self.call("CreateWebhook", url=url, event_types=event_types, **fields)

    async def log(self, webhook_id):
        return list((await self.call("ListDeliveries", webhook_id=webhook_id)).deliveries)

    async def ended(self, webhook_id, count=1):
        """The log, once `count` deliveries of it are not pending."""

        async def enough():
            log = await self.log(webhook_id)
            return log if sum(d.status != PENDING for d in log) >= count else None

        return await testing.eventually_async(enough, f"{count} deliveries have ended")


class Scene:
    """An orchestrator, what stands behind it, and a receiver."""

    def __init__(self, client, behind, got, dialer):
        self.client, self.behind, self.receiver, self.dialer = client, behind, got, dialer
        self.hooks = Hooks(client, dialer)

    async def run(self, text="say hi", **fields):
        run = await self.client.start(text, **fields)
        return await self.client.wait(run.run_id)


@pytest.fixture
async def scene(identities, state_url, tmp_path):
    async with fakes(identities) as behind, receiver() as got:
        settings = settings_for(
            identities, behind, state_url, write_config(tmp_path / "config"), webhook_allow_private=True, webhook_retries_s=(0.05, 0.1)
        )
        async with served(settings, identities) as client:
            async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
                yield Scene(client, behind, got, dialer)


async def test_every_kind_of_end_is_told_once_and_signed(scene):
    made = await scene.hooks.create(scene.receiver.url("/a?b=c"), description="mine")
    assert made.secret.startswith("whsec_")
    run = await scene.run("say one two", metadata={"order": "7"})
    # An agent with recall has a memory turn in its outbox as well.
    recalled = await scene.run(agent="helper")
    scene.behind.models.gate.close()
    at_work = await scene.client.start("say one two three")
    queued = await scene.client.start("say never", thread_id=at_work.thread_id)
    await testing.eventually_async(lambda: scene.behind.models.gate.waiting, "at work")
    await scene.client.cancel(queued.run_id)
    await scene.client.cancel(at_work.run_id)
    scene.behind.models.gate.open()
    scene.behind.models.failure = InvalidInput("no")
    failed = await scene.run()
    log = await scene.hooks.ended(made.webhook.webhook_id, 5)
    of_run = {orjson.loads(r.body)["data"]["run_id"]: r for r in scene.receiver.got}
    assert len(of_run) == len(scene.receiver.got) == len({r.message_id for r in scene.receiver.got}) == 5
    kinds = {run_id: orjson.loads(r.body)["type"] for run_id, r in of_run.items()}
    assert kinds == {
        run.run_id: "run.finished", recalled.run_id: "run.finished", at_work.run_id: "run.cancelled", queued.run_id: "run.cancelled",
        failed.run_id: "run.failed",
    }  # fmt: skip
    assert {d.run_id: d.event_type for d in log} == kinds
    assert all(r.signed_by(made.secret) and r.path == "/a?b=c" for r in of_run.values())
    told = of_run[run.run_id]
    assert told.headers["content-type"] == "application/json"
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 60
    body = orjson.loads(told.body)
    ended = datetime.fromisoformat(body["timestamp"])
    assert ended.astimezone(UTC).replace(microsecond=ended.microsecond // 1000 * 1000) == run.ended_at.ToDatetime(UTC)
    assert (told.data["thread_id"], told.data["agent"], told.data["status"]) == (run.thread_id, "quick", "succeeded")
    assert (told.data["output_text"], told.data["output_truncated"]) == ("one two", False)
    assert told.data["metadata"] == {"order": "7"}
    assert of_run[failed.run_id].data["error"]["reason"]
    mine = next(d for d in log if d.run_id == run.run_id)
    assert (mine.status, mine.message_id, mine.attempt_count) == (DELIVERED, told.message_id, 1)
    assert [(a.response_code, a.error) for a in mine.attempts] == [(204, "")]


async def test_only_what_was_asked_for_and_only_what_ended_since(scene):
    await scene.run()
    cancels = await scene.hooks.create(scene.receiver.url("/cancels"), ["run.cancelled"])
    all_ = await scene.hooks.create(scene.receiver.url("/all"))
    await scene.run("say told")
    await scene.hooks.ended(all_.webhook.webhook_id)
    assert [(r.path, r.data["output_text"]) for r in scene.receiver.got] == [("/all", "told")]
    assert not await scene.hooks.log(cancels.webhook.webhook_id)


async def test_a_refusal_is_tried_again_under_the_same_id_until_it_is_taken(scene):
    answers = [(500, {}, b"no"), (302, {"location": scene.receiver.url("/elsewhere")}, b""), (200, {}, b"x" * 1_000_000)]
    scene.receiver.answer = lambda _: answers[min(len(scene.receiver.got), 3) - 1]
    made = await scene.hooks.create(scene.receiver.url())
    await scene.run()
    (delivery,) = await scene.hooks.ended(made.webhook.webhook_id)
    assert delivery.status == DELIVERED
    assert [a.response_code for a in delivery.attempts] == [500, 302, 200]
    assert {(r.message_id, r.path, r.body) for r in scene.receiver.got} == {(delivery.message_id, "/hook", scene.receiver.got[0].body)}, (
        "no redirect is followed, and each try is the same message"
    )
    assert all(r.signed_by(made.secret) for r in scene.receiver.got)


async def test_after_the_last_try_it_has_failed_and_can_be_sent_again(scene):
    scene.receiver.answer = lambda _: (503, {}, b"")
    made = await scene.hooks.create(scene.receiver.url())
    await scene.run()
    (delivery,) = await scene.hooks.ended(made.webhook.webhook_id)
    assert (delivery.status, delivery.attempt_count, delivery.HasField("next_attempt_at")) == (FAILED, 3, False)
    scene.receiver.answer = lambda _: (200, {}, b"")
    for _ in range(2):
        again = await scene.hooks.call("Redeliver", delivery_id=delivery.delivery_id, idempotency_key="k")
        assert again.delivery.delivery_id == delivery.delivery_id

    async def taken():
        return (await scene.hooks.log(made.webhook.webhook_id))[0].status == DELIVERED

    await testing.eventually_async(taken, "it is sent again")
    assert [r.message_id for r in scene.receiver.got] == [delivery.message_id] * 4
    with pytest.raises(IdempotencyMismatch):
        await scene.hooks.call("Redeliver", delivery_id="msg_x:" + made.webhook.webhook_id, idempotency_key="k")
    for unknown in ("", "x", "msg_x:" + made.webhook.webhook_id, delivery.message_id + ":whk_x"):
        with pytest.raises(NotFound):
            await scene.hooks.call("Redeliver", delivery_id=unknown)


async def test_whoever_answers_410_is_told_nothing_more(scene):
    scene.receiver.answer = lambda _: (410, {}, b"")
    made = await scene.hooks.create(scene.receiver.url())
    await scene.run()
    (delivery,) = await scene.hooks.ended(made.webhook.webhook_id)
    assert (delivery.status, delivery.attempt_count) == (FAILED, 1)
    (listed,) = (await scene.hooks.call("ListWebhooks")).webhooks
    assert listed.disabled_reason == "GONE"
    await scene.run()
    other = await scene.hooks.create(scene.receiver.url("/other"), description="second")
    await scene.run()
    await scene.hooks.ended(other.webhook.webhook_id)
    assert [r.path for r in scene.receiver.got] == ["/hook", "/other"]
    with pytest.raises(Conflict):
        await scene.hooks.call("Redeliver", delivery_id=delivery.delivery_id)


async def test_both_secrets_sign_while_they_overlap(scene):
    made = await scene.hooks.create(scene.receiver.url())
    webhook_id = made.webhook.webhook_id
    rotated = await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, idempotency_key="r")
    assert rotated.secret != made.secret
    newer = await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, idempotency_key="newer")
    assert (
        (await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, idempotency_key="r")).secret == rotated.secret != newer.secret
    )
    assert rotated.webhook.earlier_secret_until.ToDatetime() > rotated.webhook.created_at.ToDatetime()
    await scene.run()
    await scene.hooks.ended(webhook_id)
    assert [scene.receiver.got[0].signed_by(s) for s in (made.secret, rotated.secret)] == [True, True]
    last = await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, overlap={"seconds": 0}, idempotency_key="last")
    with pytest.raises(Conflict) as gone:
        await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, idempotency_key="r")
    assert gone.value.reason == "WEBHOOK_SECRET_REPLACED"
    await scene.run()
    await scene.hooks.ended(webhook_id, 2)
    assert [scene.receiver.got[1].signed_by(s) for s in (made.secret, rotated.secret, last.secret)] == [False, False, True]
    for seconds in (-1, 8 * 86_400):
        with pytest.raises(InvalidInput):
            await scene.hooks.call("RotateWebhookSecret", webhook_id=webhook_id, overlap={"seconds": seconds})
    (listed,) = (await scene.hooks.call("ListWebhooks")).webhooks
    assert "whsec_" not in str(listed)


async def test_receivers_with_the_library_of_the_specification_take_what_was_sent_and_nothing_else(scene):
    scene.receiver.answer = lambda _: (503 if len(scene.receiver.got) == 1 else 204, {}, b"")
    scene.receiver.gate.close()
    made = await scene.hooks.create(scene.receiver.url())
    run = await scene.run("say grüße")
    await testing.eventually_async(lambda: scene.receiver.gate.waiting, "the first try is there")
    sent_s = int(scene.receiver.got[0].headers["webhook-timestamp"])
    await testing.eventually_async(lambda: time.time() >= sent_s + 1, "the next try is in another second")
    scene.receiver.gate.open()
    rotated = await scene.hooks.call("RotateWebhookSecret", webhook_id=made.webhook.webhook_id)
    await scene.hooks.ended(made.webhook.webhook_id)
    tries = scene.receiver.got
    library = Webhook(made.secret)
    assert [library.verify(each.body, each.headers)["data"]["run_id"] for each in tries] == [run.run_id] * 2
    assert tries[0].message_id == tries[1].message_id
    assert sent_s < int(tries[1].headers["webhook-timestamp"]), "each try is of its own time: receivers take none that is old"
    first = tries[0]
    early, old = ({"webhook-timestamp": str(sent_s - s)} for s in (1, 301))
    for body, changed, why in (
        (first.body.replace(b"succeeded", b"cancelled"), {}, "No matching"), (first.body, {"webhook-id": "msg_0"}, "No matching"),
        (first.body, early, "No matching"), (first.body, old, "too old"),
    ):  # fmt: skip
        with pytest.raises(WebhookVerificationError, match=why):
            library.verify(body, {**first.headers, **changed})
    await scene.run("say during the rotation")
    await scene.hooks.ended(made.webhook.webhook_id, 2)
    last = tries[-1]
    for secret in (made.secret, rotated.secret):
        assert Webhook(secret).verify(last.body, last.headers)["data"]["output_text"] == "during the rotation"
    with pytest.raises(WebhookVerificationError, match="No matching"):
        Webhook(rotated.secret[:-4] + "AAA=").verify(last.body, last.headers)


async def test_webhooks_are_their_tenants(scene):
    made = await scene.hooks.create(scene.receiver.url())
    webhook_id = made.webhook.webhook_id
    await scene.run()
    (delivery,) = await scene.hooks.ended(webhook_id)
    stranger = Hooks(scene.client, scene.dialer, tenant="globex")
    assert not (await stranger.call("ListWebhooks")).webhooks
    for method, fields in (
        ("DeleteWebhook", {"webhook_id": webhook_id}), ("RotateWebhookSecret", {"webhook_id": webhook_id}),
        ("GetWebhook", {"webhook_id": webhook_id}), ("ListDeliveries", {"webhook_id": webhook_id}),
        ("Redeliver", {"delivery_id": delivery.delivery_id}),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await stranger.call(method, **fields)
    colleague = Hooks(scene.client, scene.dialer, user="bob", scopes=["webhooks:read"])
    (listed,) = (await colleague.call("ListWebhooks")).webhooks
    assert (listed.webhook_id, (await colleague.call("GetWebhook", webhook_id=webhook_id)).webhook) == (webhook_id, listed)
    for missing in ("", "whk_none", "a b/c"):
        with pytest.raises(NotFound):
            await colleague.call("GetWebhook", webhook_id=missing)
    assert len(await colleague.log(webhook_id)) == 1
    for method, fields in (
        ("CreateWebhook", {"url": scene.receiver.url(), "event_types": ALL}), ("DeleteWebhook", {"webhook_id": webhook_id}),
        ("RotateWebhookSecret", {"webhook_id": webhook_id}), ("Redeliver", {"delivery_id": delivery.delivery_id}),
    ):  # fmt: skip
        with pytest.raises(PermissionDenied):
            await colleague.call(method, **fields)
    with pytest.raises(PermissionDenied):
        await Hooks(scene.client, scene.dialer, scopes=["webhooks:write"]).call("ListWebhooks")
    with pytest.raises(PermissionDenied):
        await Hooks(scene.client, scene.dialer, scopes=["webhooks:write"]).call("GetWebhook", webhook_id=webhook_id)


async def test_making_and_removing_are_done_once_a_key(scene):
    url = scene.receiver.url()
    made = [await scene.hooks.create(url, idempotency_key="k") for _ in range(2)]
    assert made[0] == made[1]
    with pytest.raises(IdempotencyMismatch):
        await scene.hooks.create(url, ["run.failed"], idempotency_key="k")
    webhook_id = made[0].webhook.webhook_id
    scene.receiver.answer = lambda _: (500, {}, b"")
    await scene.run()
    await testing.eventually_async(lambda: scene.receiver.got, "it is on its way")
    for _ in range(2):
        await scene.hooks.call("DeleteWebhook", webhook_id=webhook_id, idempotency_key="d")
    with pytest.raises(NotFound):
        await scene.hooks.call("DeleteWebhook", webhook_id=webhook_id)
    with pytest.raises(NotFound):
        await scene.hooks.log(webhook_id)
    for i in range(20):
        await scene.hooks.create(url, description=str(i))
    with pytest.raises(QuotaExceeded):
        await scene.hooks.create(url)


@pytest.mark.system
async def test_a_log_is_paged_newest_first(scene):
    made = await scene.hooks.create(scene.receiver.url())
    runs = [(await scene.run()).run_id for _ in range(5)]
    await scene.hooks.ended(made.webhook.webhook_id, 5)
    found, token = [], ""
    while True:
        page = await scene.hooks.call("ListDeliveries", webhook_id=made.webhook.webhook_id, page_size=2, page_token=token)
        found += [d.run_id for d in page.deliveries]
        if not (token := page.next_page_token):
            break
    assert found == runs[::-1]


async def test_a_wrong_webhook_names_the_field(scene):
    for field, value in (
        ("url", ""), ("url", "ftp://example.com"), ("url", "http://nowhere.invalid/"), ("url", "http://169.254.169.254/latest"),
        ("event_types", []), ("event_types", ["run.started"]), ("event_types", ["run.failed", "run.failed"]),
        ("description", "x" * 257), ("idempotency_key", "k" * 256),
    ):  # fmt: skip
        with pytest.raises(InvalidInput) as caught:
            await scene.hooks.call("CreateWebhook", **{"url": scene.receiver.url(), "event_types": ALL, field: value})
        assert [v.field for v in caught.value.violations] == [field]
    assert not (await scene.hooks.call("ListWebhooks")).webhooks


@pytest.mark.system
async def test_what_ends_at_another_replica_right_after_the_answer_is_told(identities, state_url, tmp_path):
    config = write_config(tmp_path / "config")
    async with AsyncExitStack() as stack:
        behind, got = await stack.enter_async_context(fakes(identities)), await stack.enter_async_context(receiver())
        each = [settings_for(identities, behind, state_url, config, webhook_allow_private=True) for _ in range(2)]
        one, two = [await stack.enter_async_context(served(settings, identities)) for settings in each]
        dialer = await stack.enter_async_context(testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{each[0].grpc_port}"}))
        hooks = Hooks(one, dialer)
        await two.wait((await two.start("say before")).run_id)
        made = await hooks.create(got.url())
        run = await two.start("say after")
        assert [d.run_id for d in await hooks.ended(made.webhook.webhook_id)] == [run.run_id]


async def test_a_memory_service_that_is_away_holds_up_no_webhook(scene):
    scene.behind.sessions.gate.close()
    made = await scene.hooks.create(scene.receiver.url())
    run = await scene.run(agent="helper")
    await scene.hooks.ended(made.webhook.webhook_id)
    assert [r.data["run_id"] for r in scene.receiver.got] == [run.run_id]
    scene.behind.sessions.gate.open()


@pytest.mark.system
async def test_killed_between_sending_and_knowing_it_is_sent_again_under_the_same_id(identities, state_url, tmp_path, valkey):
    config = write_config(tmp_path / "config")
    async with fakes(identities) as behind, receiver() as got:
        each = [
            settings_for(identities, behind, state_url, config, instance=name, webhook_allow_private=True) for name in ("first", "second")
        ]
        with process(each[0], tmp_path) as first:
            await testing.wait_ready(f"127.0.0.1:{each[0].grpc_port}")
            async with dialed(each[0], identities) as client:
                async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{each[0].grpc_port}"}) as dialer:
                    made = await Hooks(client, dialer).create(got.url())
                got.gate.close()
                run = await client.start("say hi")
                await testing.eventually_async(lambda: got.gate.waiting, "the first has sent it")
            first.kill()
        got.gate.open()
        async with served(each[1], identities) as client:
            message_id = got.got[0].message_id
            # The lease of the first is over.
            webhook_id = made.webhook.webhook_id
            await valkey.hset(f"tn:{{acme}}:hook-delivery:{message_id}/{webhook_id}", "lease_until", 0)
            await valkey.zadd("wh:{wh0}:due", {f"acme/{message_id}/{webhook_id}": 0})
            async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{each[1].grpc_port}"}) as dialer:
                (delivery,) = await Hooks(client, dialer).ended(webhook_id)
        assert [r.message_id for r in got.got] == [message_id] * 2
        assert {r.data["run_id"] for r in got.got} == {run.run_id}
        assert (delivery.status, delivery.attempt_count, len(delivery.attempts)) == (DELIVERED, 2, 1)


async def test_the_end_of_a_run_whose_process_died_at_once_is_told_by_another(scene, valkey):
    """Ended and never announced: the sweeper's list is the outbox."""
    made = await scene.hooks.create(scene.receiver.url())
    run = await scene.run()
    await scene.hooks.ended(made.webhook.webhook_id)
    keys = [key async for key in valkey.scan_iter("tn:{acme}:hook-[mdl]*")]
    await valkey.delete(*keys)
    await valkey.zadd("work:{w0}:live", {f"acme/{run.thread_id}/{run.run_id}": 0})
    await testing.eventually_async(lambda: len(scene.receiver.got) == 2, "it is told")
    assert scene.receiver.got[0].message_id == scene.receiver.got[1].message_id
    # Told once: looking at it again makes nothing new.
    await valkey.zadd("work:{w0}:live", {f"acme/{run.thread_id}/{run.run_id}": 0})
    await testing.eventually_async(lambda: unlisted(valkey, run), "it is settled")
    await asyncio.sleep(0)
    assert len(await scene.hooks.log(made.webhook.webhook_id)) == 1


async def unlisted(valkey, run):
    return await valkey.zscore("work:{w0}:live", f"acme/{run.thread_id}/{run.run_id}") is None
