"""What was spent: GET /spend/logs and GET /global/spend/report, from the ledger."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.ledger import DayReport
from services.llm_gateway.model_port.admin_access import ADMIN, PortKeys
from services.llm_gateway.model_port.admin_book import SpendBook
from services.llm_gateway.model_port.admin_query import flag_of, number_of
from services.llm_gateway.model_port.admin_views import usd
from services.llm_gateway.model_port.exchange import Exchange, Header
from services.llm_gateway.model_port.routing import Route

# A plain list is bounded, and says where it goes on; who wants more asks for pages.
MOST_LINES = 10_000
MOST_PAGE = 1_000
MOST_DAYS = 366
# Reads of one request; each looks at thousands of lines, and a filter may find nothing among them.
MOST_READS = 50
GROUPS: Mapping[str, str] = {"team": "team", "api_key": "key", "user": "user", "model": "model"}
_NOTED = (
    "id",
    "attempt",
    "run",
    "estimated",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_nanousd",
    "reserved_nanousd",
)


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
        """Sums of days where both dates are given, as in LiteLLM; lines with `summarize=false`, or without dates.

        Lines are a list, newest first, of at most 10,000. One that is longer has the oldest of them, and a header x-bulkhead-cursor:
        as `cursor` it goes on behind them. With `page` and `page_size` they are an object with a page of them, oldest first.
        """
        tenant, wanted = await self._wanted(exchange)
        first, last = _dates(exchange)
        call_id = exchange.query("request_id") or ""
        if flag_of(exchange, "summarize", default=first is not None and last is not None and not call_id):
            await self._days(exchange, tenant, wanted, first, last)
            return
        bounds = {"start_ms": None if first is None else _ms(first), "end_ms": None if last is None else _ms(last + timedelta(days=1))}
        paged = exchange.query("page") is not None or exchange.query("page_size") is not None
        page, size = number_of(exchange, "page", 1, 10_000), number_of(exchange, "page_size", 50, MOST_PAGE)
        skipped, most = ((page - 1) * size, page * size) if paged else (0, MOST_LINES)
        if most > MOST_LINES:
            raise InvalidInput.field("page", f"pages reach {MOST_LINES} lines; narrow the dates, or follow the cursor")
        rows: list[dict[str, Any]] = []
        seen, cursor = 0, exchange.query("cursor") or ""
        for _ in range(MOST_READS):
            found = await self._book.lines(tenant, **bounds, **wanted, call_id=call_id, limit=min(MOST_PAGE, most - seen), cursor=cursor)
            rows += [_row(line) for number, line in enumerate(found.lines, seen) if number >= skipped]
            seen, cursor = seen + len(found.lines), found.cursor
            if not cursor or seen >= most:
                break
        headers: list[Header] = [(b"x-bulkhead-cursor", cursor.encode())] if cursor else []
        body = {"data": rows, "page": page, "page_size": size, "next_cursor": cursor or None} if paged else rows[::-1]
        await exchange.answer(200, orjson.dumps(body), headers)

    async def report(self, exchange: Exchange) -> None:
        """Spend of each day and group. `group_by` is team (default), api_key, user or model."""
        group = exchange.query("group_by") or "team"
        if group not in GROUPS:
            raise InvalidInput.field("group_by", f"must be one of {', '.join(GROUPS)}")
        tenant, wanted = await self._wanted(exchange)
        first, last = _needed(*_dates(exchange))
        days: dict[str, dict[str, list[DayReport]]] = {}
        async for report in self._book.reports(tenant, first, last, **wanted):
            days.setdefault(report.day.isoformat(), {}).setdefault(getattr(report, GROUPS[group]), []).append(report)
        body = [
            {"group_by_day": day, f"{group}s": [_group(group, name, reports) for name, reports in sorted(groups.items())]}
            for day, groups in days.items()
        ]
        await exchange.answer(200, orjson.dumps(body))

    async def _days(self, exchange: Exchange, tenant: str, wanted: Mapping[str, str], first: date | None, last: date | None) -> None:
        if exchange.query("request_id"):
            raise InvalidInput.field("request_id", "stands in lines, not in sums; add summarize=false")
        first, last = _needed(first, last)
        days: dict[str, dict[str, Any]] = {}
        async for report in self._book.reports(tenant, first, last, **wanted):
            day = days.setdefault(report.day.isoformat(), {"nanousd": 0, "users": {}, "models": {}, "requests": 0})
            day["nanousd"] += report.counts.cost_nanousd
            day["requests"] += report.counts.calls
            for part, name in (("users", report.user), ("models", report.model)):
                day[part][name] = day[part].get(name, 0) + report.counts.cost_nanousd
        body = [
            {
                "startTime": day,
                "spend": usd(found["nanousd"]),
                "users": {name: usd(cost) for name, cost in found["users"].items()},
                "models": {name: usd(cost) for name, cost in found["models"].items()},
                "requests": found["requests"],
            }
            for day, found in days.items()
        ]
        await exchange.answer(200, orjson.dumps(body))

    async def _wanted(self, exchange: Exchange) -> tuple[str, dict[str, str]]:
        """The tenant, and the filters of the query."""
        assert exchange.principal is not None
        tenant = self._keys.tenant(exchange.principal, exchange.query("tenant"))
        key = exchange.query("api_key") or ""
        # Lines of a deleted key stay, so an id needs no record. A secret must be one of the tenant's.
        if key and not key.startswith("key_"):
            key = await self._keys.accounts.keys.find_id(key, tenant, to_change=False)
        others = {"user": "user_id", "team": "team_id", "model": "model"}
        return tenant, {"key_id": key, **{name: exchange.query(parameter) or "" for name, parameter in others.items()}}


def _group(group: str, name: str, reports: list[DayReport]) -> dict[str, Any]:
    models: dict[str, list[int]] = {}
    for report in reports:
        sums = models.setdefault(report.model, [0, 0, 0])
        sums[0] += report.counts.cost_nanousd
        sums[1] += report.counts.input_tokens + report.counts.output_tokens
        sums[2] += report.counts.calls
    return {
        "team_name" if group == "team" else group: name,
        "total_spend": usd(sum(cost for cost, _, _ in models.values())),
        "metadata": [
            {"model": model, "spend": usd(cost), "total_tokens": tokens, "requests": calls}
            for model, (cost, tokens, calls) in sorted(models.items())
        ],
    }


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "request_id": line.get("call_id", ""),
        "call_type": line.get("operation", ""),
        "api_key": line.get("key", ""),
        "spend": usd(line["cost_nanousd"]),
        "total_tokens": line.get("input_tokens", 0) + line.get("output_tokens", 0),
        "prompt_tokens": line.get("input_tokens", 0),
        "completion_tokens": line.get("output_tokens", 0),
        "startTime": _moment(line["at"] - int(line.get("latency_ms") or 0)),
        "endTime": _moment(line["at"]),
        "model": line.get("model", ""),
        "model_id": line.get("deployment", ""),
        "custom_llm_provider": line.get("provider", ""),
        "user": line.get("user", ""),
        "team_id": line.get("team") or None,
        "status": line.get("status", ""),
        "metadata": {**(line.get("metadata") or {}), **{name: line[name] for name in _NOTED if name in line}},
    }


def _dates(exchange: Exchange) -> tuple[date | None, date | None]:
    first, last = (_date(exchange, name) for name in ("start_date", "end_date"))
    if first is not None and last is not None and last < first:
        raise InvalidInput.field("end_date", "must not be before start_date")
    return first, last


def _date(exchange: Exchange, name: str) -> date | None:
    value = exchange.query(name)
    if value is None:
        return None
    try:
        # LiteLLM's clients send a time of day as well; days are whole here, in UTC.
        return date.fromisoformat(value[:10]) if len(value) <= 32 else date.fromisoformat("")
    except ValueError:
        raise InvalidInput.field(name, "must be a date as 2026-01-31") from None


def _needed(first: date | None, last: date | None) -> tuple[date, date]:
    if first is None or last is None:
        raise InvalidInput.field("start_date", "start_date and end_date are needed")
    if (last - first).days >= MOST_DAYS:
        raise InvalidInput.field("end_date", f"must be at most {MOST_DAYS} days after start_date")
    return first, last


def _ms(day: date) -> int:
    return max(0, int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000))


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
