"""What an error says of itself stands beside the members of its problem, and never in their place."""

import ast

from opentelemetry import trace

from services.common.errors import InvalidInput
from services.common.testing import ROOT
from services.gateway.edge.exchange import Exchange
from services.gateway.edge.problems import problem


def members() -> set[str]:
    error = InvalidInput.field("a", "b")
    error.retry_after_s = 1.0
    return set(problem(error, Exchange("r", "t", trace.INVALID_SPAN, {}), "/"))


def _is_metadata(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in ("metadata", "about") for t in node.targets)


def told(tree: ast.AST):
    """Names in the metadata of errors, as far as they are written down as such."""
    for node in ast.walk(tree):
        named = node.arg == "metadata" if isinstance(node, ast.keyword) else _is_metadata(node)
        found = node.value if named else None
        if isinstance(found, ast.Dict):
            yield from ((key.value, key.lineno) for key in found.keys if isinstance(key, ast.Constant))


def test_no_error_of_any_service_names_something_as_a_member_of_its_problem_is_named():
    own = members() - {"request_id", "trace_id"}
    assert {"reason", "status", "detail", "errors", "retry_after_ms"} <= own
    files = [path for path in sorted((ROOT / "services").rglob("*.py")) if "testing" not in path.parts]
    found = [(name, path) for path in files for name, _ in told(ast.parse(path.read_text()))]
    assert {"run_status", "decided_reason", "policy"} <= {name for name, _ in found}
    assert [(name, path.name) for name, path in found if name in own] == []
