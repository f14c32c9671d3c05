"""What the state store holds, searched for words as it stands: the one of the tests packs nothing, see tests/conftest.py."""

from contextlib import aclosing

from services.common.valkey import connect


async def holding(url: str, *words: str) -> list[bytes]:
    """Keys in whose name or content one of the words stands."""
    found = []
    async with aclosing(connect(url)) as client:
        for key in await client.keys("*"):
            content = key + (await client.dump(key) or b"")
            if any(word.encode() in content for word in words):
                found.append(key)
    return found
