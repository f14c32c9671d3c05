"""One watched YAML file. A valid change takes effect; an invalid one is refused whole and the last good content stays."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson
import structlog
import yaml
from opentelemetry.metrics import get_meter
from pydantic import ValidationError

from services.common.settings import StartRefused

# A ConfigMap changes by swapping a symlink, which file notifications report in many ways; looking at the content does not care.
LOOK_EVERY_S = 1.0
T = TypeVar("T")
log = structlog.get_logger("bulkhead.config")
_reloads = get_meter("bulkhead.config").create_counter(
    "bulkhead_config_reloads_total", description="Reloads of product configuration by outcome."
)


class ConfigProblem(Exception):
    """A file that cannot be used; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML would quietly keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> tuple[Any, str]:
    """The content of a YAML file and its digest. Raises ConfigProblem."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigProblem([f"{path.name}: {error.strerror or 'cannot be read'} ({path})"]) from error
    try:
        if path.suffix == ".json":
            # YAML reads JSON too, at a hundredth of the speed: price tables have tens of thousands of lines.
            return orjson.loads(raw), hashlib.sha256(raw).hexdigest()
        return yaml.load(raw, Loader=_UniqueKeyLoader), hashlib.sha256(raw).hexdigest()  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, text that is no UTF-8, nesting without end
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigProblem(
            [f"{path.name}{where}: {getattr(error, 'problem', None) or f'is not valid {path.suffix[1:].upper()}'}"]
        ) from error


class ConfigFile(Generic[T]):
    """The parsed content of one file. `parse` raises ConfigProblem or pydantic.ValidationError with all that is wrong.

    `beside` are files that need not exist and belong to it: a change of one is a change of the whole, and `parse` gets each that
    is there as (name, content) after the content of the file itself. With `absent` the file itself need not exist at the start:
    that makes the content until it does. A file that was there and is gone is refused like any other that cannot be used.
    """

    def __init__(self, path: Path, parse: Callable[..., T], beside: Sequence[Path] = (), *, absent: Callable[[], T] | None = None) -> None:
        self._path = path
        self._parse = parse
        self._beside = tuple(beside)
        self._listeners: list[Callable[[T], None]] = []
        self.problem: list[str] = []
        self._refused = ""
        if absent is not None and not path.exists():
            self.current, self._digest = absent(), self._seen()
            return
        try:
            self.current, self._digest = self._read()
        except ConfigProblem as error:
            raise StartRefused(error.problems) from error

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    def on_change(self, listener: Callable[[T], None]) -> None:
        """Calls `listener` with each new valid content."""
        self._listeners.append(listener)

    def _read(self) -> tuple[T, str]:
        content, digest = read_yaml(self._path)
        others = []
        for path in self._beside:
            if path.exists():
                more, its_digest = read_yaml(path)
                others.append((path.name, more))
                digest += its_digest
            else:
                digest += "absent"
        try:
            return self._parse(content, *others), digest
        except ValidationError as error:
            lines = [f"{self._path.name}: {'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
            raise ConfigProblem(lines) from error
        except ConfigProblem:
            raise
        except Exception as error:
            # A defect in a parser must not end the watch: no later change would ever be seen.
            log.exception("config_parser_failed", file=self._path.name)
            raise ConfigProblem([f"{self._path.name}: cannot be understood ({type(error).__name__})"]) from error

    def _seen(self) -> str:
        """The digest of what is there now."""
        digest = ""
        for path in (self._path, *self._beside):
            try:
                digest += hashlib.sha256(path.read_bytes()).hexdigest()
            except FileNotFoundError:
                digest += "missing" if path is self._path else "absent"
            except OSError:
                digest += "missing"
        return digest

    def reload(self) -> bool:
        """Looks at the file once; True when a new content took effect. A bad file is logged, counted and refused."""
        digest = self._seen()
        if digest in (self._digest, self._refused):
            if digest == self._digest:
                self.problem = []
                self._refused = ""
            return False
        try:
            content, self._digest = self._read()
        except ConfigProblem as error:
            self._refused, self.problem = digest, error.problems
            log.error("config_refused", file=self._path.name, problems=error.problems)
            _reloads.add(1, {"file": self._path.name, "outcome": "refused"})
            return False
        self.current, self.problem, self._refused = content, [], ""
        log.info("config_reloaded", file=self._path.name)
        _reloads.add(1, {"file": self._path.name, "outcome": "accepted"})
        for listener in self._listeners:
            try:
                listener(content)
            except Exception:
                # The next listener and the next change must not suffer from it.
                log.exception("config_listener_failed", file=self._path.name)
        return True

    async def watch(self) -> None:
        """Reloads on change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.reload()
