"""The registry: every offered version of every tool, made of tools.yaml and the built-ins; replaced whole on reload."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from services.common.config import ConfigProblem
from services.common.errors import NotFound
from services.common.identity import Principal
from services.tool_executor.configuration import AnnotationsConfig, DefaultsConfig, HttpConfig, ToolConfig, ToolsFile
from services.tool_executor.schemas import BadSchema, Schema
from services.tool_executor.tools import Annotations, BuiltIn, Limits, Retry, Run, Tool

EXECUTE_SCOPE = "tools:execute"
MakeHttpRun = Callable[[HttpConfig], Run]


class Registry:
    """Tools by name and version."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._versions: dict[str, list[Tool]] = {}
        for tool in sorted(tools, key=lambda t: (t.name, _order(t.version)), reverse=True):
            self._versions.setdefault(tool.name, []).append(tool)

    def resolve(self, name: str, version: str = "") -> Tool:
        """The tool, the newest version without one given. Raises NotFound."""
        versions = self._versions.get(name)
        if not versions:
            raise NotFound(f"no tool is called {name[:64]!r}", reason="TOOL_NOT_FOUND", metadata={"tool": name[:64]})
        if not version:
            return versions[0]
        for tool in versions:
            if tool.version == version:
                return tool
        raise NotFound(
            f"the tool {name} has no version {version[:32]!r}",
            reason="TOOL_VERSION_NOT_FOUND",
            metadata={"tool": name, "versions": ", ".join(t.version for t in versions)},
        )

    def usable(self, principal: Principal, names: Sequence[str] = (), *, all_versions: bool = False) -> list[Tool]:
        """What `principal` may use, sorted by name, newest version first."""
        wanted = sorted(self._versions if not names else set(names) & self._versions.keys())
        return [
            tool
            for name in wanted
            for tool in self._versions[name][: None if all_versions else 1]
            if not principal.missing([EXECUTE_SCOPE, *tool.scopes])
        ]

    def stand_in(self, tool: Tool, principal: Principal) -> Tool | None:
        """The fallback of a tool, where it has one that `principal` may use."""
        if not tool.fallback:
            return None
        other = self.resolve(*tool.fallback.partition("@")[::2])
        return None if principal.missing([EXECUTE_SCOPE, *other.scopes]) else other

    def __len__(self) -> int:
        return sum(len(versions) for versions in self._versions.values())


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def parse_tools(content: Any, declared: Sequence[BuiltIn], http_run: MakeHttpRun) -> Registry:
    """The registry that the content of tools.yaml describes. Raises ConfigProblem or ValidationError with all that is wrong."""
    file = ToolsFile.model_validate({} if content is None else content)
    known: dict[str, dict[str, BuiltIn]] = {}
    for built_in in declared:
        known.setdefault(built_in.name, {})[built_in.version] = built_in
    problems: list[str] = []
    tools: dict[tuple[str, str], Tool] = {}
    for index, config in enumerate(file.tools):
        place = f"tools.yaml: tools.{index} ({config.name})"
        try:
            tool = _tool(config, file.defaults, known, http_run)
        except ConfigProblem as error:
            problems += [f"{place}: {line}" for line in error.problems]
            continue
        if (tool.name, tool.version) in tools:
            problems.append(f"{place}: version {tool.version} stands twice")
        elif config.enabled:
            tools[tool.name, tool.version] = tool
    registry = Registry(tools.values())
    problems += [f"tools.yaml: {tool.name}@{tool.version}: {problem}" for tool in tools.values() for problem in _stand_ins(tool, registry)]
    if problems:
        raise ConfigProblem(problems)
    return registry


def _stand_ins(tool: Tool, registry: Registry) -> list[str]:
    found = []
    if tool.stale_s and not tool.annotations.read_only:
        found.append("stale_s: only a tool that is read_only may answer with an old result")
    if tool.fallback:
        try:
            other = registry.resolve(*tool.fallback.partition("@")[::2])
        except NotFound as error:
            return [*found, f"fallback: {error.message}"]
        if (other.name, other.version) == (tool.name, tool.version):
            found.append("fallback: a tool cannot stand in for itself")
        elif not other.repeatable or other.approval:
            found.append(f"fallback: {other.name} must be read_only or idempotent, and need no approval, to stand in for another")
    return found


def _tool(config: ToolConfig, defaults: DefaultsConfig, known: Mapping[str, Mapping[str, BuiltIn]], http_run: MakeHttpRun) -> Tool:
    problems: list[str] = []
    options: Any = None
    if config.http is not None:
        # ToolConfig has made sure of these.
        assert config.version is not None
        assert config.description is not None
        assert config.input_schema is not None
        base = Annotations()
        source = (config.version, config.description, config.input_schema, config.output_schema, http_run(config.http), ())
    else:
        built_in = _chosen(config, known)
        base = built_in.annotations
        source = (
            built_in.version,
            config.description or built_in.description,
            built_in.input_schema,
            built_in.output_schema,
            built_in.run,
            built_in.scopes,
        )
        try:
            options = _options(config, built_in)
        except ConfigProblem as error:
            problems += error.problems
    version, description, input_definition, output_definition, run, declared_scopes = source
    input_schema = _schema("input_schema", input_definition, problems)
    output_schema = _schema("output_schema", output_definition, problems) if output_definition is not None else None
    if input_definition.get("type", "object") != "object":
        problems.append("input_schema: arguments are an object, so its type must be object")
    if problems:
        raise ConfigProblem(problems)
    assert input_schema is not None
    annotations = _annotations(base, config.annotations)
    return Tool(
        name=config.name,
        version=version,
        description=description,
        input_schema=input_schema,
        output_schema=output_schema,
        annotations=annotations,
        scopes=tuple(dict.fromkeys((*declared_scopes, *config.scopes))),
        limits=_limits(config, defaults),
        run=run,
        options=options,
        approval=_approval(config, annotations),
        fallback=config.fallback or "",
        stale_s=config.stale_s,
    )


def _approval(config: ToolConfig, annotations: Annotations) -> str:
    """As Tool.approval: by default, what destroys and reaches beyond this installation needs one."""
    if config.approval == "by_annotations":
        return "waivable" if annotations.destructive and annotations.open_world else ""
    return "required" if config.approval == "always" else ""


def _chosen(config: ToolConfig, known: Mapping[str, Mapping[str, BuiltIn]]) -> BuiltIn:
    versions = known.get(config.name)
    if not versions:
        raise ConfigProblem([f"no built-in tool has this name (there are {', '.join(sorted(known))}), and it has no http: section"])
    version = config.version or max(versions, key=_order)
    if version not in versions:
        raise ConfigProblem([f"the built-in has no version {version}, only {', '.join(sorted(versions, key=_order))}"])
    return versions[version]


def _options(config: ToolConfig, built_in: BuiltIn) -> Any:
    if built_in.options is None:
        if config.options:
            raise ConfigProblem(["this tool has no options"])
        return None
    try:
        return built_in.options.model_validate(config.options)
    except ValidationError as error:
        lines = [f"options.{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ConfigProblem(lines) from error


def _schema(name: str, definition: Mapping[str, Any], problems: list[str]) -> Schema | None:
    try:
        return Schema(definition)
    except BadSchema as error:
        problems.append(f"{name}: {error}")
        return None


def _annotations(base: Annotations, config: AnnotationsConfig) -> Annotations:
    given = {name: value for name, value in config.model_dump().items() if value is not None}
    read_only = given.get("read_only", base.read_only)
    return Annotations(
        read_only=read_only,
        # What changes nothing destroys nothing and may be repeated.
        destructive=given.get("destructive", base.destructive) and not read_only,
        idempotent=given.get("idempotent", base.idempotent) or read_only,
        open_world=given.get("open_world", base.open_world),
    )


def _limits(config: ToolConfig, defaults: DefaultsConfig) -> Limits:
    retry = config.retry or defaults.retry
    return Limits(
        timeout_s=config.timeout_s or defaults.timeout_s,
        max_output_bytes=config.max_output_bytes or defaults.max_output_bytes,
        concurrent_calls=config.concurrent_calls or defaults.concurrent_calls,
        retry=Retry(retry.times, (min(retry.backoff_s), max(retry.backoff_s))),
    )
