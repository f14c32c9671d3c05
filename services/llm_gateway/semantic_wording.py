"""Whether two questions say the same: the second half of the semantic cache, beside the similarity of their embeddings.

Embeddings put "cancel my order" and "do not cancel my order", "in Paris" and "in Lyon", "before" and "after" next to each
other. So the words are compared too, and here only a difference that is known to be harmless is none: capital letters at the
start, punctuation, articles, politeness, the ways to ask "how", contractions, number words, and the synonyms below. Whatever
else differs, a number, a unit, a negation in any language, a name, a word's ending or the order of the words, is another
question. A wrong answer costs more than a call.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

# One token: a number with its sign and separators, a word, one character of a script without spaces, or a symbol.
_WIDE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"(?<![\w.,])[-+−–]?\d+(?:[.,:/-]\d+)*|[{_WIDE}]|[^\W\d_{_WIDE}]+(?:'[^\W\d_{_WIDE}]+)*|\d+|[^\w\s]|_")
# Marks that carry no meaning of their own; all other symbols (currency, per cent, comparison, arithmetic) do.
_SILENT = frozenset(".,;:!?\"'()[]{}«»„“”‘’…·。，、；：！？「」『』（）【】《》¿¡-–—`_")
# Where there are numbers these may be arithmetic, or the kind of an interval.
_WITH_NUMBERS = frozenset("()[]{}-–—")
# What may stand behind an exclamation mark that only ends a sentence; before a word or a sign it says "not".
_BEHIND_MARK = frozenset(" \n\t!?.)]»\"”’'")
_APOSTROPHES = str.maketrans({"’": "'", "ʼ": "'", "‘": "'", "`": "'"})
_CONTRACTIONS: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern, re.I), replacement)
    for pattern, replacement in (
        (r"\bcan't\b", "can not"), (r"\bcannot\b", "can not"), (r"\bwon't\b", "will not"), (r"\bshan't\b", "shall not"),
        (r"\bain't\b", "is not"), (r"n't\b", " not"), (r"\bwhat's\b", "what is"), (r"\bwhere's\b", "where is"),
        (r"\bwho's\b", "who is"), (r"\bhow's\b", "how is"), (r"\bit's\b", "it is"), (r"\bthat's\b", "that is"),
        (r"\bthere's\b", "there is"), (r"\bi'm\b", "I am"), (r"'re\b", " are"), (r"'ve\b", " have"), (r"'ll\b", " will"),
    )
)  # fmt: skip
# Openings that ask for the same whatever follows. They are dropped from the front, one after the other.
_OPENINGS = re.compile(
    r"^(?:hi|hello|hey|please|kindly|thanks|so|"
    r"(?:can|could|would|will) you (?:please )?(?:tell me|explain(?: to me)?|help me understand|show me)|"
    r"tell me|explain(?: to me)?|"
    r"(?:i (?:want|need) to know|i would like to know|i'd like to know|do you know|i am wondering|i was wondering)|"
    r"bitte|kannst du mir sagen|können sie mir sagen|sag mir|"
    r"s'il te plaît|s'il vous plaît|peux-tu me dire|pouvez-vous me dire|dis-moi|"
    r"por favor|puedes decirme|puede decirme|dime)\b[\s,:;!.-]*",
    re.I,
)
_CLOSINGS = re.compile(
    r"(?<![\s,])[\s,]*\b(?:please|thanks|thank you|bitte|danke|s'il te plaît|s'il vous plaît|por favor|gracias)\b[\s.!?]*$", re.I
)
_HOW = re.compile(
    r"^(?:how (?:do|can|could|would) (?:i|we|you|one)|how does one|how to|what is the way to|what is a way to|what are the steps to)\b",
    re.I,
)
_MOST_POLITENESS = 8
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
# Words that stand for each other in every question that we could think of; a list that is longer is not better.
SYNONYMS: Sequence[Sequence[str]] = (
    ("start", "begin", "commence"),
    ("buy", "purchase"),
    ("fix", "repair"),
    ("delete", "remove", "erase"),
    ("create", "make"),
    ("photo", "photograph"),
    ("phone", "telephone"),
    ("email", "e-mail"),
    ("big", "large"),
    ("quick", "fast"),
    ("assist", "help"),
    ("show", "display"),
    ("quit", "exit"),
    ("choose", "select", "pick"),
    ("get", "obtain"),
    ("ok", "okay"),
)


def wording(text: str, synonyms: Mapping[str, str]) -> tuple[str, ...]:
    """What a question says, as tokens; two questions with equal tokens are the same. `synonyms` is made by `canon_of`."""
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).strip()
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    for _ in range(_MOST_POLITENESS):
        if (shorter := _CLOSINGS.sub("", _OPENINGS.sub("", text))) == text:
            break
        text = shorter
    text = _HOW.sub("how", text)
    found: list[str] = []
    at_start, numbers = True, any(map(str.isdigit, text))
    for match in _TOKEN.finditer(text):
        word = match.group()
        if word in _SILENT and not _means(word, text, match, numbers=numbers):
            at_start = at_start or word in ".!?。！？"
            continue
        # A capital letter within a sentence marks a name: "US" is no "us", and "Polish" is no "polish".
        name = not at_start and word != word.lower() and word != "I"
        at_start = False
        if name:
            found.append(word)
            continue
        word = word.lower()
        if word in _ARTICLES:
            continue
        found.append(synonyms.get(word) or _NUMBERS.get(word) or word)
    return tuple(found)


def _means(mark: str, text: str, match: re.Match[str], *, numbers: bool) -> bool:
    """Whether a mark that is mostly silent says something: arithmetic, a factorial, or "not" in code."""
    if mark == "!":
        begin, end = match.span()
        return (text[end : end + 1] not in _BEHIND_MARK and end < len(text)) or text[begin - 1 : begin].isdigit()
    return numbers and mark in _WITH_NUMBERS


def canon_of(groups: Sequence[Sequence[str]]) -> Mapping[str, str]:
    """From each word of each group to the first of its group."""
    return {word: group[0] for group in groups for word in group}
