"""Arithmetic found in plain text."""

import pytest

from services.simulator.arithmetic import PREVIOUS, binary_operation, find_expressions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what is 17*23", ["17*23"]),
        ("What is 17 * 23?", ["17 * 23"]),
        ("compute (3+4)*5 - 2^3", ["(3+4)*5 - 2**3"]),
        ("What is 12 plus 30 divided by 5?", ["12+30/5"]),
        ("15% of 240", ["15/100*240"]),
        ("the square root of 144 and 3 squared", ["sqrt(144)", "3**2"]),
        ("Multiply 6 by 7", ["6*7"]),
        ("subtract 2 from 10 please", ["10-2"]),
        ("1,234 * 2", ["1234 * 2"]),
        ("6 × 7 and 8 ÷ 2?", ["6*7", "8/2"]),
        ("is it 2*3 or 2*3?", ["2*3"]),
        ("(see 3*4)", ["3*4"]),
        ("what is -5 + 3", ["-5 + 3"]),
        ("What is 5-3?", ["5-3"]),
    ],
)
def test_expressions_are_found(text, expected):
    assert find_expressions(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "We met on 2024-05-06.",
        "What happened on 2024-05-06?",
        "It is open 24/7.",
        "version 1.2.3 of python3",
        "steps 5-10 of the list",
        "Call 555-123-4567",
        "What are A1-A5?",
        "http://x/1+1",
        "I have 3 cats.",
        "c++ and 1st",
        "",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text):
    assert find_expressions(text)[0] == []


def test_what_follows_from_the_result_before():
    assert find_expressions("add 3 to it") == ([f"{PREVIOUS}+3"], " ")


def test_operands_of_a_single_operation():
    assert binary_operation("17*23") == (17, "*", 23)
    assert binary_operation("1.5 / -2") == (1.5, "/", -2)
    assert binary_operation("1+2+3") is None


def test_a_hostile_text_is_searched_in_linear_time():
    # Each of these took seconds with a careless expression; the timeout of the test run is the judge.
    for text in ("1" * 20_000, "1+" * 10_000, "(" * 20_000, "1,111" * 4_000, "1 " * 10_000, "sqrt(" * 4_000, "-" * 20_000, "1.1." * 5_000):
        find_expressions("what is " + text)
