"""Names of what is in Valkey; what shares a hash tag may be changed in one step."""

import hashlib
from functools import lru_cache
from urllib.parse import quote

from services.common.idempotency import key_of
from services.orchestrator.records import RunRef

# To owners: cancels, and commands in the inbox of a run; the version before listens to the first alone and takes all for a cancel.
OWNER_CHANNEL, INBOX_CHANNEL = "owner:", "inbox:"
SHARD = "{w0}"
# Of the shard: runs that the sweeper looks at, and runs that have ended, for whoever moves and deletes.
LIVE, ENDED = f"work:{SHARD}:live", f"work:{SHARD}:ended"
# Threads that somebody looks at: a change of one is under way, or its time to live ends.
THREADS = f"work:{SHARD}:threads"
# Runs of which large results were put aside.
RESULTS = f"work:{SHARD}:results"


def channel_of(ref: RunRef) -> str:
    """Channel on which appends to the thread are told."""
    return f"thread:{quoted(ref.tenant)}/{ref.thread_id}"


@lru_cache(maxsize=1024)
def quoted(text_: str) -> str:
    """A name of a caller's as it may stand in a key."""
    return quote(text_, safe="")


def tenant_prefix(tenant: str) -> str:
    """What the keys of a tenant begin with: its hash tag, so that one step may change several of them."""
    return f"tn:{{{quoted(tenant)}}}"


def listed_key(tenant: str, kind: str, user: str) -> str:
    """Key of a list of what is a user's: of their `runs`, `threads` or `schedules`, in the order in which they were made."""
    return f"{tenant_prefix(tenant)}:{kind}:{quoted(user)}"


def counter_key(tenant: str) -> str:
    """Key of what numbers these."""
    return f"{tenant_prefix(tenant)}:n"


def lookup_key(tenant: str, run_id: str) -> str:
    """Key that leads from a run id to its thread."""
    return f"{tenant_prefix(tenant)}:run:{run_id}"


def tenant_keys(tenant: str, run_id: str, user: str, key: str) -> list[str]:
    """KEYS of tenant_reserve."""
    prefix = tenant_prefix(tenant)
    # Of each user their own: the same words with the same simple key must not lead one to another's run.
    idem = hashlib.sha256(key_of(quoted(user), key).encode()).hexdigest() if key else "-"
    return [f"{prefix}:run:{run_id}", f"{prefix}:slots", f"{prefix}:idem:CreateRun:{idem}",
            listed_key(tenant, "runs", user), listed_key(tenant, "threads", user), counter_key(tenant)]  # fmt: skip


def erasing_key(tenant: str) -> str:
    """Key of the users of a tenant who are being erased."""
    return f"{tenant_prefix(tenant)}:erasing"


def feedback_key(tenant: str) -> str:
    """Key of the list of all feedback of a tenant: `<thread>/<run>/<id>` by time."""
    return f"{tenant_prefix(tenant)}:feedback"


def messages_key(tenant: str, user: str) -> str:
    """Key of the messages to webhooks about runs of a user, by time."""
    return f"{tenant_prefix(tenant)}:hook-messages:{quoted(user)}"


def endpoints_key(tenant: str) -> str:
    """Key of the webhooks of a tenant, by their ids."""
    return f"{tenant_prefix(tenant)}:hooks"


def message_key(tenant: str, message_id: str) -> str:
    """Key of what a message to webhooks says."""
    return f"{tenant_prefix(tenant)}:hook-message:{message_id}"


def delivery_key(tenant: str, message_id: str, endpoint_id: str) -> str:
    """Key of what became of a message at one webhook."""
    return f"{tenant_prefix(tenant)}:hook-delivery:{message_id}/{endpoint_id}"


def deliveries_key(tenant: str, endpoint_id: str) -> str:
    """Key of the list of the messages that went to a webhook."""
    return f"{tenant_prefix(tenant)}:hook-log:{endpoint_id}"


def approvals_keys(tenant: str) -> tuple[str, str]:
    """Keys of the lists of all interrupts of a tenant, and of the open ones: `<thread> <id>`."""
    prefix = f"{tenant_prefix(tenant)}:approvals"
    return f"{prefix}:all", f"{prefix}:open"


def waiting_keys(tenant: str) -> list[str]:
    """KEYS of tenant_release: slots, queue, limits, delayed, pace, epochs."""
    prefix = tenant_prefix(tenant)
    return [f"{prefix}:slots", f"{prefix}:queue", f"{prefix}:queue:limits", f"{prefix}:delayed", f"{prefix}:pace",
            f"{prefix}:slots:epochs"]  # fmt: skip


def ready_keys(track: str) -> list[str]:
    """Of a track of the work queue: ready, order, turns, clock."""
    prefix = f"work:{SHARD}"
    return [f"{prefix}:ready:{track}", f"{prefix}:order:{track}", f"{prefix}:turns:{track}", f"{prefix}:clock:{track}"]


def thread_keys(ref: RunRef) -> list[str]:
    """KEYS of thread_accept: meta, log, run, pending, outbox, messages, runs."""
    prefix = f"t:{{{quoted(ref.tenant)}/{ref.thread_id}}}"
    run = f"{prefix}:run:{ref.run_id}"
    return [f"{prefix}:meta", f"{prefix}:log", run, f"{prefix}:pending", f"{prefix}:outbox", f"{run}:messages", f"{prefix}:runs"]


def inbox_key(ref: RunRef) -> str:
    """Key of the commands that others sent to a run."""
    return f"{thread_keys(ref)[2]}:inbox"


def interrupts_key(ref: RunRef) -> str:
    """Key of what a run asked of people."""
    return f"{thread_keys(ref)[2]}:interrupts"


def keys_of_run(ref: RunRef) -> list[str]:
    """Every key of one run under its thread's tag: what is deleted with it."""
    return [thread_keys(ref)[2], thread_keys(ref)[5], inbox_key(ref), interrupts_key(ref)]


def keys_of_thread(ref: RunRef) -> list[str]:
    """Every key of a thread but those of its runs; its meta is the first."""
    meta, log, _, pending, outbox, _, runs = thread_keys(ref)
    return [meta, log, pending, outbox, runs, segments_key(ref)]


def segments_key(ref: RunRef) -> str:
    """Key of the pointers to the segments of a thread's log."""
    return f"t:{{{quoted(ref.tenant)}/{ref.thread_id}}}:segments"
