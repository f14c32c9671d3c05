"""What was spent: GET /spend/logs and GET /global/spend/report, from the ledger."""

import datetime
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.admin_access import ADMIN, PortKeys
from services.llm_gateway.model_port.admin_query import flag_of, number_of
from services.llm_gateway.model_port.admin_views import usd
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route

# A plain list is bounded; who wants more asks for pages.
MOST_LINES = 10_000
MOST_PAGE = 1_000
MOST_DAYS = 366
DAY_MS = 86_400_000
GROUPS: Mapping[str, str] = {"team": "team", "api_key": "key", "user": "user", "model": "model"}


class SpendBook(Protocol):
    """The part of the ledger that the admin API reads. Money is in nano-USD, times are Unix milliseconds."""

    async def spend(self, tenant: str, scope: str, name: str) -> int:
        """All that a holder has spent; `scope` is key, user, team or tenant, and `name` its id. Raises Overloaded."""
        ...

    def lines(self, tenant: str, *, since_ms: int, until_ms: int) -> AsyncIterator[Mapping[str, Any]]:
        """Lines of a tenant, newest first, from `since_ms` to before `until_ms`. Raises Overloaded."""
        ...


class SpendRoutes:
    """Reads of the ledger, for administrators."""

    def __init__(self, keys: PortKeys, book: SpendBook) -> None:
        self._keys = keys
        self._book = book

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("GET", "/spend/logs", self.logs, scope=ADMIN),
            Route("GET", "/global/spend/report", self.report, scope=ADMIN),
        ]

    async def logs(self, exchange: Exchange) -> None:
        """Lines, newest first; sums of days with `summarize`, a part with `page` and `page_size`."""
        assert exchange.principal is not None
        tenant = self._keys.tenant(exchange.principal, exchange.query("tenant"))
        since_ms, until_ms, dated = _range(exchange)
        wanted = await self._filter(exchange, tenant)
        lines = self._book.lines(tenant, since_ms=since_ms, until_ms=until_ms)
        if flag_of(exchange, "summarize", default=dated):
            await _answer(exchange, await _days(lines, wanted))
            return
        if exchange.query("page") is not None or exchange.query("page_size") is not None:
            page, size = number_of(exchange, "page", 1, 10**6), number_of(exchange, "page_size", 50, MOST_PAGE)
            first, rows, total = (page - 1) * size, [], 0
            async for line in lines:
                if wanted(line):
                    if first <= total < first + size:
                        rows.append(_row(line))
                    total += 1
            body = {"data": rows, "total": total, "page": page, "page_size": size, "total_pages": -(-total // size)}
            await _answer(exchange, body)
            return
        rows = []
        async for line in lines:
            if wanted(line):
                if len(rows) == MOST_LINES:
                    await exchange.answer(200, orjson.dumps(rows), [(b"x-bulkhead-truncated", b"true")])
                    return
                rows.append(_row(line))
        await _answer(exchange, rows)

    async def report(self, exchange: Exchange) -> None:
        """Spend of each day and group. `group_by` is team (default), api_key, user or model."""
        assert exchange.principal is not None
        tenant = self._keys.tenant(exchange.principal, exchange.query("tenant"))
        group = exchange.query("group_by") or "team"
        if group not in GROUPS:
            raise InvalidInput.field("group_by", f"must be one of {', '.join(GROUPS)}")
        since_ms, until_ms, dated = _range(exchange)
        if not dated:
            raise InvalidInput.field("start_date", "start_date and end_date are needed")
        wanted = await self._filter(exchange, tenant)
        days: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        async for line in self._book.lines(tenant, since_ms=since_ms, until_ms=until_ms):
            if not wanted(line):
                continue
            models = days.setdefault(_day(line["at"]), {}).setdefault(str(line.get(GROUPS[group]) or ""), {})
            entry = models.setdefault(line.get("model", ""), {"nanousd": 0, "tokens": 0, "requests": 0})
            entry["nanousd"] += line["cost_nanousd"]
            entry["tokens"] += line.get("input_tokens", 0) + line.get("output_tokens", 0)
            entry["requests"] += 1
        body = [
            {"group_by_day": day, f"{group}s": [_group(group, name, models) for name, models in sorted(groups.items())]}
            for day, groups in sorted(days.items())
        ]
        await _answer(exchange, body)

    async def _filter(self, exchange: Exchange, tenant: str) -> Callable[[Mapping[str, Any]], bool]:
        asked = {
            "key": exchange.query("api_key"),
            "user": exchange.query("user_id"),
            "team": exchange.query("team_id"),
            "model": exchange.query("model"),
            "call_id": exchange.query("request_id"),
        }
        wanted = {field: value for field, value in asked.items() if value}
        # Lines of a deleted key stay: an id needs no record. A secret must be one of the tenant's.
        if "key" in wanted and not wanted["key"].startswith("key_"):
            wanted["key"] = await self._keys.accounts.keys.find_id(wanted["key"], tenant)
        return lambda line: all(line.get(field) == value for field, value in wanted.items())


def _group(group: str, name: str, models: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    return {
        "team_name" if group == "team" else group: name,
        "total_spend": usd(sum(entry["nanousd"] for entry in models.values())),
        "metadata": [
            {"model": model, "spend": usd(entry["nanousd"]), "total_tokens": entry["tokens"], "requests": entry["requests"]}
            for model, entry in sorted(models.items())
        ],
    }


async def _days(lines: AsyncIterator[Mapping[str, Any]], wanted: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    days: dict[str, dict[str, Any]] = {}
    async for line in lines:
        if not wanted(line):
            continue
        day = days.setdefault(_day(line["at"]), {"nanousd": 0, "users": {}, "models": {}, "requests": 0})
        cost = line["cost_nanousd"]
        day["nanousd"] += cost
        day["requests"] += 1
        for part, name in (("users", line.get("user", "")), ("models", line.get("model", ""))):
            day[part][name] = day[part].get(name, 0) + cost
    return [
        {
            "startTime": day,
            "spend": usd(found["nanousd"]),
            "users": {name: usd(cost) for name, cost in found["users"].items()},
            "models": {name: usd(cost) for name, cost in found["models"].items()},
            "requests": found["requests"],
        }
        for day, found in sorted(days.items())
    ]


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    end_ms = line["at"]
    return {
        "request_id": line.get("call_id", ""),
        "call_type": line.get("operation", ""),
        "api_key": line.get("key", ""),
        "spend": usd(line["cost_nanousd"]),
        "total_tokens": line.get("input_tokens", 0) + line.get("output_tokens", 0),
        "prompt_tokens": line.get("input_tokens", 0),
        "completion_tokens": line.get("output_tokens", 0),
        "startTime": _moment(end_ms - int(line.get("latency_ms", 0))),
        "endTime": _moment(end_ms),
        "model": line.get("model", ""),
        "model_id": line.get("deployment", ""),
        "custom_llm_provider": line.get("provider", ""),
        "user": line.get("user", ""),
        "team_id": line.get("team") or None,
        "status": line.get("status", ""),
        "metadata": {
            **(line.get("metadata") or {}),
            **{
                name: line[name]
                for name in (
                    "id", "attempt", "run", "estimated", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_nanousd",
                    "reserved_nanousd",
                )
                if name in line
            },
        },
    }  # fmt: skip


def _range(exchange: Exchange) -> tuple[int, int, bool]:
    """From the beginning of start_date to the end of end_date (UTC), and whether there are dates."""
    start, end = exchange.query("start_date"), exchange.query("end_date")
    if start is None and end is None:
        return 0, 1 << 53, False
    since = _date("start_date", start) if start is not None else 0
    until = _date("end_date", end) + DAY_MS if end is not None else 1 << 53
    if since >= until:
        raise InvalidInput.field("end_date", "must not be before start_date")
    return since, until, start is not None and end is not None


def _date(name: str, value: str) -> int:
    try:
        parsed = datetime.datetime.strptime(value[:10], "%Y-%m-%d").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise InvalidInput.field(name, "must be a date as 2026-01-31") from None
    if len(value) > 32:
        raise InvalidInput.field(name, "must be a date as 2026-01-31")
    return int(parsed.timestamp() * 1000)


def _day(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).date().isoformat()


def _moment(at_ms: int) -> str:
    return datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC).isoformat()


async def _answer(exchange: Exchange, body: Any) -> None:
    await exchange.answer(200, orjson.dumps(body))
