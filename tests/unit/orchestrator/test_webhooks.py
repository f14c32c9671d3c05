"""Webhooks from the inside: the schedule, the message, who may record what, and what each process knows of tenants."""

import asyncio
import base64
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import testing
from services.common.errors import Conflict
from services.common.idempotency import IdempotencyStore
from services.common.settings import ServiceSettings
from services.orchestrator.adapters.webhook_http import HttpSender
from services.orchestrator.adapters.webhook_store import DUE, MOST_TRIES_KEPT, ValkeyWebhooks
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.settings import WEBHOOK_RETRIES_S, Settings
from services.orchestrator.testing.dying import Dying
from services.orchestrator.testing.runs import spec
from services.orchestrator.webhooks import signing
from services.orchestrator.webhooks.announcing import Announcing
from services.orchestrator.webhooks.delivering import wait_before
from services.orchestrator.webhooks.endpoints import EndpointRequest, Endpoints
from services.orchestrator.webhooks.payload import MOST_BODY_BYTES, message_of
from services.orchestrator.webhooks.records import Attempt, DeliveryRef, Endpoint, Message
from services.orchestrator.webhooks.rotation import Secret

DAY_S = 86_400
REF = RunRef("acme/ü", "t", "r")
MESSAGE = Message("msg_1", "run.finished", "r", b'{"type":"run.finished"}')


def endpoint(endpoint_id="whk_1", created_ms=0, **fields):
    return Endpoint(endpoint_id, "https://example.com/", ["run.finished"], "", created_ms, [Secret(signing.new_secret())], **fields)


def ended(status="succeeded", text="hi", **result):
    return RunRecord(
        "r", spec(), status, epoch=1, attempt=1, cancel_requested=False, created_ms=1, started_ms=2, ended_ms=1_767_225_600_123,
        first_seq=1, terminal_seq=9, track="stable", result={"output_text": text, **result}, state={}, provisional_from=0,
    )  # fmt: skip


def test_defaults_are_those_of_the_specification_and_end_within_three_days():
    defaults = Settings(env="prod")
    assert defaults.webhook_retries_s == WEBHOOK_RETRIES_S == (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 72_000)
    assert sum(WEBHOOK_RETRIES_S) <= 3 * DAY_S
    assert not defaults.webhook_allow_private
    assert Settings(env="local").webhook_allow_private
    assert "webhook_allow_private" not in ServiceSettings.model_fields
    for wrong in ((0.0,), (-1.0,), (float("inf"),), (1.0,) * 33):
        assert any("WEBHOOK_RETRIES" in problem for problem in Settings(env="prod", webhook_retries_s=wrong).problems())


@given(st.data())
def test_tries_are_spread_over_their_interval_and_never_beyond_three_days(data):
    """Each try fails after up to the timeout; whatever the dice say, the last is within three days and a few timeouts."""
    age = 0.0
    for failed in range(1, len(WEBHOOK_RETRIES_S) + 1):
        age += data.draw(st.floats(0, 15))
        wait_s = wait_before(WEBHOOK_RETRIES_S, failed, age)
        age += wait_s
        assert sum(WEBHOOK_RETRIES_S[: failed - 1]) <= age <= sum(WEBHOOK_RETRIES_S[:failed]) + 15 * failed
    assert wait_before(WEBHOOK_RETRIES_S, len(WEBHOOK_RETRIES_S) + 1, age) is None


def test_waits_differ():
    assert len({wait_before(WEBHOOK_RETRIES_S, 1, 0.0) for _ in range(50)}) > 40


def test_signatures_are_those_of_the_specification():
    """The example of its reference implementations."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = signing.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [secret])
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    two = signing.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [signing.new_secret(), secret])["webhook-signature"]
    assert two.split(" ")[1] == headers["webhook-signature"]
    assert len(two.split(" ")) == 2


def test_secrets_are_long_enough_and_do_not_show():
    made = {signing.new_secret() for _ in range(10)}
    assert len(made) == 10
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32 for secret in made)
    assert "whsec_" not in repr(endpoint())


@given(st.text(), st.sampled_from(["a", "ü", "\x00", "\U0001f600", '"']), st.integers(0, 200_000))
def test_a_message_is_below_64_kib_and_says_when_it_was_cut(text, filler, count):
    long = text + filler * count
    try:
        long.encode()
    except UnicodeEncodeError:
        return
    message = message_of(REF, ended(text=long))
    data = orjson.loads(message.body)["data"]
    assert len(message.body) < MOST_BODY_BYTES
    assert long.startswith(data["output_text"])
    assert data["output_truncated"] is (data["output_text"] != long)
    if data["output_truncated"]:
        assert len(message.body) > MOST_BODY_BYTES * 0.85, "no more is cut than has to be"


def test_a_message_is_the_same_whoever_makes_it():
    first, second = message_of(REF, ended()), message_of(REF, ended())
    assert first == second
    assert orjson.loads(first.body)["timestamp"] == "2026-01-01T00:00:00.123Z"
    assert message_of(REF._replace(tenant="other"), ended()).message_id != first.message_id
    failed = message_of(REF, ended("failed", error={"reason": "X", "message": "no", "retryable": True}))
    assert (failed.event_type, orjson.loads(failed.body)["data"]["error"]["reason"]) == ("run.failed", "X")
    assert "." not in first.message_id, "a full stop would make the signed content ambiguous"


def test_an_endpoint_of_a_later_version_can_be_read():
    made = endpoint(disabled="GONE", disabled_ms=5)
    raw = orjson.dumps({**orjson.loads(made.encode()), "schema_version": 2, "news": 1})
    assert Endpoint.decode(raw) == Endpoint.decode(made.encode())


@pytest.fixture
async def stores(either):
    return [ValkeyWebhooks(either, name) for name in ("one", "two")]


def ref(endpoint_id="whk_1"):
    return DeliveryRef(REF.tenant, MESSAGE.message_id, endpoint_id)


async def test_a_message_is_fanned_out_once(stores):
    one, two = stores
    assert await one.fan_out(REF.tenant, MESSAGE, ["whk_1", "whk_2"])
    assert not await two.fan_out(REF.tenant, MESSAGE, ["whk_1", "whk_2", "whk_3"])
    assert [(await one.delivery(ref(e))) is not None for e in ("whk_1", "whk_2", "whk_3")] == [True, True, False]
    for endpoint_id in ("whk_1", "whk_2"):
        ((delivery, _),) = await one.deliveries(REF.tenant, endpoint_id, 0, 10)
        assert (delivery.ref, delivery.status, delivery.run_id) == (ref(endpoint_id), "pending", "r")


async def test_one_process_has_a_delivery_and_a_zombie_records_nothing(stores, either):
    one, two = stores
    await one.add(REF.tenant, endpoint(), 5)
    await one.fan_out(REF.tenant, MESSAGE, ["whk_1"])
    mine = await one.take(ref(), 30.0)
    assert (mine.verdict, mine.body, mine.attempt) == ("taken", MESSAGE.body, 1)
    early = await two.take(ref(), 30.0)
    assert early.verdict == "early"
    assert 0 < early.wait_s <= 30
    await either.hset(f"tn:{{acme%2F%C3%BC}}:hook-delivery:msg_1/{ref().endpoint_id}", "lease_until", 0)
    theirs = await two.take(ref(), 30.0)
    assert theirs.attempt == 2
    assert not await one.record(ref(), mine.attempt, Attempt(1, 1, 500), "failed", 0.0)
    assert await two.record(ref(), theirs.attempt, Attempt(2, 1, 200), "delivered", 0.0)
    assert not await two.record(ref(), theirs.attempt, Attempt(2, 1, 500), "pending", 0.0), "the same try is recorded once"
    found = await one.delivery(ref())
    assert (found.status, found.attempts, found.attempt_count) == ("delivered", (Attempt(2, 1, 200, ""),), 2)
    assert (await one.take(ref(), 30.0)).verdict == "ended"
    # The process that was stopped and comes back to the same delivery once it was sent again has no claim on it either.
    assert await one.again(ref())
    await two.take(ref(), 30.0)
    assert not await one.record(ref(), mine.attempt, Attempt(1, 1, 500), "failed", 0.0)


async def test_what_is_sent_again_begins_its_schedule_anew(stores):
    one, _ = stores
    await one.add(REF.tenant, endpoint(), 5)
    await one.fan_out(REF.tenant, MESSAGE, ["whk_1"])
    for number in range(1, MOST_TRIES_KEPT + 4):
        assert (await one.take(ref(), 30.0)).round_attempt == number
        assert await one.record(ref(), number, Attempt(number, 1, 500), "pending", 0.0)
    assert await one.again(ref())
    again = await one.take(ref(), 30.0)
    assert (again.attempt, again.round_attempt) == (MOST_TRIES_KEPT + 4, 1)
    tries = (await one.delivery(ref())).attempts
    assert [attempt.at_ms for attempt in tries] == list(range(4, MOST_TRIES_KEPT + 4))
    assert not await one.again(ref("whk_9"))


async def test_deliveries_of_an_endpoint_that_is_gone_are_dropped(stores):
    one, _ = stores
    await one.fan_out(REF.tenant, MESSAGE, ["whk_1"])
    assert (await one.take(ref(), 30.0)).verdict == "ended"
    assert (await one.delivery(ref())).status == "dropped"
    assert (await one.take(ref("whk_9"), 30.0)).verdict == "none"


async def test_a_date_that_somebody_asked_for_meanwhile_stands(stores, either):
    one, two = stores
    await one.note([ref()], 0.0)
    (due,) = await one.due(10, 30.0)
    assert not await two.due(10, 30.0), "it is one process's at a time"
    # Sent again while the first try is being recorded.
    await two.note([ref()], 0.0)
    await one.leave(due, None)
    (second,) = await two.due(10, 20.0)
    await one.leave(due, 3600.0)
    await two.leave(second, None)
    assert not await either.exists(DUE)


async def test_endpoints_change_only_from_what_they_were(stores):
    one, two = stores
    made = endpoint()
    assert await one.add(REF.tenant, made, 1)
    assert not await one.add(REF.tenant, endpoint("whk_2"), 1)
    before = await one.endpoint(REF.tenant, "whk_1")
    assert await one.replace(REF.tenant, before, endpoint(disabled="GONE"))
    assert not await two.replace(REF.tenant, before, endpoint())
    assert (await two.endpoint(REF.tenant, "whk_1")).disabled == "GONE"
    assert await two.remove(REF.tenant, "whk_1")
    assert not await two.remove(REF.tenant, "whk_1")


class Runs:
    """A store of runs that counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    async def run(self, ref):
        self.asked += 1
        return ended()


async def test_tenants_without_webhooks_cost_nothing_and_new_ones_are_heard_of(stores, either):
    one, _ = stores
    runs, woken = Runs(), []
    announcing = Announcing(runs, one, lambda: woken.append(1))
    assert not announcing.certainly_silent("acme"), "a process that knows nothing yet asks"
    await announcing._refresh()
    assert announcing.certainly_silent(REF.tenant)
    await announcing.announce(REF)
    assert (runs.asked, await either.exists(DUE)) == (0, 0)
    await one.enlist(REF.tenant)
    await one.enlist(REF.tenant)
    await one.add(REF.tenant, endpoint(), 5)
    await announcing._refresh()
    for _ in range(2):
        await announcing.announce(REF)
    assert (runs.asked, len(woken), await either.zcard(DUE)) == (2, 2, 1)
    assert len(await one.deliveries(REF.tenant, "whk_1", 0, 10)) == 1


async def test_a_process_that_has_not_heard_for_a_while_asks(stores, monkeypatch):
    one, two = stores
    announcing = Announcing(Runs(), one, lambda: None)
    await announcing._refresh()
    await two.enlist(REF.tenant)
    await two.add(REF.tenant, endpoint(), 5)
    await testing.eventually_async(lambda: not announcing.certainly_silent(REF.tenant), "what it knew is too old")
    await announcing.announce(REF)
    assert len(await one.deliveries(REF.tenant, "whk_1", 0, 10)) == 1


async def test_whoever_makes_the_first_webhook_beside_another_waits_as_well(stores, either):
    one, two = stores
    caller, asked = testing.principal_of(tenant=REF.tenant), EndpointRequest("https://8.8.8.8/", ["run.finished"])
    announcing = Announcing(Runs(), two, lambda: None)
    await announcing._refresh()
    both = [asyncio.create_task(Endpoints(s, HttpSender(), IdempotencyStore(either), False).create(caller, asked)) for s in stores]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert not announcing.certainly_silent(REF.tenant), "an answer came while a replica still knew better"
    await asyncio.gather(*both)
    assert len(await one.endpoints(REF.tenant)) == 2


async def test_what_a_process_made_before_it_died_is_not_made_again(stores, either):
    store, caller = stores[0], testing.principal_of(tenant=REF.tenant)
    keys = IdempotencyStore(either)
    endpoints, dying = (Endpoints(store, HttpSender(), each, False, 0.0) for each in (keys, Dying(keys)))
    asked = EndpointRequest("https://8.8.8.8/", ["run.finished"], idempotency_key="k")
    with pytest.raises(asyncio.CancelledError):
        await dying.create(caller, asked)
    (left,) = await store.endpoints(REF.tenant)
    await asyncio.sleep(0.01)
    made, first = await endpoints.create(caller, asked)
    assert (made.endpoint_id, first) == (left.endpoint_id, left.secrets[0].secret)
    with pytest.raises(asyncio.CancelledError):
        await dying.rotate(caller, made.endpoint_id, None, "r")
    (left,) = await store.endpoints(REF.tenant)
    await asyncio.sleep(0.01)
    # Were it made again, the receiver that still knows the first would have one that ends before it was told of.
    rotated, second = await endpoints.rotate(caller, made.endpoint_id, None, "r")
    assert ([one.secret for one in rotated.secrets], len(left.secrets)) == ([second, first], 2)
    assert (await endpoints.create(caller, asked))[1] == first
    _, third = await endpoints.rotate(caller, made.endpoint_id, timedelta(), "e")
    for again in (endpoints.create(caller, asked), endpoints.rotate(caller, made.endpoint_id, None, "r")):
        with pytest.raises(Conflict) as error:
            await again
        assert error.value.reason == "WEBHOOK_SECRET_REPLACED"
    # As the version before kept it, which marked none: the newest is told.
    (marked,) = await store.endpoints(REF.tenant)
    unmarked = replace(marked, secrets=tuple(one._replace(by="") for one in marked.secrets))
    assert await store.replace(REF.tenant, marked, unmarked)
    assert (await endpoints.create(caller, asked))[1] == third


async def test_a_run_that_ended_before_the_webhook_was_made_is_not_told(stores):
    one, _ = stores
    await one.enlist(REF.tenant)
    await one.add(REF.tenant, endpoint(created_ms=ended().ended_ms + 1), 5)
    await Announcing(Runs(), one, lambda: None).announce(REF)
    assert not await one.deliveries(REF.tenant, "whk_1", 0, 10)
