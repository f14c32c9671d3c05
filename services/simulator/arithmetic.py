"""Arithmetic in plain text: "17*23", "15% of 240", "12 plus 30 divided by 5"."""

import re
from collections.abc import Mapping

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_WORDED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"({_NUMBER})\s*(?:%|percent|per cent)\s+of\s+({_NUMBER})", re.I), r"\1/100*\2"),
    (re.compile(rf"(?:the\s+)?square root of\s+({_NUMBER})", re.I), r"sqrt(\1)"),
    (re.compile(rf"({_NUMBER})\s+squared\b", re.I), r"\1**2"),
    (re.compile(rf"({_NUMBER})\s+cubed\b", re.I), r"\1**3"),
    (re.compile(r"(?<=[\d)])\s+(?:raised\s+)?to the power of\s+(?=[\d(.-])", re.I), "**"),
    (re.compile(r"(?<=[\d)])\s+(?:multiplied by|times)\s+(?=[\d(.-])", re.I), "*"),
    (re.compile(r"(?<=[\d)])\s+divided by\s+(?=[\d(.-])", re.I), "/"),
    (re.compile(r"(?<=[\d)])\s+plus\s+(?=[\d(.-])", re.I), "+"),
    (re.compile(r"(?<=[\d)])\s+minus\s+(?=[\d(.-])", re.I), "-"),
    (re.compile(rf"\bmultiply\s+({_NUMBER})\s+(?:by|with|and)\s+({_NUMBER})", re.I), r"\1*\2"),
    (re.compile(rf"\bdivide\s+({_NUMBER})\s+by\s+({_NUMBER})", re.I), r"\1/\2"),
    (re.compile(rf"\badd\s+({_NUMBER})\s+(?:to|and)\s+({_NUMBER})", re.I), r"\2+\1"),
    (re.compile(rf"\bsubtract\s+({_NUMBER})\s+from\s+({_NUMBER})", re.I), r"\2-\1"),
    (re.compile(rf"\b(?:the\s+)?sum of\s+({_NUMBER})\s+and\s+({_NUMBER})", re.I), r"\1+\2"),
    (re.compile(rf"\b(?:the\s+)?product of\s+({_NUMBER})\s+and\s+({_NUMBER})", re.I), r"\1*\2"),
    (re.compile(r"(?<=\d)\s*[x×·]\s*(?=\d)"), "*"),
    (re.compile(r"(?<=[\d)])\s*÷\s*(?=[\d(])"), "/"),
)
_WORDED_HINT = re.compile(
    r"%|percent|per cent|root of|squared|cubed|power of|multipl|times|divide|plus|minus|add|subtract|sum of|product of|[x×·÷]", re.I
)

PREVIOUS = "{result}"
"""Stands in an expression for the result of the calculation before it."""

_IT = r"(?:it|that|this|the (?:result|answer|sum|product|outcome))"
_DEPENDENT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"\bmultiply\s+{_IT}\s+(?:by|with)\s+({_NUMBER})", re.I), "*"),
    (re.compile(rf"\bdivide\s+{_IT}\s+by\s+({_NUMBER})", re.I), "/"),
    (re.compile(rf"\badd\s+({_NUMBER})\s+to\s+{_IT}", re.I), "+"),
    (re.compile(rf"\bsubtract\s+({_NUMBER})\s+from\s+{_IT}", re.I), "-"),
)

_FUNCTION = r"(?:sqrt|abs|round|floor|ceil|min|max|log10|log2|log|exp|sin|cos|tan|pow|factorial)"
_ATOM = rf"(?:{_FUNCTION}\s*\(\s*)?\(*\s*-?\s*(?:{_NUMBER})(?:\s*,\s*(?:{_NUMBER}))*\s*\)*"
_EXPRESSION = re.compile(rf"(?<![\w.$#/-]){_ATOM}(?:\s*(?:\*\*|//|[-+*/^%])\s*{_ATOM})*(?![\w-])")
_OPERATOR = re.compile(r"\*\*|//|[-+*/^%]")
_CUE = re.compile(
    r"\b(?:what(?:'s| is| are)|how much|how many|calculate|compute|evaluate|work out|result of"
    r"|value of|sum of|solve|add|subtract|multiply|divide)\b|=",
    re.I,
)
_DATE_OR_VERSION = re.compile(r"^\d{4}-\d{1,2}(?:-\d{1,2})?$|^\d{1,2}/\d{1,2}/\d{2,4}$|^\d{3,}-\d{3,}(?:-\d+)*$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_BINARY = re.compile(rf"^\(*({_NUMBER})\)*\s*(\*\*|[-+*/^])\s*\(*(-?(?:{_NUMBER}))\)*$")

OPERATION_NAMES: Mapping[str, frozenset[str]] = {
    "+": frozenset(("+", "add", "addition", "plus", "sum")),
    "-": frozenset(("-", "subtract", "subtraction", "minus", "difference", "sub")),
    "*": frozenset(("*", "multiply", "multiplication", "times", "product", "mul", "x")),
    "/": frozenset(("/", "divide", "division", "quotient", "div")),
    "**": frozenset(("**", "^", "power", "pow", "exponent", "exponentiate")),
}
"""How tools with an `operation` property name each operator."""


def find_expressions(text: str) -> tuple[list[str], str]:
    """The arithmetic expressions in `text`, normalised to Python's operators, and the text without them.

    A lone `5-10` or `24/7` counts only after a cue such as "what is"; dates, versions and ranges do not count.
    """
    if not any(character.isdigit() for character in text):
        return [], text
    cued = _CUE.search(text) is not None
    if _WORDED_HINT.search(text):
        for pattern, replacement in _WORDED:
            text, replaced = pattern.subn(replacement, text)
            cued = cued or replaced > 0
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        expression = _balanced(match.group(0).strip())
        if not expression or not _counts(expression, cued):
            return match.group(0)
        found.append(_THOUSANDS.sub("", expression).replace("^", "**"))
        return " "

    rest = _EXPRESSION.sub(take, text)
    for pattern, operator in _DEPENDENT:
        match = pattern.search(rest)
        if match:
            found.append(f"{PREVIOUS}{operator}{match.group(1).replace(',', '')}")
            rest = pattern.sub(" ", rest)
    return list(dict.fromkeys(found)), rest


def binary_operation(expression: str) -> tuple[float, str, float] | None:
    """The operands and the operator of an expression with just one, else None."""
    match = _BINARY.match(expression)
    if match is None:
        return None
    return _number(match.group(1)), match.group(2).replace("^", "**"), _number(match.group(3))


def _number(text: str) -> float:
    text = text.replace(",", "").replace(" ", "")
    return float(text) if "." in text else int(text[:15])


def _balanced(expression: str) -> str:
    """The expression without brackets that have no partner, as in "(see 3*4)"."""
    while expression.count("(") > expression.count(")") and expression.startswith("("):
        expression = expression[1:].strip()
    while expression.count(")") > expression.count("(") and expression.endswith(")"):
        expression = expression[:-1].strip()
    return expression if expression.count("(") == expression.count(")") else ""


def _counts(expression: str, cued: bool) -> bool:
    if _DATE_OR_VERSION.match(expression):
        return False
    if expression[0].isalpha():
        return True
    operators = _OPERATOR.findall(expression.lstrip("- "))
    if not operators:
        return False
    return cued or "(" in expression or any(operator in ("*", "**", "+", "^") for operator in operators)
