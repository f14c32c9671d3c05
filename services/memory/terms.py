"""Keyword terms: what the BM25 route indexes and looks up.

The store's own analyzers differ between backends (Milvus Lite's finds nothing for 数据库), so text is segmented here and
reaches the store as ASCII words that every analyzer splits alike: a term with other characters is written as `u` and
its UTF-8 in hex. The same text gives the same terms on every backend.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

MAX_TERM_CHARS = 48
# Milvus bounds a VARCHAR to 65,535 bytes.
MAX_TERMS_BYTES = 65_000

_WORD = re.compile(r"[^\W_]+")
# Han has a dictionary (jieba). Kana, Hangul and the scripts of South-East Asia that write no spaces go by pairs.
_PIECE = re.compile(
    r"(?P<han>[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
    r"|(?P<pairs>[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uac00-\ud7af]+)"
    r"|(?P<word>[^\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uac00-\ud7af\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Left out of queries only, and only when something else is left: a hit on "the" alone says nothing.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by did do does for from had has have how i in is it its me my of on or our say said "
        "she so tell that the their them then there these they this those to us was we were what when where which who why "
        "will with would you your",
    )
)


def segment(text: str) -> Iterator[str]:
    """Lower-case terms of `text` in order; camelCase words give their parts as well, Han text its words and sub-words."""
    for run in _WORD.findall(unicodedata.normalize("NFKC", text)):
        if run.isascii():
            yield run.lower()
            parts = _CAMEL.findall(run) if not (run.islower() or run.isupper() or run.isdigit()) else ()
            if len(parts) > 1:
                yield from (part.lower() for part in parts)
            continue
        for piece in _PIECE.finditer(run):
            found = piece.group()
            if piece.lastgroup == "han":
                yield from _han(found)
            elif piece.lastgroup == "pairs" and len(found) > 1:
                yield from (found[i : i + 2] for i in range(len(found) - 1))
            else:
                yield found.casefold()


def _han(text: str) -> Iterable[str]:
    if len(text) == 1:
        return (text,)
    import jieba  # its dictionary takes 100 MB and half a second, so only who meets Han text pays for it

    jieba.setLogLevel(60)
    return jieba.cut_for_search(text)


def _encode(term: str) -> str:
    term = term[:MAX_TERM_CHARS]
    return term if term.isascii() else "u" + term.encode("utf-8", "surrogatepass").hex()


def index_terms(text: str) -> str:
    """The terms of a passage as one line for the store."""
    words: list[str] = []
    size = 0
    for term in map(_encode, segment(text)):
        size += len(term) + 1
        if size > MAX_TERMS_BYTES:
            break
        words.append(term)
    return " ".join(words)


def query_terms(text: str, limit: int = 64) -> str:
    """The terms of a query as one line for the store: each once, without stop words unless it has only these."""
    every = list(dict.fromkeys(segment(text)))
    telling = [term for term in every if term not in STOP_WORDS] or every
    return " ".join(_encode(term) for term in telling[:limit])
