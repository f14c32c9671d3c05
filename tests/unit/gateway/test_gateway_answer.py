"""Text for clients that cannot take anything back."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.answer import MESSAGE_BREAK, AppendOnlyText

WORDS = st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), min_size=1, max_size=8)


def feed(text, seq, words, message="m"):
    sent = []
    for word in words:
        seq += 1
        sent.append(text.delta(seq, message, word))
    return "".join(sent), seq


@given(WORDS, st.integers(0, 8))
def test_a_second_attempt_that_says_the_same_adds_only_what_was_missing(words, done):
    text = AppendOnlyText()
    first, seq = feed(text, 0, words[:done], "m1")
    text.superseded(1)
    again, _ = feed(text, seq + 1, ["".join(words)], "m2")
    assert first + again == "".join(words) == text.sent


@given(WORDS, WORDS)
def test_what_was_sent_is_never_changed_and_the_last_text_stands_at_the_end(first, second):
    text = AppendOnlyText()
    sent, seq = feed(text, 0, first, "m1")
    text.superseded(1)
    more, _ = feed(text, seq + 1, second, "m2")
    whole = sent + more
    assert whole == text.sent
    expected = "".join(second)
    assert whole.endswith(expected) or (sent.startswith(expected) and not more)


@given(WORDS, st.data())
def test_only_what_came_after_the_number_is_forgotten(words, data):
    text = AppendOnlyText()
    kept = data.draw(st.integers(0, len(words)))
    feed(text, 0, words, "m1")
    text.superseded(kept + 1)
    feed(text, len(words), words[kept:], "m1")
    assert text.sent == "".join(words)


def test_messages_of_one_run_are_kept_apart():
    text = AppendOnlyText()
    assert text.delta(1, "m1", "Let me see.") == "Let me see."
    assert text.delta(2, "m2", "It is 4.") == f"{MESSAGE_BREAK}It is 4."


def test_a_whole_message_adds_only_what_its_deltas_did_not_bring():
    text = AppendOnlyText()
    text.delta(1, "m1", "It is ")
    assert text.completed(2, "m1", "It is 4.") == "4."
    assert text.completed(3, "m1", "It is 4.") == ""
    assert text.completed(4, "m2", "And done.") == f"{MESSAGE_BREAK}And done."
