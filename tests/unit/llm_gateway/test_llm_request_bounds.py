"""What one request may hold of messages and parts: each is looked at while nobody else is served."""

import pytest

from services.common.errors import InvalidInput
from services.llm_gateway.request_rules import MAX_MESSAGES, MAX_PARTS, check_request

PART = {"type": "text", "text": "x"}


def body(messages, parts):
    return {"messages": [{"role": "user", "content": "x"}] * (messages - 1) + [{"role": "user", "content": [PART] * parts}]}


@pytest.mark.parametrize(
    ("messages", "parts", "field"),
    [(MAX_MESSAGES + 1, 1, "messages"), (2, MAX_PARTS + 1, "messages[1].content"), (MAX_MESSAGES, MAX_PARTS, None)],
)
def test_more_messages_or_parts_are_refused_by_name(messages, parts, field):
    if field is None:
        check_request(body(messages, parts))
        return
    with pytest.raises(InvalidInput) as refused:
        check_request(body(messages, parts))
    assert [violation.field for violation in refused.value.violations] == [field]
