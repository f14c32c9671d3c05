"""Expressions: an evaluator over Python's own syntax tree that knows numbers, operators and its own functions only."""

import ast
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, DecimalException
from fractions import Fraction

from services.tool_executor.builtin import arithmetic
from services.tool_executor.builtin.arithmetic import MAX_BITS, CalculationError, Number
from services.tool_executor.builtin.functions import CONSTANTS, FUNCTIONS

MAX_LENGTH = 1000
MAX_DEPTH = 600  # a sum of 500 terms is 500 levels deep
# Neither quotes nor brackets nor colons come as far as the parser.
_PERMITTED = re.compile(r"[0-9A-Za-z_.,+\-*/%()\s]*")
_WRITTEN_OTHERWISE = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "\n": " ", "\t": " ", "\r": " "})
_BINARY: Mapping[type, Callable[[Number, Number], Number]] = {
    ast.Add: arithmetic.add, ast.Sub: arithmetic.subtract, ast.Mult: arithmetic.multiply, ast.Div: arithmetic.divide,
    ast.FloorDiv: arithmetic.floor_divide, ast.Mod: arithmetic.modulo, ast.Pow: arithmetic.power,
}  # fmt: skip


def evaluate(expression: str) -> Number:
    """The value of `expression`. Raises CalculationError, and nothing else."""
    text = expression.translate(_WRITTEN_OTHERWISE).replace("^", "**").strip()
    if len(text) > 2 * MAX_LENGTH:
        raise CalculationError(f"the expression is longer than {MAX_LENGTH} characters")
    if not _PERMITTED.fullmatch(text):
        raise CalculationError("only numbers, operators, parentheses and the names of functions are understood")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculationError("that is not a complete arithmetic expression") from None
    return _Evaluation(text).value_of(tree.body, 0)


class _Evaluation:
    def __init__(self, text: str) -> None:
        self._text = text

    def value_of(self, node: ast.expr, depth: int) -> Number:
        if depth > MAX_DEPTH:
            raise CalculationError("the expression is nested too deeply")
        match node:
            case ast.Constant():
                # The text and not the parsed float: 0.1 shall be a tenth.
                return _literal(self._text[node.col_offset : node.end_col_offset])
            case ast.UnaryOp(op=ast.USub()):
                inner = self.value_of(node.operand, depth + 1)
                return Number(-inner.value, inner.exact)
            case ast.UnaryOp(op=ast.UAdd()):
                return self.value_of(node.operand, depth + 1)
            case ast.BinOp() if type(node.op) in _BINARY:
                return _BINARY[type(node.op)](self.value_of(node.left, depth + 1), self.value_of(node.right, depth + 1))
            case ast.Name():
                return _constant(node.id)
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                return self._called(name, node.args, depth)
        raise CalculationError("only numbers, the operators + - * / // % **, parentheses and functions are understood")

    def _called(self, name: str, arguments: list[ast.expr], depth: int) -> Number:
        function = FUNCTIONS.get(name.lower())
        if function is None:
            raise CalculationError(f"there is no function {name[:20]}; known are {', '.join(sorted(FUNCTIONS))}")
        if not function.least <= len(arguments) <= function.most:
            raise CalculationError(f"{name} takes another number of values")
        return function.compute(*(self.value_of(a, depth + 1) for a in arguments))


def _literal(text: str) -> Number:
    text = text.replace("_", "")
    try:
        value = Decimal(text)
    except DecimalException:
        raise CalculationError("numbers are written in decimal digits") from None
    if value and not -MAX_BITS // 4 < value.adjusted() < MAX_BITS // 4:
        raise CalculationError("a number is too large or too small")
    return Number(Fraction(value))


def _constant(name: str) -> Number:
    if name.lower() not in CONSTANTS:
        raise CalculationError(f"the name {name[:20]} means nothing here; known are {', '.join(sorted(CONSTANTS))}")
    return CONSTANTS[name.lower()]
