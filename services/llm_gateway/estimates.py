"""How many tokens a prompt comes to, without a tokenizer: an upper bound to reserve by, and what is to be expected.

A token of a byte-level tokenizer stands for at least one byte, so that the bytes of a text bound its tokens. That is four times too
much for English, so each deployment's real usage is learned from, apart for each kind of text: what prose comes to says nothing about
base64. A kind that has not been seen often enough stays at a token a byte.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.llm_gateway.chat import request_json

# Above what any provider has documented for one picture; a mini model of OpenAI counts far more, and is learned from its usage.
IMAGE_TOKENS = 1_600
LOW_DETAIL_TOKENS = 100
# A page of a document can come to so many tokens beside its bytes, and has at least so many bytes.
DOCUMENT_TOKENS = 16_000
# The slowest speech codec needs 1,000 bytes of base64 a second; Gemini counts 32 tokens a second, others fewer.
AUDIO_BYTES_A_TOKEN = 30
# The template around each message, and what providers put before tools (Anthropic: up to 530 tokens).
MESSAGE_TOKENS = 8
CALL_TOKENS = 16
TOOLS_TOKENS = 600
# Learned ratios hold after so many calls, with this margin over the highest of them.
LEARNED_AFTER = 20
MARGIN = 1.5
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + b" "
_ASCII = bytes(range(128))
# Tokens a byte that are usual for a kind of text, until the deployment's own are known: by share of other scripts, then of spaces.
_USUAL = {"prose": 0.25, "code": 0.35, "dense": 0.7, "script": 0.45}
_TEXTS = frozenset({"input", "prompt", "query", "documents"})
_BESIDE_MESSAGES = _TEXTS | {"tools", "functions", "response_format", "tool_choice"}
_MARKED = frozenset({"image_url", "image", "input_image", "input_audio", "file", "input_file", "document", "video_url"})


class Measure(NamedTuple):
    """What a request is made of. `text_bytes` are UTF-8, `kind` is prose, code, dense (few spaces) or script (beyond Latin). `media` says
    that there is more than text and pictures in it, or a picture that is elsewhere.
    """

    text_bytes: int
    kind: str
    images: int
    other_tokens: int
    media: bool = False

    def worst(self, image_tokens: int = IMAGE_TOKENS) -> int:
        """The most tokens that it can come to as far as the request says."""
        return self.text_bytes + self.images * image_tokens + self.other_tokens


def measure(body: Mapping[str, Any]) -> Measure:
    """Measures an OpenAI request: messages and tools of a completion, input of embeddings, query and documents of a ranking.

    Costs about 5 µs for a short conversation. Raises InvalidInput for a request that cannot be sent.
    """
    parts, counts = [], _Counts()
    for message in _list(body.get("messages")):
        counts.other += MESSAGE_TOKENS
        if isinstance(message, Mapping):
            counts.message(message, parts)
    for name in body.keys() & _BESIDE_MESSAGES:
        given = body[name]
        if name in _TEXTS:
            if given is not None:
                counts.texts(given, parts)
        elif given:
            parts.append(request_json(given))
            counts.other += TOOLS_TOKENS if name in ("tools", "functions") else 0
    raw = b"".join(parts)
    return Measure(len(raw), kind_of(raw), counts.images, counts.other + CALL_TOKENS, counts.media)


def kind_of(raw: bytes) -> str:
    """Which kind of text it is, by three looks at its bytes."""
    size = len(raw) or 1
    if not raw.isascii() and len(raw.translate(None, _ASCII)) * 10 > size:
        return "script"
    spaces = raw.count(b" ")
    if spaces * 16 < size:
        return "dense"
    # Letters and spaces make up nine tenths of prose; code and tables have more of the rest.
    return "prose" if len(raw.translate(None, _LETTERS)) * 10 < size else "code"


class _Counts:
    """What a walk through a request adds up."""

    def __init__(self) -> None:
        self.images = 0
        self.other = 0
        self.media = False

    def message(self, message: Mapping[str, Any], parts: list[bytes]) -> None:
        for name, value in message.items():
            if name == "content":
                if isinstance(value, str):
                    parts.append(_bytes(value))
                else:
                    self.content(_list(value), parts)
            elif name != "role" and value:
                # Tool calls, names, reasoning that is given back.
                parts.append(request_json(value))
                self.media = self.media or name == "audio"

    def content(self, items: Iterable[Any], parts: list[bytes]) -> None:
        for item in items:
            kind = item.get("type") if isinstance(item, Mapping) else None
            if kind == "text" and isinstance(item.get("text"), str):
                parts.append(_bytes(item["text"]))
            elif kind in _MARKED:
                self._medium(kind, item)
            else:
                parts.append(request_json(item))

    def _medium(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind in ("image_url", "image", "input_image"):
            inner = item.get("image_url")
            detail = (inner if isinstance(inner, Mapping) else item).get("detail")
            url = inner.get("url") if isinstance(inner, Mapping) else inner
            if isinstance(url, str) and not url.startswith("data:image/"):
                self.media = True
                if url.startswith("data:"):
                    # Gemini takes a document of many pages in the place of one picture.
                    self.other += len(url) + DOCUMENT_TOKENS
            if detail == "low":
                self.other += LOW_DETAIL_TOKENS
            else:
                self.images += 1
            return
        self.media = True
        size = len(request_json(item))
        self.other += size // AUDIO_BYTES_A_TOKEN + 1 if kind == "input_audio" else size + DOCUMENT_TOKENS

    def texts(self, given: Any, parts: list[bytes]) -> None:
        if isinstance(given, str):
            parts.append(_bytes(given))
            return
        for item in _list(given):
            if isinstance(item, str):
                parts.append(_bytes(item))
                self.other += 2  # what an embedding model puts around each text
            elif isinstance(item, list):
                self.other += len(item)
            elif isinstance(item, int):
                self.other += 1
            else:
                parts.append(request_json(item))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@dataclass(slots=True)
class _Ratio:
    """Tokens a byte of one kind of text at one deployment: the highest that was seen, and a moving mean."""

    calls: int = 0
    highest: float = 0.0
    mean: float = 0.0


@dataclass(slots=True)
class _Learned:
    ratios: dict[str, _Ratio] = field(default_factory=dict)
    image_tokens: int = IMAGE_TOKENS
    # What the deployment counts beyond anything the request holds, such as a hidden prompt.
    beyond: int = 0


class Estimates:
    """What the usage of each deployment has taught. Bounds of one process; they start anew with it."""

    def __init__(self) -> None:
        self._learned: dict[str, _Learned] = {}

    def input_bound(self, deployment_id: str, measured: Measure) -> int:
        """Most tokens of the prompt: never fewer than the same request, or a smaller one of its kind, was ever counted as."""
        learned = self._learned.get(deployment_id)
        if learned is None:
            return measured.worst()
        worst = measured.worst(learned.image_tokens) + learned.beyond
        ratio = learned.ratios.get(measured.kind)
        if measured.images or ratio is None or ratio.calls < LEARNED_AFTER:
            return worst  # nobody knows how many of the tokens seen with a picture were its own
        text = int(measured.text_bytes * ratio.highest * MARGIN) + 1
        return min(worst, worst - measured.text_bytes + text)

    def expected_input_tokens(self, deployment_id: str, measured: Measure) -> int:
        """Tokens that the prompt will most likely come to."""
        learned = self._learned.get(deployment_id) or _Learned()
        ratio = learned.ratios.get(measured.kind)
        share = ratio.mean if ratio is not None and ratio.calls else _USUAL[measured.kind]
        around = (measured.other_tokens - CALL_TOKENS) // 2
        return max(1, round(measured.text_bytes * share) + measured.images * learned.image_tokens // 2 + around)

    def learn(self, deployment_id: str, measured: Measure, input_tokens: int) -> None:
        """Takes in what a provider counted; call it with real usage only, never with an estimate."""
        learned = self._learned.get(deployment_id)
        if learned is None:
            learned = self._learned[deployment_id] = _Learned()
        if measured.images:
            # Text and pictures cannot be told apart: a count above the bound is put down to the pictures.
            if input_tokens > self.input_bound(deployment_id, measured):
                most = input_tokens - measured.other_tokens
                learned.image_tokens = max(learned.image_tokens, -(-most // measured.images))
            return
        if measured.text_bytes:
            ratio = learned.ratios.get(measured.kind)
            if ratio is None:
                ratio = learned.ratios[measured.kind] = _Ratio()
            seen = input_tokens / measured.text_bytes
            ratio.calls += 1
            ratio.highest = max(ratio.highest, min(seen, 1.0))
            ratio.mean = seen if ratio.calls == 1 else ratio.mean + (seen - ratio.mean) * 0.05
        if input_tokens > measured.worst() + learned.beyond:
            learned.beyond = input_tokens - measured.worst()
