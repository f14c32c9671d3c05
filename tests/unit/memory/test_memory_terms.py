"""Keyword terms: the same ASCII words for the index and for queries, in every script."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.memory.terms import MAX_TERMS_BYTES, index_terms, query_terms, segment


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("灯塔的记录保存在数据库里。", "数据库"),
        ("系统使用分布式数据库", "数据"),
        ("東京タワーに登る", "タワー"),
        ("서울에서 만나요", "서울"),
        ("Die Größe der Straße", "STRASSE"),
        ("Ｆｕｌｌｗｉｄｔｈ text", "fullwidth"),
        ("call IngestDocument twice", "ingest document"),
        ("set BULKHEAD_GRPC_PORT=50054", "grpc port 50054"),
        ("สวัสดีครับ", "สวัสดี"),
    ],
)
def test_a_query_shares_terms_with_the_text_that_holds_it(text, query):
    assert set(query_terms(query).split()) & set(index_terms(text).split())


def test_stop_words_leave_a_query_only_when_something_is_left():
    assert query_terms("What is the lantern for?") == "lantern"
    assert query_terms("to be or not to be") == "not"
    assert query_terms("what is it") == "what is it"
    assert "the" in index_terms("the lantern").split()


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_terms_are_ascii_words_that_any_analyzer_splits_at_spaces_only(text):
    terms = index_terms(text)
    assert re.fullmatch(r"([0-9a-z]+( [0-9a-z]+)*)?", terms)
    assert len(terms.encode()) <= MAX_TERMS_BYTES
    assert set(query_terms(text).split()) <= set(terms.split())


def test_a_huge_text_stays_below_the_store_s_bound():
    assert 60_000 < len(index_terms("数据库系统 abcdef " * 20_000)) <= MAX_TERMS_BYTES


def test_words_are_cut_at_underscores_and_case():
    assert list(segment("snake_case HTTPServer x-canary")) == ["snake", "case", "httpserver", "http", "server", "x", "canary"]
