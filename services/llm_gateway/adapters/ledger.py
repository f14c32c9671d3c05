"""The ledger of each tenant: who stands in it, what its lines say, what they add up to, and how it forgets a user.

Lines are written by the purse, in the same step as the money they are about. Reading is paged and costs nothing to those who write.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import redis.asyncio as redis

from services.common.accounts import NO_LIMITS, LimitSet
from services.common.errors import InvalidInput
from services.common.limits import TierPolicy
from services.common.valkey import Library
from services.common.valkey_replicas import Lasting, asked
from services.llm_gateway.accounting.lines import Counts
from services.llm_gateway.accounting.plans import DAY_S, holder_of, prefix
from services.llm_gateway.accounting.states import Budget
from services.llm_gateway.accounting.subjects import Subject
from services.llm_gateway.accounting.views import spending_of

LEDGERS = "llm:{purse}:ledgers"
MOST_PAGE = 1_000
# Lines that one page looks at; a filter that finds little answers a short page with a cursor and holds nobody up.
MOST_SCANNED = 20_000
READ_AT_ONCE = 1_000
ERASED = "erased"
_CURSOR = re.compile(r"\d{1,15}-\d{1,20}\Z")


class Subjects:
    """The pseudonyms of users. Implements accounting.SubjectsOf. One that `replicas` may lose is nobody's: what was spent under it would
    be found by no one.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        self._client = client
        self._lasting = Lasting(Library(client, Path(__file__).with_name("purse.lua")), replicas)

    async def of(self, tenant: str, user: str) -> Subject:
        """The user's subject; made when there is none. Raises Overloaded when the store is away."""
        if not self._lasting.replicas and (found := await asked(self._client, self.find(tenant, user))) is not None:
            return found
        made, base = Subject.new(user), prefix(tenant)
        args = [user, made.packed(), made.pseudonym]
        return Subject.unpacked(await self._lasting.call("purse_subject_v1", [base + "subjects", base + "pseudonyms"], args))

    async def find(self, tenant: str, user: str) -> Subject | None:
        """The user's subject, if there is one. Raises redis errors."""
        raw = await self._client.hget(prefix(tenant) + "subjects", user)
        return Subject.unpacked(raw) if raw else None

    async def behind(self, tenant: str, pseudonyms: Sequence[str]) -> dict[str, Subject]:
        """Subjects by pseudonym; those that were forgotten are missing. Raises redis errors."""
        if not pseudonyms:
            return {}
        base = prefix(tenant)
        users = [user for user in await self._client.hmget(base + "pseudonyms", list(pseudonyms)) if user is not None]
        if not users:
            return {}
        packed = [raw for raw in await self._client.hmget(base + "subjects", users) if raw is not None]
        return {subject.pseudonym: subject for subject in map(Subject.unpacked, packed)}

    async def forget(self, tenant: str, user: str) -> int:
        """Forgets a user and what they have spent; answers how many lines were counted. Raises Overloaded."""
        base, subject = prefix(tenant), await asked(self._client, self.find(tenant, user))
        key = f"{base}user:{subject.pseudonym if subject is not None else ''}"
        _, seen = await self._lasting.call("purse_look_v1", [key], [b"\x00"])
        if subject is None:
            return 0
        told = [f"{key}|{window}" for window in (1, 2, 3, 4, "soft")]
        keys = [base + "subjects", base + "pseudonyms", base + "alerts", key]
        await self._lasting.call("purse_forget_v1", keys, [user, subject.pseudonym, *told])
        return seen[4]


@dataclass(frozen=True, slots=True)
class Page:
    """Lines, oldest first. `cursor` goes on behind the last line that was looked at; empty at the end."""

    lines: list[dict[str, Any]]
    cursor: str


@dataclass(frozen=True, slots=True)
class DayReport:
    """What the lines of one day (UTC) add up to for one key, user, team and model. Empty names stand for what was gathered."""

    day: date
    key: str
    user: str
    team: str
    model: str
    counts: Counts


class Ledger:
    """Reads ledgers. All methods raise Overloaded when the store is away.

    What a key or team has spent outlives it: runs that go on after its end are still held to its limits, and a team that is made
    anew under an old name does not begin with its money given back.
    """

    def __init__(self, client: redis.Redis, replicas: int = 0) -> None:
        """A user is forgotten once `replicas` have forgotten them."""
        self._client = client
        self._subjects = Subjects(client, replicas)
        self._library = Library(client, Path(__file__).with_name("purse.lua"))

    async def lines(
        self,
        tenant: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        key_id: str = "",
        user: str = "",
        team: str = "",
        model: str = "",
        call_id: str = "",
        run_id: str = "",
        limit: int = 100,
        cursor: str = "",
    ) -> Page:
        """A page of lines booked from `start_ms` up to before `end_ms` (Unix milliseconds). Filters that are empty do not filter.

        A line has `at` (ms), and `metadata` where the caller gave some. A page may be short, or empty, and yet have a cursor. Raises
        InvalidInput for a cursor that is none.
        """
        if cursor and not _CURSOR.match(cursor):
            raise InvalidInput.field("cursor", "is not one that a page has answered")
        wanted = {"key": key_id, "team": team, "model": model, "call_id": call_id, "run": run_id}
        wanted = {name: value for name, value in wanted.items() if value}
        if user:
            subject = await asked(self._client, self._subjects.find(tenant, user))
            if subject is None:
                return Page([], "")
            wanted["user"] = subject.pseudonym
        scan = self._scan(tenant, wanted, start_ms, end_ms, max(1, min(limit, MOST_PAGE)), cursor)
        found, after = await asked(self._client, scan)
        await asked(self._client, self._named(tenant, found))
        return Page(found, after)

    async def _scan(
        self, tenant: str, wanted: dict[str, str], start_ms: int | None, end_ms: int | None, limit: int, cursor: str
    ) -> tuple[list[dict[str, Any]], str]:
        key, found, scanned = prefix(tenant) + "ledger", [], 0
        at = f"({cursor}" if cursor else "-" if start_ms is None else str(start_ms)
        last = "+" if end_ms is None else str(end_ms - 1)
        while True:
            size = min(READ_AT_ONCE, limit if not wanted else READ_AT_ONCE)
            entries = await self._client.xrange(key, at, last, size)
            for id_, fields in entries:
                scanned += 1
                cursor = id_.decode()
                line = orjson.loads(fields[b"l"])
                if all(line.get(name) == value for name, value in wanted.items()):
                    found.append({"at": int(cursor.partition("-")[0]), **line})
                    if len(found) == limit:
                        return found, cursor
            if len(entries) < size:
                return found, ""
            if scanned >= MOST_SCANNED:
                return found, cursor
            at = f"({cursor}"

    async def _named(self, tenant: str, lines: list[dict[str, Any]]) -> None:
        subjects = await self._subjects.behind(tenant, list({line["user"] for line in lines}))
        for line in lines:
            subject = subjects.get(line["user"])
            sealed = line.pop("sealed", None)
            line["user"] = subject.user if subject is not None else ERASED
            if subject is not None and sealed:
                line["metadata"] = subject.open(sealed)

    async def spend(self, tenant: str, scope: str, id_: str, limits: LimitSet = NO_LIMITS, tier: TierPolicy | None = None) -> list[Budget]:
        """What a key, user, team, tenant, model or run has spent: in all, this day, this month (UTC), and in the period of `limits`."""
        name = ""
        if scope == "user":
            subject = await asked(self._client, self._subjects.find(tenant, id_))
            name = f"user:{subject.pseudonym if subject else ''}"
        holder = holder_of(tenant, scope, id_, limits, tier, name=name)
        answer = await asked(self._client, self._library.call("purse_look_v1", [holder.key], [holder.caps.packed()]))
        return spending_of(holder, answer[1])

    async def reports(self, tenant: str, first: date, last: date, *, key_id: str = "", user: str = "", team: str = "", model: str = ""
    ) -> AsyncIterator[DayReport]:  # fmt: skip
        """Daily sums from `first` to `last` inclusive, days without calls left out; filters that are empty do not filter."""
        base, epoch = prefix(tenant), date(1970, 1, 1)
        for number in range((first - epoch).days, (last - epoch).days + 1):
            fields = await asked(self._client, self._client.hgetall(f"{base}report:{number}"))
            rows = [(*orjson.loads(field), Counts.unpacked(raw)) for field, raw in fields.items()]
            subjects = await asked(self._client, self._subjects.behind(tenant, list({row[1] for row in rows})))
            day = datetime.fromtimestamp(number * DAY_S, UTC).date()
            for row_key, pseudonym, row_team, row_model, counts in sorted(rows, key=lambda row: row[:4]):
                row_user = subjects[pseudonym].user if pseudonym in subjects else ERASED if pseudonym else ""
                if key_id in ("", row_key) and user in ("", row_user) and team in ("", row_team) and model in ("", row_model):
                    yield DayReport(day, row_key, row_user, row_team, row_model, counts)

    async def erase_user(self, tenant: str, user: str) -> int:
        """Makes every line of a user anonymous, archived ones included; answers how many the ledger had counted.

        What was spent stays; whose it was, and what callers added to it, can be read by nobody any more. Idempotent. Also call
        `Plans.forget_user` in this process; others keep to the old pseudonym for at most a minute, which leads nowhere.
        """
        return await self._subjects.forget(tenant, user)
