"""Near-duplicates, filters, checks and settings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common import testing
from services.common.errors import InvalidInput
from services.memory import checks
from services.memory.adapters.keys import tag
from services.memory.adapters.milvus_filters import MEMORIES, render, stored_id, visible
from services.memory.memories import near_duplicate
from services.memory.ports import Among
from services.memory.settings import Settings


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The user likes green tea", "the user likes GREEN tea.", True),
        ("The PIN of the door is 1234", "The PIN of the door is 1235", False),
        ("The user does like green tea", "The user does not like green tea", False),
        ("The user likes green tea", "The user likes black coffee", False),
        ("我喜欢绿茶", "我喜欢绿茶。", True),
        ("!!!", "!!!", True),
        ("!!!", "???", False),
    ],
)
def test_near_duplicates_say_the_same_with_the_same_numbers_and_negations(one, other, same):
    assert near_duplicate(one, other) is same
    assert near_duplicate(other, one) is same


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_in_an_id_can_end_a_literal_of_a_filter(tenant, user):
    rendered = render(MEMORIES, tenant=tenant, subject=user, now=5)
    assert rendered == (f'tenant_id == "{stored_id(tenant)}" and subject_id == "{stored_id(user)}" and kind == "memory" and expires_at > 5')
    assert rendered.count('"') == 6
    assert not set(stored_id(tenant)) & set("\"\\\n'%*")


def test_different_ids_are_stored_differently():
    assert stored_id("acme") == "acme"
    assert stored_id('a"b') != stored_id("a'b")
    assert stored_id(stored_id('a"b')) != stored_id('a"b')
    assert tag("s", "a", "bc") != tag("s", "ab", "c")


def test_a_search_names_its_tenant_and_for_memories_its_subject():
    assert 'tenant_id == "acme"' in visible(Among("acme", documents=True))
    assert 'doc_id in ["a", "b"]' in visible(Among("acme", documents=True, document_ids=("a", "b")))
    memories = visible(Among("acme", "ana"))
    assert 'tenant_id == "acme"' in memories
    assert 'subject_id == "ana"' in memories


@pytest.mark.parametrize("token", ["x", "!!!!", "MTIz", "OmE=", "LTE6YQ==", "é"])
def test_a_page_token_of_another_make_is_refused(token):
    with pytest.raises(InvalidInput) as caught:
        checks.after(token)
    assert caught.value.violations[0].field == "page_token"


@given(st.integers(0, 10**15), st.text(min_size=1, max_size=30, alphabet="abc:-_.é"))
def test_page_tokens_round_trip(score, name):
    assert checks.after(checks.page_token((score, name))) == (score, name)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_importance_is_from_zero_to_one(value):
    with pytest.raises(InvalidInput):
        checks.share("importance", value, 0.5)


@pytest.mark.parametrize("value", ["", "a/b", "a*", "%", "a" * 129, "ä", "a\n"])
def test_document_ids_leave_no_room_for_wildcards(value):
    with pytest.raises(InvalidInput):
        checks.document_id("document_id", value)


def test_the_defaults_are_those_of_the_design():
    settings = Settings()
    assert (settings.grpc_port, settings.metrics_port, settings.embedding_model) == (50054, 9465, "embedding-default")
    assert (settings.window_turns, settings.session_ttl_s, settings.recall_top_k) == (5, 7 * 86_400, 3)


def test_every_problem_is_listed_and_a_whole_configuration_has_none(identities):
    problems = "\n".join(Settings(chunk_chars=200, milvus_uri="./local.db").problems())
    for name in (
        "STATE_URL",
        "MILVUS_URI",
        "IDENTITY_KEYS_FILE",
        "IDENTITY_SIGNING_KEY_FILE",
        "LLM_GATEWAY_ADDRESS",
        "CHUNK_OVERLAP_CHARS",
    ):
        assert f"BULKHEAD_{name}" in problems
    whole = Settings(
        state_url="redis://localhost:6379/0",
        milvus_uri="http://localhost:19530",
        llm_gateway_address="localhost:50052",
        **testing.Identities(identities.folder).settings("memory"),
    )
    assert whole.problems() == []
    with pytest.raises(ValidationError):
        Settings(window_turns=0)
