"""Pages of records, newest first, over a sorted set of ids by time and a hash of records."""

from collections.abc import Callable

import redis.asyncio as redis

# Ids that share a millisecond are told apart by name, so a page reads a few more than it needs.
SLACK = 16


def _everything(_: bytes) -> bool:
    return True


async def newest_first(
    client: redis.Redis,
    index: str,
    records: str,
    size: int,
    after: tuple[int, str] | None,
    keep: Callable[[bytes], bool] = _everything,
) -> tuple[list[bytes], bool]:
    """Up to `size` raw records after (score, id), newest first, and whether there are more. Raises redis errors."""
    found: list[bytes] = []
    offset = 0
    top = "+inf" if after is None else str(after[0])
    while True:
        step = size + SLACK
        entries = await client.zrevrangebyscore(index, top, "-inf", start=offset, num=step, withscores=True)
        ids = [member for member, score in entries if after is None or (int(score), member.decode()) < after]
        if ids:
            for raw in await client.hmget(records, ids):
                if raw is not None and keep(raw):
                    found.append(raw)
                    if len(found) > size:
                        return found[:size], True
        if len(entries) < step:
            return found, False
        offset += step
