"""The functions and constants of the calculator."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from services.tool_executor.builtin.arithmetic import MAX_BITS, WORKING, CalculationError, Number, add, as_decimal, divide, inexact, power

MAX_FACTORIAL = 1000
MAX_ARGUMENTS = 200
MAX_PLACES = 100


@dataclass(frozen=True, slots=True)
class Function:
    """A function of `least` to `most` numbers."""

    compute: Callable[..., Number]
    least: int = 1
    most: int = 1


def _root(degree: int) -> Callable[[Number], Number]:
    def root(number: Number) -> Number:
        value = number.value
        if value < 0 and degree % 2 == 0:
            raise CalculationError("a negative number has no real square root")
        sign = -1 if value < 0 else 1
        top, bottom = _integer_root(abs(value.numerator), degree), _integer_root(value.denominator, degree)
        if top**degree == abs(value.numerator) and bottom**degree == value.denominator:
            return Number(sign * Fraction(top, bottom), number.exact)
        positive = as_decimal(Number(abs(value)))
        if degree == 2:
            return inexact(WORKING.sqrt(positive))
        return inexact(sign * WORKING.power(positive, WORKING.divide(Decimal(1), Decimal(degree))))

    return root


def _integer_root(value: int, degree: int) -> int:
    """The largest integer whose power is at most `value`, by Newton's method."""
    if degree == 2:
        return math.isqrt(value)
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _positive(number: Number) -> Decimal:
    if number.value <= 0:
        raise CalculationError("a logarithm needs a positive number")
    return as_decimal(number)


def _exactly(base: int, number: Number) -> Number | None:
    """The logarithm to `base` when it is whole."""
    value = number.value
    power = value.numerator if value.denominator == 1 else value.denominator
    if value <= 0 or min(value.numerator, value.denominator) != 1 or not number.exact:
        return None
    exponent = round(math.log(power, base)) if power > 1 else 0
    if base**exponent != power:
        return None
    return Number(Fraction(exponent if value.denominator == 1 else -exponent))


def _ln(number: Number) -> Number:
    return Number(Fraction(0)) if number.value == 1 and number.exact else inexact(WORKING.ln(_positive(number)))


def _to_base(base: int) -> Callable[[Number], Number]:
    def logarithm(number: Number) -> Number:
        exact = _exactly(base, number)
        if exact is not None:
            return exact
        value = _positive(number)
        return inexact(WORKING.log10(value) if base == 10 else WORKING.divide(WORKING.ln(value), WORKING.ln(Decimal(base))))

    return logarithm


def _log(number: Number, base: Number | None = None) -> Number:
    if base is None:
        return _ln(number)
    if base.value == 1:
        raise CalculationError("there is no logarithm to the base 1")
    if base.exact and base.value.denominator == 1 and base.value > 1 and (exact := _exactly(base.whole, number)) is not None:
        return exact
    return inexact(WORKING.divide(WORKING.ln(_positive(number)), WORKING.ln(_positive(base))))


def _exp(number: Number) -> Number:
    if number.value == 0 and number.exact:
        return Number(Fraction(1))
    if abs(number.value) > 9000:
        raise CalculationError("the result is too large" if number.value > 0 else "the result is too small")
    return inexact(WORKING.exp(as_decimal(number)))


def _by_float(compute: Callable[..., float]) -> Callable[..., Number]:
    """Angles in double precision: 15 digits are what is shown."""

    def computed(*numbers: Number) -> Number:
        if all(n.value == 0 for n in numbers) and compute in (math.sin, math.tan, math.asin, math.atan):
            return Number(Fraction(0), all(n.exact for n in numbers))
        try:
            result = compute(*(float(n.value) for n in numbers))
        except (ValueError, OverflowError):
            raise CalculationError("that has no real value") from None
        if not math.isfinite(result):
            raise CalculationError("the result is not a finite number")
        return inexact(Decimal(repr(result)))

    return computed


def _round(number: Number, places: Number | None = None) -> Number:
    wanted = places.whole if places is not None else 0
    if abs(wanted) > MAX_PLACES:
        raise CalculationError(f"round takes at most {MAX_PLACES} places")
    return Number(Fraction(round(number.value, wanted)), number.exact)


def _factorial(number: Number) -> Number:
    if not 0 <= number.whole <= MAX_FACTORIAL:
        raise CalculationError(f"factorial takes whole numbers from 0 to {MAX_FACTORIAL}")
    return Number(Fraction(math.factorial(number.whole)), number.exact)


def _sum(*numbers: Number) -> Number:
    total = Number(Fraction(0))
    for number in numbers:
        total = add(total, number)
    return total


def _mean(*numbers: Number) -> Number:
    return divide(_sum(*numbers), Number(Fraction(len(numbers))))


def _lcm(*numbers: Number) -> Number:
    result = math.lcm(*(n.whole for n in numbers))
    if result.bit_length() > MAX_BITS:
        raise CalculationError("the result is too large")
    return Number(Fraction(result), all(n.exact for n in numbers))


def _constant(text: str) -> Number:
    with localcontext(WORKING):
        return inexact(Decimal(text))


CONSTANTS: Mapping[str, Number] = {
    "pi": _constant("3.141592653589793238462643383279502884197"),
    "e": _constant("2.718281828459045235360287471352662497757"),
    "tau": _constant("6.283185307179586476925286766559005768394"),
}
FUNCTIONS: Mapping[str, Function] = {
    "abs": Function(lambda n: Number(abs(n.value), n.exact)),
    "round": Function(_round, 1, 2),
    "floor": Function(lambda n: Number(Fraction(math.floor(n.value)), n.exact)),
    "ceil": Function(lambda n: Number(Fraction(math.ceil(n.value)), n.exact)),
    "min": Function(lambda *n: min(n, key=lambda x: x.value), 1, MAX_ARGUMENTS),
    "max": Function(lambda *n: max(n, key=lambda x: x.value), 1, MAX_ARGUMENTS),
    "sum": Function(_sum, 1, MAX_ARGUMENTS),
    "mean": Function(_mean, 1, MAX_ARGUMENTS),
    "sqrt": Function(_root(2)),
    "cbrt": Function(_root(3)),
    "exp": Function(_exp),
    "ln": Function(_ln),
    "log": Function(_log, 1, 2),
    "log2": Function(_to_base(2)),
    "log10": Function(_to_base(10)),
    "sin": Function(_by_float(math.sin)),
    "cos": Function(_by_float(math.cos)),
    "tan": Function(_by_float(math.tan)),
    "asin": Function(_by_float(math.asin)),
    "acos": Function(_by_float(math.acos)),
    "atan": Function(_by_float(math.atan)),
    "degrees": Function(_by_float(math.degrees)),
    "radians": Function(_by_float(math.radians)),
    "hypot": Function(_by_float(math.hypot), 2, 2),
    "factorial": Function(_factorial),
    "pow": Function(power, 2, 2),
    "gcd": Function(lambda *n: Number(Fraction(math.gcd(*(x.whole for x in n))), all(x.exact for x in n)), 1, MAX_ARGUMENTS),
    "lcm": Function(_lcm, 1, MAX_ARGUMENTS),
}
