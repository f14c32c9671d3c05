"""What is stored of a result is what is told again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.testing import ROOT
from services.tool_executor.failures import KINDS, ToolFailure, Violation
from services.tool_executor.outcomes import CallResult, Citation, Failure, Outcome

texts = st.text(max_size=20)
violations = st.lists(
    st.builds(Violation, path=texts, keyword=texts, expected=st.one_of(st.none(), texts, st.lists(texts, max_size=2))), max_size=3
)
failures = st.builds(
    Failure,
    code=st.sampled_from(sorted(KINDS)),
    agent_message=texts,
    developer_message=texts,
    retryable=st.booleans(),
    retry_after_s=st.one_of(st.none(), st.integers(0, 100).map(float)),
    violations=violations,
)
citations = st.lists(
    st.builds(Citation, texts, texts, st.integers(0, 9), texts, st.integers(0, 99), st.integers(0, 99), texts, texts), max_size=2
)
results = st.builds(
    CallResult,
    outcome=st.sampled_from(Outcome),
    output=st.binary(max_size=20),
    error=st.one_of(st.none(), failures),
    version=texts,
    attempts=st.integers(0, 3),
    replayed=st.just(True),
    duration_s=st.integers(0, 10**6).map(lambda n: n / 10**6),
    citations=citations,
)


@settings(deadline=None)
@given(results)
def test_a_stored_result_comes_back_as_it_was(result):
    assert CallResult.from_meta(result.meta(), result.output) == result


def test_what_a_later_version_adds_is_ignored():
    meta = CallResult(Outcome.FAILED, error=Failure.of(ToolFailure("internal", "x"))).meta()
    newer = meta[:-1] + b',"mood":"good"}'
    newer = newer.replace(b'"agent_message"', b'"colour":"red","agent_message"')
    assert CallResult.from_meta(newer, b"").error.agent_message == "x"


def test_only_what_may_have_happened_without_notice_is_uncertain():
    uncertain = {code for code, kind in KINDS.items() if not kind.certain}
    assert uncertain == {
        "upstream.server", "transport.timeout", "transport.broken", "transport.cancelled", "transport.lost",
        "output.invalid", "output.too_large", "internal",
    }  # fmt: skip
    assert {code for code, kind in KINDS.items() if kind.retried} == {
        "upstream.server", "transport.timeout", "transport.unreachable", "transport.broken",
    }  # fmt: skip


def test_the_documentation_names_every_code():
    text = (ROOT / "docs/tools.md").read_text()
    assert not [code for code in KINDS if f"`{code}`" not in text]
