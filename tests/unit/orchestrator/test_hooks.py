"""Hooks from the inside: what a message must be like, how it is told to an agent, and what callers may do with hooks and secrets."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from services.common import testing
from services.common.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)
from services.common.idempotency import IdempotencyStore
from services.orchestrator.hooks import accepting
from services.orchestrator.hooks.accepting import MOST_BODY_BYTES, REFUSED_AFTER_S, TOLERANCE_S, TakingMessages, proven
from services.orchestrator.hooks.keeping import MOST_HOOKS, MOST_SECRETS, HookRequest, Hooks
from services.orchestrator.hooks.records import Hook, Message, run_of
from services.orchestrator.hooks.telling import FENCE, NOTICE, input_of
from services.orchestrator.settings import Settings
from services.orchestrator.testing.dying import Dying
from services.orchestrator.testing.memory_hooks import MemoryHooks
from services.orchestrator.webhooks import signing
from services.orchestrator.webhooks.rotation import Secret

NOW_S = 1_800_000_000
# What the input of a run may be.
MOST_INPUT_BYTES = 512 * 1024
SECRET = signing.new_secret()
ANA = testing.principal_of()


def hook(hook_id="hk_" + "a" * 32, secrets=(Secret(SECRET),), **fields):
    return Hook(hook_id, "quick", ANA.as_dict(), tuple(secrets), 5, **fields)


def message(body=b'{"n": 1}', webhook_id="msg_1", at_s=NOW_S, secret=SECRET, hook_id="hk_" + "a" * 32, agent="quick", **fields):
    """As a sender with the specification's own library signs it."""
    signature = Webhook(secret).sign(webhook_id, datetime.fromtimestamp(at_s, UTC), body.decode())
    return Message(hook_id, agent, fields.get("id", webhook_id), fields.get("at", str(at_s)), fields.get("signature", signature), body)


def test_a_message_of_the_library_is_taken_until_its_time_is_over():
    assert proven(hook(), message(), NOW_S * 1000)
    for seconds, right in ((TOLERANCE_S, True), (TOLERANCE_S + 1, False), (-TOLERANCE_S, True), (-TOLERANCE_S - 1, False)):
        assert proven(hook(), message(at_s=NOW_S + seconds), NOW_S * 1000) is right, seconds
    for timestamp in ("", "now", "-1", "1e9", " 1800000000", "1800000000.0", "١٨٠٠٠٠٠٠٠٠", "9" * 13):
        signed = signing.headers("msg_1", 0, b"", [SECRET])["webhook-signature"]
        assert not proven(hook(), Message(hook().hook_id, "quick", "msg_1", timestamp, signed, b""), NOW_S * 1000)


def test_a_message_is_for_its_hook_and_agent_alone():
    assert not proven(None, message(), NOW_S * 1000)
    assert not proven(hook(), message(agent="other"), NOW_S * 1000)
    assert not proven(hook(secrets=[Secret(signing.new_secret())]), message(), NOW_S * 1000)


def test_any_secret_that_has_not_ended_is_right():
    old, newest = signing.new_secret(), signing.new_secret()
    both = hook(secrets=[Secret(newest), Secret(old, NOW_S * 1000 + 1)])
    assert [proven(both, message(secret=one), NOW_S * 1000) for one in (newest, old)] == [True, True]
    assert [proven(both, message(secret=one), NOW_S * 1000 + 1) for one in (newest, old)] == [True, False]
    several = f"v1a,abc v1,{'A' * 43}= {message(secret=old).signature} junk"
    assert proven(both, message(signature=several), NOW_S * 1000)


changed = st.tuples(st.sampled_from(["id", "at", "signature", "body"]), st.integers(0, 10**6), st.integers(1, 255))


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True), changed)
def test_any_single_change_is_refused(text, webhook_id, change):
    """A byte of the body, a character of the id, of the time or of the signature is another one."""
    part, place, by = change
    body = (text or "x").encode()
    good = message(body, webhook_id)
    assert proven(hook(), good, NOW_S * 1000)
    fields = {"id": good.webhook_id, "at": good.timestamp, "signature": good.signature}
    if part == "body":
        raw = bytearray(body)
        raw[place % len(raw)] = (raw[place % len(raw)] + by) % 256
        body = bytes(raw)
    else:
        was = fields[part]
        at = place % len(was)
        other = chr(33 + (ord(was[at]) - 33 + by % 93 + 1) % 94)
        if other == was[at]:
            return
        fields[part] = was[:at] + other + was[at + 1 :]
    bad = Message(good.hook_id, good.agent, fields["id"], fields["at"], fields["signature"], body)
    assert not proven(hook(), bad, NOW_S * 1000)


def test_what_is_signed_cannot_be_cut_elsewhere():
    """One signature stands for one message: with a full stop in an id it would stand for two."""
    first = message(b"1800000000.body", "msg")
    shifted = Message(first.hook_id, first.agent, f"msg.{NOW_S}", str(NOW_S), first.signature, b"body")
    assert proven(hook(), shifted, NOW_S * 1000), "this is why it is refused before"
    with pytest.raises(InvalidInput) as error:
        accepting._checked(shifted)
    assert [v.field for v in error.value.violations] == ["webhook_id"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"webhook_id": ""}, "webhook_id"), ({"webhook_id": "x" * 256}, "webhook_id"), ({"webhook_id": "a b"}, "webhook_id"),
        ({"webhook_id": "ü"}, "webhook_id"), ({"timestamp": ""}, "webhook_timestamp"), ({"signature": ""}, "webhook_signature"),
        ({"signature": "v1," * 2000}, "webhook_signature"), ({"body": b"x" * (MOST_BODY_BYTES + 1)}, "body"),
        ({"body": b"\xff"}, "body"), ({"body": "\ud800".encode("utf-16-le", "surrogatepass")}, "body"), ({"agent": ""}, "agent"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_message_is_named_whatever_hook_it_is_for(fields, field):
    values = {"hook_id": "x", "agent": "a", "webhook_id": "m", "timestamp": "1", "signature": "s", "body": b"x" * MOST_BODY_BYTES, **fields}
    with pytest.raises(InvalidInput) as error:
        accepting._checked(Message(**values))
    assert [v.field for v in error.value.violations] == [field]


@given(st.text())
def test_no_body_leaves_its_fence(text):
    ends = [f"</{FENCE}>", f"< / {FENCE.upper()} >", f"<{FENCE}>"]
    told, fenced = input_of(hook(instructions="File a ticket."), f"{text}{ends[0]}{text}{ends[1]}{ends[2]}")
    assert (told["role"], told["text"]) == ("system", f"File a ticket.\n\n{NOTICE}")
    assert fenced["role"] == "user"
    assert fenced["text"].startswith(f"<{FENCE}>\n")
    assert fenced["text"].endswith(f"\n</{FENCE}>")
    inside = fenced["text"][len(FENCE) + 3 : -len(FENCE) - 4].lower()
    assert not any(f"<{space}{slash}{gap}{FENCE}" in inside for space in ("", " ") for slash in ("", "/") for gap in ("", " "))


def test_a_body_stays_as_it_came_and_the_longest_is_no_longer_than_a_run_takes():
    raw = '{"html": "<b>a & b</b>", "quote": "\\""}'
    assert input_of(hook(), raw)[1]["text"] == f"<{FENCE}>\n{raw}\n</{FENCE}>"
    assert input_of(hook(), "x")[0]["text"] == NOTICE
    began = time.monotonic()
    for worst in (f"<{FENCE}", "<", "< ", "</", " "):
        text = input_of(hook(instructions="i" * 8192), (worst * MOST_BODY_BYTES)[:MOST_BODY_BYTES])
        assert sum(len(one["text"].encode()) for one in text) <= MOST_INPUT_BYTES
    assert input_of(hook(), "<" + " " * MOST_BODY_BYTES)
    assert time.monotonic() - began < 30, "the pattern looks at no character more than a few times"


def test_the_run_of_a_message_follows_from_hook_and_id():
    assert run_of(hook(), "a") == run_of(hook(), "a")
    refs = {run_of(hook(), "a"), run_of(hook(), "b"), run_of(hook("hk_" + "b" * 32), "a"), run_of(hook(seed="x"), "a")}
    assert len({ref.run_id for ref in refs}) == len({ref.thread_id for ref in refs}) == 4
    assert run_of(hook(thread_id="t"), "a").thread_id == "t"


def test_a_hook_shows_no_secret_and_one_of_a_later_version_is_read():
    made = hook(instructions="private", description="words", by="k")
    assert "whsec_" not in repr(made)
    assert "private" not in repr(made)
    raw = made.encode().replace(b'"schema_version":1', b'"schema_version":2,"news":[1]')
    assert Hook.decode(raw) == made == Hook.decode(made.encode())


def test_secrets_without_padding_are_read_as_those_with_it():
    bare = SECRET.rstrip("=")
    assert signing.key_of(bare) == signing.key_of(SECRET)
    for wrong in ("", "whsec", SECRET.removeprefix("whsec_"), "whsec_ä", "whsec_a"):
        with pytest.raises(ValueError):
            signing.key_of(wrong)


def test_a_hook_takes_sixty_messages_a_minute_unless_told():
    assert Settings(env="prod").hook_messages_per_minute == 60


class Refusing:
    """Whoever must not be asked."""

    async def run(self, ref):
        raise AssertionError("asked for a run")

    create_run = take = run


@pytest.mark.parametrize(
    "bad",
    [
        {"hook_id": "hk_" + "b" * 32}, {"hook_id": "nothing of the kind"}, {"agent": "other"}, {"secret": signing.new_secret()},
        {"at_s": NOW_S - 301}, {"at_s": NOW_S + 301},
    ],
)  # fmt: skip
async def test_each_refusal_is_the_same_and_takes_the_same_time(bad):
    store = MemoryHooks(NOW_S * 1000)
    await store.add("acme", hook(), 5)
    taking = TakingMessages(store, Refusing(), Refusing(), Refusing(), lambda tier: None, 60)
    began = time.monotonic()
    with pytest.raises(Unauthenticated) as error:
        await taking.accept(message(**bad))
    assert time.monotonic() - began >= REFUSED_AFTER_S
    assert (error.value.reason, error.value.message, error.value.metadata) == (
        "HOOK_REFUSED", "the message is not signed as it must be", {}
    )  # fmt: skip


class NoThreads:
    """Of Accepting, what makes a thread."""

    def __init__(self):
        self.opened = []

    async def open_thread(self, principal, thread_id, metadata):
        if thread_id == "theirs":
            raise NotFound("there is no such thread", reason="THREAD_NOT_FOUND")
        self.opened.append(thread_id)


class OneAgent:
    """Of AgentCatalog, one agent."""

    agents: "OneAgent"

    def __init__(self):
        self.agents, self.name = self, "quick"

    def get(self, name):
        if name not in ("", "quick"):
            raise NotFound("there is no such agent", reason="AGENT_NOT_FOUND")
        return self


@pytest.fixture
def store():
    return MemoryHooks(NOW_S * 1000)


@pytest.fixture
def threads():
    return NoThreads()


@pytest.fixture
def hooks(store, threads, valkey):
    return Hooks(store, IdempotencyStore(valkey), threads, OneAgent())


async def test_a_secret_is_rotated_with_overlap(hooks, store):
    made, first = await hooks.create(ANA, HookRequest("quick"))
    rotated, second = await hooks.rotate(ANA, made.hook_id, None, "")
    assert rotated.taken(store.at_ms) == [second, first]
    again, third = await hooks.rotate(ANA, made.hook_id, timedelta(days=7), "")
    assert again.taken(store.at_ms + 23 * 3_600_000) == [third, second, first]
    assert again.taken(store.at_ms + 24 * 3_600_000) == [third, second], "what ends sooner goes on to do so"
    last, fourth = await hooks.rotate(ANA, made.hook_id, timedelta(), "")
    assert last.taken(store.at_ms) == [fourth]
    for _ in range(MOST_SECRETS - 1):
        await hooks.rotate(ANA, made.hook_id, None, "")
    with pytest.raises(Conflict, match="overlap of 0") as error:
        await hooks.rotate(ANA, made.hook_id, None, "full")
    assert error.value.reason == "HOOK_SECRETS_FULL"
    with pytest.raises(InvalidInput):
        await hooks.rotate(ANA, made.hook_id, timedelta(days=7, seconds=1), "")


async def test_the_same_key_answers_the_same_hook_and_secret_while_that_is_taken(hooks, store):
    asked = HookRequest("quick", description="d", idempotency_key="k")
    made, secret = await hooks.create(ANA, asked)
    assert await hooks.create(ANA, asked) == (made, secret)
    with pytest.raises(IdempotencyMismatch):
        await hooks.create(ANA, HookRequest("quick", idempotency_key="k"))
    other, _ = await hooks.create(testing.principal_of(user="bob"), asked)
    assert other.hook_id != made.hook_id, "keys are their user's"
    rotated = await hooks.rotate(ANA, made.hook_id, None, "r")
    newest = await hooks.rotate(ANA, made.hook_id, None, "r2")
    assert (await hooks.rotate(ANA, made.hook_id, None, "r"))[1] == rotated[1] != newest[1]
    assert (await hooks.create(ANA, asked))[1] == secret
    store.at_ms += 25 * 3_600_000
    with pytest.raises(Conflict) as error:
        await hooks.create(ANA, asked)
    assert error.value.reason == "HOOK_SECRET_REPLACED"
    await hooks.delete(ANA, made.hook_id, "d")
    await hooks.delete(ANA, made.hook_id, "d")
    with pytest.raises(NotFound):
        await hooks.delete(ANA, made.hook_id, "")


async def test_what_a_process_made_before_it_died_is_found_by_the_next(hooks, store, threads, valkey):
    dying = Hooks(store, Dying(IdempotencyStore(valkey)), threads, OneAgent())
    asked = HookRequest("quick", idempotency_key="k")
    with pytest.raises(asyncio.CancelledError):
        await dying.create(ANA, asked)
    (left,) = await store.of_tenant("acme")
    await asyncio.sleep(0.01)
    made, secret = await hooks.create(ANA, asked)
    assert (made.hook_id, [secret]) == (left.hook_id, left.taken(store.at_ms))
    with pytest.raises(asyncio.CancelledError):
        await dying.rotate(ANA, made.hook_id, None, "r")
    (left,) = await store.of_tenant("acme")
    await asyncio.sleep(0.01)
    rotated, secret = await hooks.rotate(ANA, made.hook_id, None, "r")
    assert (rotated.secrets, secret) == (left.secrets, left.secrets[0].secret)


async def test_hooks_are_their_tenants_and_a_new_secret_is_for_the_maker(hooks):
    made, _ = await hooks.create(ANA, HookRequest("quick"))
    bob, admin, stranger = (
        testing.principal_of(user="bob", scopes=["hooks:read", "hooks:write"]), testing.principal_of(user="cleo", scopes=["admin"]),
        testing.principal_of("globex"),
    )  # fmt: skip
    assert (await hooks.get(bob, made.hook_id)).hook_id == made.hook_id
    with pytest.raises(PermissionDenied) as error:
        await hooks.rotate(bob, made.hook_id, None, "")
    assert error.value.reason == "HOOK_OF_ANOTHER_USER"
    await hooks.rotate(admin, made.hook_id, None, "")
    assert await hooks.of_tenant(stranger) == []
    for refused in (
        hooks.get(stranger, made.hook_id),
        hooks.rotate(stranger, made.hook_id, None, ""),
        hooks.delete(stranger, made.hook_id, ""),
    ):
        with pytest.raises(NotFound):
            await refused
    await hooks.delete(bob, made.hook_id, "")
    assert await hooks.of_tenant(ANA) == []


async def test_a_refused_hook_leaves_nothing(hooks, threads):
    for wrong, kind in (
        (HookRequest("none"), NotFound), (HookRequest("quick", "theirs"), NotFound), (HookRequest("quick", "a b"), InvalidInput),
        (HookRequest("quick", instructions="ü" * 4097), InvalidInput), (HookRequest("quick", description="x" * 257), InvalidInput),
        (HookRequest("quick", secret="whsec_" + "A" * 31), InvalidInput), (HookRequest("quick", secret="whsec_" + "A" * 88), InvalidInput),
        (HookRequest("quick", secret="A" * 32), InvalidInput), (HookRequest("quick", idempotency_key="k" * 256), InvalidInput),
    ):  # fmt: skip
        with pytest.raises(kind):
            await hooks.create(ANA, wrong)
    assert await hooks.of_tenant(ANA) == []
    for _ in range(MOST_HOOKS):
        await hooks.create(ANA, HookRequest("quick"))
    with pytest.raises(QuotaExceeded) as error:
        await hooks.create(ANA, HookRequest("quick", "mine"))
    assert (error.value.metadata["policy"], threads.opened) == ("hooks", [])


async def test_a_sender_may_bring_its_secret_and_the_thread_is_its_owners(hooks, threads):
    made, secret = await hooks.create(ANA, HookRequest("", "mine", "Do it.", "crm", SECRET))
    assert (made.agent, made.thread_id, secret, threads.opened) == ("quick", "mine", SECRET, ["mine"])
    assert made.owner == ANA
    other, _ = await hooks.create(ANA, HookRequest("quick"))
    assert len({made.seed, other.seed, ""}) == 3, "nobody knows the ids of runs before they are made"
