"""Routes of the model port: which handler serves a path, who may use it, and in which form it answers errors."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.llm_gateway.model_port.errors import OPENAI, ErrorForm
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.request_rules import SCOPE

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. Segments in braces are parameters and stand in `exchange.parameters`; `{name:path}` at the end takes
    the rest with its slashes. A handler raises domain errors while no byte has gone out.

    `scope` is what the caller's key must hold, None for any valid key. `errors` is the form of its error bodies.
    """

    method: str
    path: str
    handle: Handler
    scope: str | None = SCOPE
    errors: ErrorForm = OPENAI


class Surface(Protocol):
    """A group of routes."""

    def routes(self) -> Sequence[Route]:
        """All of them."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """What a path leads to. `methods` are all that the path takes; `route` is None for another method, or for no path of ours."""

    route: Route | None
    methods: tuple[str, ...]
    parameters: Mapping[str, str]
    name: str
    errors: ErrorForm


class Routes:
    """Finds routes. Fixed paths are one look-up: one of them is the hot path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[tuple[str, str], Match] = {}
        self._by_path: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[tuple[str, ...], dict[str, Route]]] = []
        for route in routes:
            self._by_path.setdefault(route.path, {})[route.method] = route
        for path, methods in self._by_path.items():
            if "{" in path:
                self._patterns.append((tuple(path.strip("/").split("/")), methods))
                continue
            for method, route in methods.items():
                self._fixed[(method, path)] = Match(route, tuple(methods), {}, path, route.errors)
        # The more literal a pattern, the earlier it is tried.
        self._patterns.sort(key=lambda entry: [segment.startswith("{") for segment in entry[0]])

    def find(self, method: str, path: str) -> Match:
        """What serves this method of this path."""
        found = self._fixed.get((method, path))
        if found is not None:
            return found
        if len(path) > 1 and path.endswith("/"):
            path = path.rstrip("/")
            found = self._fixed.get((method, path))
            if found is not None:
                return found
        methods = self._by_path.get(path) if "{" not in path else None
        parameters: Mapping[str, str] = {}
        if methods is None:
            methods, parameters = self._matched(path)
        if methods is None:
            return Match(None, (), {}, "unknown", OPENAI)
        any_route = next(iter(methods.values()))
        return Match(methods.get(method), tuple(methods), parameters, any_route.path, any_route.errors)

    def _matched(self, path: str) -> tuple[dict[str, Route] | None, Mapping[str, str]]:
        segments = path.strip("/").split("/")
        for pattern, methods in self._patterns:
            rest = pattern[-1].endswith(":path}")
            if len(segments) < len(pattern) or (len(segments) > len(pattern) and not rest):
                continue
            parameters: dict[str, str] = {}
            for number, wanted in enumerate(pattern):
                value = "/".join(segments[number:]) if rest and number == len(pattern) - 1 else segments[number]
                if wanted.startswith("{"):
                    parameters[wanted.strip("{}").removesuffix(":path")] = value
                elif wanted != value:
                    break
            else:
                if all(parameters.values()):
                    return methods, parameters
        return None, {}
