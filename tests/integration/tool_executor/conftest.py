"""Fixtures of the tool executor's tests."""

import pytest

from tests.integration.tool_executor.harness import outside_server


@pytest.fixture
async def outside():
    """A server outside that counts what reaches it."""
    async with outside_server() as made:
        yield made
