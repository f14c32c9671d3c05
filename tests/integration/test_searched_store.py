"""The search of a store for words, on which every test relies that says of words that they are gone or sealed."""

import pytest

from tests.integration.searched_store import holding

WORD = "swordfish4711"


@pytest.mark.parametrize("kind", ["string", "hash", "stream", "list", "set"])
async def test_a_word_is_found_wherever_it_stands_and_is_gone_with_its_key(valkey, state_url, kind):
    for members in range(0, 100, 7):
        # What repeats itself is what a store packs.
        value = "".join(f'"field{number}":{number},' for number in range(members)) + f'"said":"{WORD}"'
        put = {
            "string": lambda v=value: valkey.set("k", v), "hash": lambda v=value: valkey.hset("k", "f", v),
            "stream": lambda v=value: valkey.xadd("k", {"f": v}), "list": lambda v=value: valkey.rpush("k", v),
            "set": lambda v=value: valkey.sadd("k", v),
        }  # fmt: skip
        await put[kind]()
        assert await holding(state_url, "none", WORD) == [b"k"]
        await valkey.delete("k")
        assert await holding(state_url, WORD) == []
