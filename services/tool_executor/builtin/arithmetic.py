"""Arithmetic on exact fractions.

Whole numbers and decimals stay exact; what has no exact value (roots, logarithms, angles) is rounded to 40 significant
digits and marked as inexact. Every operation is bounded in digits before it is made, so that no expression of the
permitted length takes more than some milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException, InvalidOperation, Overflow
from fractions import Fraction

MAX_BITS = 13_000  # some 3,900 digits; Python refuses to print integers of more than 4,300
SHOWN_DIGITS = 15
# Its own context: the caller's may have other traps.
WORKING = Context(prec=40, Emax=10_000, Emin=-10_000, traps=[InvalidOperation, Overflow])


class CalculationError(ValueError):
    """The expression has no value here; the message says why, for the one who wrote it."""


@dataclass(frozen=True, slots=True)
class Number:
    """A value, and whether it is exact."""

    value: Fraction
    exact: bool = True

    @property
    def whole(self) -> int:
        """The value as an int. Raises CalculationError when it is none."""
        if self.value.denominator != 1:
            raise CalculationError("a whole number is needed here")
        return self.value.numerator


def shown(number: Number) -> tuple[str, bool]:
    """The number in decimal digits without exponent where it is short, and whether that shows all of it."""
    value = number.value
    if value.denominator == 1 and (number.exact or abs(value) < 10**SHOWN_DIGITS):
        return str(value.numerator), True
    digits = _terminating_digits(value) if number.exact else None
    if digits is not None:
        scaled = abs(value.numerator) * 10**digits // value.denominator
        text = str(scaled).rjust(digits + 1, "0")
        return f"{'-' if value < 0 else ''}{text[:-digits]}.{text[-digits:]}", True
    rounded = as_decimal(number).normalize(Context(prec=SHOWN_DIGITS))
    text = format(rounded, "f") if -7 <= rounded.adjusted() < SHOWN_DIGITS else str(rounded)
    if "." in text and "E" not in text:
        text = text.rstrip("0").rstrip(".")
    return text, False


def as_decimal(number: Number) -> Decimal:
    """The number rounded to the working precision."""
    return _guarded(lambda: WORKING.divide(Decimal(number.value.numerator), Decimal(number.value.denominator)))


def inexact(value: Decimal) -> Number:
    """A rounded result. Raises CalculationError when it is not finite."""
    if not value.is_finite():
        raise CalculationError("the result is not a finite number")
    return Number(_bounded(Fraction(value)), exact=False)


def _guarded(compute: Callable[[], Decimal]) -> Decimal:
    try:
        return compute()
    except Overflow:
        raise CalculationError("the result is too large") from None
    except DecimalException:
        raise CalculationError("that has no real value") from None


def _terminating_digits(value: Fraction) -> int | None:
    """How many digits after the point show `value` exactly, None when none do or when they are many."""
    rest, twos, fives = value.denominator, 0, 0
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    digits = max(twos, fives)
    return digits if rest == 1 and 0 < digits <= 100 else None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise CalculationError("the result is too large")
    return value


def _settled(value: Fraction, exact: bool) -> Number:
    """A result; an inexact one is rounded again, so that its digits do not grow with each operation."""
    if not exact and _bits(value) > 300:
        return inexact(as_decimal(Number(_bounded(value))))
    return Number(_bounded(value), exact)


def add(left: Number, right: Number) -> Number:
    """left + right."""
    _room(left, right)
    return _settled(left.value + right.value, left.exact and right.exact)


def subtract(left: Number, right: Number) -> Number:
    """left - right."""
    _room(left, right)
    return _settled(left.value - right.value, left.exact and right.exact)


def multiply(left: Number, right: Number) -> Number:
    """left * right."""
    _room(left, right)
    return _settled(left.value * right.value, left.exact and right.exact)


def divide(left: Number, right: Number) -> Number:
    """left / right."""
    _divisor(right)
    _room(left, right)
    return _settled(left.value / right.value, left.exact and right.exact)


def floor_divide(left: Number, right: Number) -> Number:
    """left // right, rounded down as Python does."""
    _divisor(right)
    return _settled(Fraction(left.value // right.value), left.exact and right.exact)


def modulo(left: Number, right: Number) -> Number:
    """left % right, with the sign of `right` as in Python."""
    _divisor(right)
    return _settled(left.value % right.value, left.exact and right.exact)


def power(left: Number, right: Number) -> Number:
    """left ** right: exact for whole exponents, a real value or an error for others."""
    exact = left.exact and right.exact
    base, exponent = left.value, right.value
    if exponent.denominator == 1 and right.exact:
        if base == 0 and exponent < 0:
            raise CalculationError("division by zero")
        if base in (0, 1, -1):
            # Only whether the exponent is zero, odd or even matters, however many digits it has.
            return Number(base ** (exponent.numerator % 2 or (2 if exponent else 0)), exact)
        if abs(exponent.numerator) <= MAX_BITS and (_bits(base) - 1) * abs(exponent.numerator) <= MAX_BITS:
            return _settled(base**exponent.numerator, exact)
        if left.exact:
            raise CalculationError("the result is too large")
    if base < 0:
        raise CalculationError("a negative number to a fractional power has no real value")
    if base == 0:
        if exponent < 0:
            raise CalculationError("division by zero")
        return Number(Fraction(0) if exponent else Fraction(1), exact)
    return inexact(_guarded(lambda: WORKING.power(as_decimal(left), as_decimal(right))))


def _divisor(number: Number) -> None:
    if number.value == 0:
        raise CalculationError("division by zero")


def _room(left: Number, right: Number) -> None:
    if _bits(left.value) + _bits(right.value) > 2 * MAX_BITS:
        raise CalculationError("the result is too large")
