"""tools.yaml: what it offers, and how everything that is wrong with it is told at once."""

import hashlib

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.config import ConfigFile
from services.common.errors import NotFound
from services.common.settings import StartRefused
from services.common.testing import ROOT, principal_of
from services.tool_executor.builtin.calculator import calculator
from services.tool_executor.builtin.current_time import Clock
from services.tool_executor.builtin.http_fetch import HttpFetch
from services.tool_executor.builtin.python import Python
from services.tool_executor.builtin.search_documents import SearchDocuments
from services.tool_executor.registry import Registry, parse_tools
from services.tool_executor.tools import Annotations, built_ins, tool

TICKET = {
    "name": "ticket",
    "version": "1.0.0",
    "description": "Opens a ticket.",
    "input_schema": {"type": "object", "properties": {"title": {"type": "string"}}},
    "http": {"url": "http://127.0.0.1:1/tickets"},
}


@tool(version="1.0.0", read_only=True)
async def greet(name: str) -> str:
    """Greets.

    Args:
        name: Whom,
            politely.
    """
    return f"hello {name}"


def newer(version):
    @tool(version=version, read_only=True, scopes=["greet"])
    async def greet(name: str, loud: bool = False) -> str:
        """Greets better."""
        return name

    return greet


DECLARED = built_ins([calculator, Clock(), HttpFetch(None), Python(None), SearchDocuments(None), greet, newer("1.10.0"), newer("1.9.0")])


def parsed(content) -> Registry:
    return parse_tools(content, DECLARED, lambda config: config)


def refused(tmp_path, text):
    (tmp_path / "tools.yaml").write_text(text)
    with pytest.raises(StartRefused) as caught:
        ConfigFile(tmp_path / "tools.yaml", parsed)
    return caught.value.problems


def test_versions_live_side_by_side_and_the_newest_is_meant_without_one():
    versions = [{"name": "greet", "version": v} for v in ("1.9.0", "1.10.0", "1.0.0")]
    registry = parsed({"tools": versions})
    assert registry.resolve("greet").version == "1.10.0"
    assert registry.resolve("greet", "1.9.0").version == "1.9.0"
    found = registry.usable(principal_of(), all_versions=True)
    assert [t.version for t in found] == ["1.10.0", "1.9.0", "1.0.0"]
    with pytest.raises(NotFound) as caught:
        registry.resolve("greet", "2.0.0")
    assert caught.value.metadata["versions"] == "1.10.0, 1.9.0, 1.0.0"
    assert parsed({"tools": [{"name": "greet"}]}).resolve("greet").version == "1.10.0"


def test_only_what_the_callers_scopes_allow_is_usable():
    registry = parsed({"tools": [{"name": "greet"}, {"name": "calculator", "scopes": ["math"]}, {"name": "current_time"}]})

    def names(*scopes):
        return [t.name for t in registry.usable(principal_of(scopes=scopes))]

    assert names("*") == ["calculator", "current_time", "greet"]
    assert names("tools:execute") == ["current_time"]
    assert names("tools:execute", "greet") == ["current_time", "greet"]
    assert names("greet", "math") == []


def test_what_is_not_declared_is_read_pessimistically():
    found = parsed({"tools": [TICKET]}).resolve("ticket")
    assert found.annotations == Annotations(read_only=False, destructive=True, idempotent=False, open_world=True)
    assert not found.repeatable
    assert found.limits.timeout_s == 30
    assert found.limits.max_output_bytes == 256 * 1024
    assert (found.limits.retry.times, found.limits.retry.backoff_s) == (2, (2.0, 5.0))


def test_a_tool_that_changes_nothing_destroys_nothing_and_may_be_repeated():
    found = parsed({"tools": [{**TICKET, "annotations": {"read_only": True}}]}).resolve("ticket")
    assert found.annotations == Annotations(read_only=True, destructive=False, idempotent=True, open_world=True)
    assert found.repeatable


def test_limits_come_from_the_tool_then_from_the_defaults():
    defaults = {"timeout_s": 7, "concurrent_calls": 3, "retry": {"times": 1, "backoff_s": [0, 1]}}
    registry = parsed({"defaults": defaults, "tools": [{"name": "greet"}, {"name": "calculator", "timeout_s": 2, "retry": {"times": 0}}]})
    assert (registry.resolve("greet").limits.timeout_s, registry.resolve("greet").limits.retry.times) == (7, 1)
    assert registry.resolve("greet").limits.concurrent_calls == 3
    assert (registry.resolve("calculator").limits.timeout_s, registry.resolve("calculator").limits.retry.times) == (2, 0)


def test_the_digest_is_that_of_the_definition_and_of_nothing_else():
    one = parsed({"tools": [TICKET]}).resolve("ticket")
    assert one.digest == parsed({"tools": [{**TICKET, "timeout_s": 3}]}).resolve("ticket").digest
    for change in ({"description": "Opens."}, {"version": "1.0.1"}, {"scopes": ["x"]}, {"annotations": {"idempotent": True}}):
        assert one.digest != parsed({"tools": [{**TICKET, **change}]}).resolve("ticket").digest
    definition = {
        "annotations": [False, True, False, True],
        "description": "Opens a ticket.",
        "input_schema": {"properties": {"title": {"type": "string"}}, "type": "object"},
        "name": "ticket",
        "output_schema": None,
        "scopes": [],
        "version": "1.0.0",
    }
    assert one.digest == hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()


def test_every_problem_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    problems = refused(
        tmp_path,
        """
tools:
  - {name: calculator}
  - {name: calculator, version: "1.0.0"}
  - {name: calculator, version: "9.0.0"}
  - {name: abacus}
  - {name: python, options: {max_seconds: fast, colour: red}}
  - {name: greet, options: {a: 1}}
  - name: ticket
    version: "1.0.0"
    description: Opens a ticket.
    input_schema: {type: nonsense}
    output_schema: {pattern: "("}
    http: {url: "http://127.0.0.1/"}
  - name: list
    version: "1.0.0"
    description: Takes a list.
    input_schema: {type: array}
    http: {url: "http://127.0.0.1/"}
""",
    )
    told = "\n".join(problems)
    for part in (
        "tools.1 (calculator): version 1.0.0 stands twice",
        "tools.2 (calculator): the built-in has no version 9.0.0, only 1.0.0",
        "tools.3 (abacus): no built-in tool has this name",
        "tools.4 (python): options.max_seconds",
        "tools.4 (python): options.colour",
        "tools.5 (greet): this tool has no options",
        "tools.6 (ticket): input_schema",
        "tools.6 (ticket): output_schema",
        "tools.7 (list): input_schema: arguments are an object",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{name: calculator, timeout_s: 121}", "less than or equal to 120"),
        ('{name: "two words"}', "should match pattern"),
        ('{name: calculator, version: "1"}', "should match pattern"),
        ("{name: calculator, timeout: 3}", "Extra inputs are not permitted"),
        ("{name: calculator, input_schema: {}}", "a built-in has its own"),
        ('{name: x, http: {url: "http://h/"}}', "needs version, description, input_schema"),
        ('{name: x, version: "1.0.0", description: d, input_schema: {}, http: {url: "ftp://h/"}}', "http:// or https://"),
        ('{name: x, version: "1.0.0", description: d, input_schema: {}, http: {url: os.environ/NO_SUCH}}', "NO_SUCH is not set"),
        ('{name: x, version: "1.0.0", description: d, input_schema: {}, http: {url: "http://h/", headers: {"a b": c}}}', "no header name"),
        ("{name: calculator, name: python}", "stands twice"),
        ("{name: calculator", "tools.yaml line"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path, monkeypatch, entry, says):
    monkeypatch.delenv("NO_SUCH", raising=False)
    problems = refused(tmp_path, f"tools:\n  - {entry}\n")
    assert any(says in p for p in problems), problems


def test_secrets_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("TICKET_TOKEN", "Bearer abc")
    entry = {**TICKET, "http": {**TICKET["http"], "headers": {"Authorization": "os.environ/TICKET_TOKEN"}}}
    assert parsed({"tools": [entry]}).resolve("ticket").run.headers == {"Authorization": "Bearer abc"}


def test_a_disabled_tool_is_checked_and_not_offered():
    registry = parsed({"tools": [{**TICKET, "enabled": False}, {"name": "greet"}]})
    assert len(registry) == 1
    with pytest.raises(NotFound):
        registry.resolve("ticket")


def test_a_bad_change_is_refused_and_the_good_one_stays(tmp_path):
    path = tmp_path / "tools.yaml"
    path.write_text("tools: [{name: greet}]")
    file = ConfigFile(path, parsed)
    path.write_text("tools: [{name: greet}, {name: greet}]")
    assert not file.reload()
    assert file.problem == ["tools.yaml: tools.1 (greet): version 1.10.0 stands twice"]
    assert len(file.current) == 1
    path.write_text("tools: [{name: greet}, {name: calculator}]")
    assert file.reload()
    assert len(file.current) == 2


def test_an_empty_file_offers_nothing():
    assert len(parsed(None)) == 0


def test_the_local_configuration_offers_what_the_agents_use():
    content = yaml.safe_load((ROOT / "k8s/environments/local/config/tools.yaml").read_text())
    registry = parsed(content)
    offered = {t.name for t in registry.usable(principal_of())}
    assert offered >= {"calculator", "current_time", "search_documents", "http_fetch", "python"}
    assert all(registry.resolve(name).repeatable for name in offered)


def test_schemas_come_from_type_hints_and_docstring():
    found = next(t for t in DECLARED if (t.name, t.version) == ("greet", "1.0.0"))
    assert found.description == "Greets."
    assert found.input_schema == {
        "type": "object",
        "properties": {"name": {"type": "string", "description": "Whom, politely."}},
        "required": ["name"],
        "additionalProperties": False,
    }
    assert found.output_schema == {"type": "string"}
    loud = next(t for t in DECLARED if t.version == "1.9.0")
    assert loud.input_schema["properties"]["loud"] == {"type": "boolean", "default": False}
    assert loud.input_schema["required"] == ["name"]
    search = next(t for t in DECLARED if t.name == "search_documents")
    assert set(search.input_schema["properties"]) == {"query", "limit"}
    assert all(p["description"] for p in search.input_schema["properties"].values())
    assert search.output_schema["properties"]["passages"]["type"] == "array"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6, unique=True))
def test_the_newest_is_the_largest_by_number_and_not_by_letter(versions):
    registry = parsed({"tools": [{**TICKET, "version": ".".join(map(str, v))} for v in versions]})
    assert registry.resolve("ticket").version == ".".join(map(str, max(versions)))
