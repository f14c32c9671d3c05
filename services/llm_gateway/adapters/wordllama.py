"""Static embeddings in this process: WordLlama's table and tokenizer, read from its wheel without network.

The wheel's own loader is not used: it copies the table to 32-bit floats, imports an HTTP client and sets up logging, and
its batches need a kilobyte a token. Here the table stays mapped as it is on disk, and a text of any length is read and averaged
in pieces. A test holds the vectors equal to the wheel's own.
"""

import asyncio
import importlib.util
import operator
import re
import struct
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.chat import Answer, Chunk
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Ranking, Vectors

NAME = "l2_supercat_256"
# Shorter prefixes of the vectors are meaningful on their own (Matryoshka training).
DIMENSIONS = (64, 128, 256)
# `encode` keeps the interpreter's lock, 10 ms for so many characters; a text of 10 MB as one took 15 s and 700 MB.
_CHARS_A_PIECE = 8192
_TOKENS_A_PIECE = 4096
# No token goes over a single space between words, and each text begins with one: cut there, it has the tokens of the whole.
_SEAM = re.compile(r"(?<=\w) (?=\w)")
_TENSOR = "embedding.weight"
T = TypeVar("T")


def model_files() -> tuple[Path, Path]:
    """Table and tokenizer in the wheel. Raises FileNotFoundError when the package or one of them is missing."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package wordllama is not installed")
    folder = Path(spec.submodule_search_locations[0])
    files = folder / "weights" / f"{NAME}.safetensors", folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
    return files


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most twice `_CHARS_A_PIECE`, cut between words where there are any."""
    start = 0
    while len(text) - start > 2 * _CHARS_A_PIECE:
        last = start + 2 * _CHARS_A_PIECE
        seam = _SEAM.search(text, start + _CHARS_A_PIECE, last)
        yield text[start : seam.start() if seam else last]
        start = seam.end() if seam else last
    yield text[start:]


class _Model:
    """Table and tokenizer; made in a thread at the first use."""

    def __init__(self) -> None:
        import numpy
        from tokenizers import Tokenizer

        table, tokenizer = model_files()
        with table.open("rb") as file:
            # safetensors: 8 bytes length of the JSON header, the header, the tensors.
            (length,) = struct.unpack("<Q", file.read(8))
            header = orjson.loads(file.read(length))[_TENSOR]
        if header["dtype"] != "F16":
            raise ValueError(f"{table.name} holds {header['dtype']}, not F16")
        offset = 8 + length + header["data_offsets"][0]
        self._numpy: Any = numpy
        self._table = numpy.memmap(table, dtype="<f2", mode="r", offset=offset, shape=tuple(header["shape"]))
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str], dimension: int) -> tuple[list[array], int]:
        """Unit vectors of `texts` and the number of tokens."""
        vectors, tokens = [], 0
        for text in texts:
            total = self._numpy.zeros(dimension, dtype=self._numpy.float32)
            for piece in _pieces(text):
                ids = self._tokenizer.encode(piece, add_special_tokens=False).ids
                tokens += len(ids)
                self._add(total, ids)
            vectors.append(self._unit(total))
        return vectors, tokens

    def _add(self, total: Any, ids: list[int]) -> None:
        for start in range(0, len(ids), _TOKENS_A_PIECE):
            rows = self._table[ids[start : start + _TOKENS_A_PIECE], : len(total)]
            total += rows.sum(axis=0, dtype=self._numpy.float32)

    def _unit(self, total: Any) -> array:
        length = float(self._numpy.linalg.norm(total))
        if length > 0:
            total /= length
        found = array("f")
        found.frombytes(total.tobytes())
        return found


class WordLlamaUpstream:
    """Embeds on a thread of its own; `close()` ends it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wordllama")
        self._model: _Model | None = None

    async def complete(self, attempt: Attempt) -> Answer:
        """Never called: the registry gives chat models to other adapters."""
        raise AssertionError("the registry gives chat models to other adapters")

    def stream(self, attempt: Attempt) -> AsyncGenerator[list[Chunk], None]:
        """Never called, as `complete`."""
        raise AssertionError("the registry gives chat models to other adapters")

    async def embed(self, attempt: Attempt) -> Vectors:
        """Embeds a text or a list of texts; `dimensions` may be 64, 128 or 256. Raises InvalidInput for other input."""
        given = attempt.body["input"]
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts):
            raise InvalidInput.field("input", "this model takes texts, not tokens")
        dimension = attempt.body.get("dimensions", DIMENSIONS[-1])
        if dimension not in DIMENSIONS:
            raise InvalidInput.field("dimensions", "this model offers 64, 128 and 256")
        vectors, tokens = await self._in_thread(attempt, self._work, texts, dimension)
        return Vectors(vectors, tokens, attempt.deployment.model)

    async def rerank(self, attempt: Attempt) -> Ranking:
        """Ranks by the cosine of the angle between static embeddings, no less than 0.

        This compares the words of a query with the words of a document and reads neither: cheap and without network, but it
        is no cross-encoder, and knows no order of words and no negation.
        """
        body = attempt.body
        scores, tokens = await self._in_thread(attempt, self._cosines, body["query"], body["documents"])
        ranked = sorted(enumerate(scores), key=lambda entry: (-entry[1], entry[0]))
        return Ranking(ranked[: body.get("top_n")], tokens, attempt.deployment.model)

    async def _in_thread(self, attempt: Attempt, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(attempt.limits.ends_at - time.monotonic()):
                return await loop.run_in_executor(self._threads, work, *arguments)
        except TimeoutError:
            raise UpstreamFault(Failure(FailureClass.TIMEOUT_TOTAL, "no embeddings in time")) from None

    def _cosines(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        (one, *others), tokens = self._work([query, *documents], DIMENSIONS[-1])
        return [max(sum(map(operator.mul, one, other)), 0.0) for other in others], tokens

    def _work(self, texts: Sequence[str], dimension: int) -> tuple[list[array], int]:
        if self._model is None:
            self._model = _Model()
        return self._model.embed(texts, dimension)

    async def close(self) -> None:
        """Ends the thread; what is queued is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
