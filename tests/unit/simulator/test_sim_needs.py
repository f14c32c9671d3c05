"""What a message is understood to ask for."""

import pytest

from services.simulator.needs import Kind, find_needs


def kinds(text: str) -> list[str]:
    return [need.kind.value for need in find_needs(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what is 2*3?", ["calculation"]),
        ("What is 2*3, and what time is it?", ["calculation", "time"]),
        ("What is 2*3? And 4*5?", ["calculation", "calculation"]),
        ("What is 2*3? What time is it?", ["calculation", "time"]),
        ("My name is Ada. What is 2+2?", ["statement", "calculation"]),
        ("Hello!", ["greeting"]),
        ("Thanks!", ["greeting"]),
        ("What did I say earlier about my cat?", ["recall"]),
        ("What did I just say before?", ["recall"]),
        ("How do leases work?", ["knowledge"]),
        ("What does my README say about leases?", ["knowledge", "recall"]),
        ("Write 50 words about ships.", ["length"]),
        ("Give me a 200-word story", ["length"]),
        ("Say exactly: what is 2*3?", ["echo"]),
        ("", []),
        ("   \n ", []),
    ],
)
def test_kinds(text, expected):
    assert kinds(text) == expected


def test_according_to_belongs_to_what_follows():
    needs = find_needs("According to the docs, how long is a lease?")
    assert [need.clause for need in needs] == ["According to the docs, how long is a lease?"]
    assert needs[0].terms == {"leas", "long"}


def test_three_needs_in_one_sentence():
    text = "What does the README say about leases, what is 17*23, and what is my project's code name?"
    assert kinds(text) == ["knowledge", "calculation", "recall"]


def test_a_need_is_listed_once():
    assert kinds("What is 2*3? What is 2*3?") == ["calculation"]


def test_a_huge_paste_is_read_at_its_end_and_in_time():
    needs = find_needs("My dog is brown. " * 100_000 + "What is 2*3?")
    assert Kind.STATEMENT in {need.kind for need in needs}
    assert len(needs) < 50
