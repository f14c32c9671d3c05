"""Tables, charts and code that tools give: what they must be like, and what of them an event holds."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

# What an event of a log may hold; the whole of what is larger is a blob.
MOST_BYTES = 32 * 1024
MOST_COLUMNS = 256
MOST_SERIES, MOST_POINTS = 20, 2_000
MOST_LABEL = 256
CHARTS = ("line", "bar", "area", "scatter", "pie")


class Refused(Exception):
    """A part that is not what it says; the text says why, and repeats nothing of it."""


def fits(data: Mapping[str, Any]) -> bool:
    """Whether an event may hold this."""
    return len(orjson.dumps(data)) <= MOST_BYTES


def checked_table(part: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table. Raises Refused."""
    columns, rows = part.get("columns"), part.get("rows")
    if not isinstance(columns, list) or not 1 <= len(columns) <= MOST_COLUMNS or not all(isinstance(name, str) for name in columns):
        raise Refused(f"the columns of a table are 1 to {MOST_COLUMNS} texts")
    if sum(len(orjson.dumps(name)) for name in columns) > MOST_BYTES // 4:
        raise Refused("the columns of a table have too long names")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise Refused("each row of a table is a list with a value for each column")
    if not all(value is None or isinstance(value, str | int | float) for row in rows for value in row):
        raise Refused("a value of a table is a text, a number, true, false or null")
    return columns, rows


def first_rows(data: Mapping[str, Any], rows: Sequence[list[Any]]) -> list[list[Any]]:
    """As many rows as fit beside the rest of an event."""
    left = MOST_BYTES - len(orjson.dumps({**data, "rows": []}))
    kept = []
    for row in rows:
        # And a comma.
        left -= len(orjson.dumps(row)) + 1
        if left < 0:
            break
        kept.append(row)
    return kept


def csv_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A whole table as RFC 4180 has it, in UTF-8; null is empty, and the rest as JSON writes it."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return written.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def beginning(data: Mapping[str, Any], text: str) -> str:
    """As much of a text as fits beside the rest of an event."""
    left = MOST_BYTES - len(orjson.dumps({**data, "text": ""}))
    kept = text[:left]
    while (size := len(orjson.dumps(kept)) - 2) > left:
        # Characters take several bytes, or are escaped.
        kept = kept[: min(len(kept) - 1, len(kept) * left // size)]
    return kept


def checked_chart(part: Mapping[str, Any]) -> dict[str, Any]:
    """What a chart shows. Raises Refused."""
    kind, series = part.get("chart_type"), part.get("series")
    if kind not in CHARTS:
        raise Refused(f"the chart_type of a chart is one of {', '.join(CHARTS)}")
    if not isinstance(series, list) or not 1 <= len(series) <= MOST_SERIES:
        raise Refused(f"a chart has 1 to {MOST_SERIES} series")
    found, points = [], 0
    for one in series:
        if not isinstance(one, dict) or not isinstance(one.get("name", ""), str) or not isinstance(one.get("points"), list):
            raise Refused("a series of a chart has a name and points")
        points += len(one["points"])
        if points > MOST_POINTS:
            raise Refused(f"a chart has at most {MOST_POINTS:,} points")
        if not all(map(_is_point, one["points"])):
            raise Refused("a point of a chart is a list of a text or number and a number")
        found.append({"name": one.get("name", "")[:MOST_LABEL], "points": one["points"]})
    labels = {name: value[:MOST_LABEL] if isinstance(value := part.get(name), str) else "" for name in ("x_label", "y_label")}
    return {"chart_type": kind, **labels, "series": found}


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and (isinstance(point[0], str) or _is_number(point[0])) and _is_number(point[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
