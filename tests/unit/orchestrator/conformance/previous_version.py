"""The store of the version before, on the same Valkey as the present one."""

import dataclasses
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from services.orchestrator import records
from services.orchestrator.testing.stores import ValkeyBackend, set_clock, with_clock

FOLDER = Path(__file__).with_name("previous")
PACKAGE = "bulkhead_previous"
RENAMED = {"services.orchestrator.adapters.decode": f"{PACKAGE}.decode", "services.orchestrator.records": f"{PACKAGE}.records"}


@contextmanager
def previous_store() -> Iterator[type]:
    """The class Store of the version before, its clock under the test's rule."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-previous-") as temporary:
        folder = Path(shutil.copytree(FOLDER, Path(temporary) / "previous"))
        (folder / "orchestrator.lua").write_text(with_clock((folder / "orchestrator.lua").read_text()))
        names = ["records", "decode", "store"]
        try:
            for name in names:
                text = (folder / f"{name}.py.txt").read_text()
                for module, replaced in RENAMED.items():
                    text = text.replace(f"from {module} import", f"from {replaced} import")
                made = sys.modules[f"{PACKAGE}.{name}"] = types.ModuleType(f"{PACKAGE}.{name}")
                made.__file__ = str(folder / f"{name}.py")
                exec(compile(text, made.__file__, "exec"), made.__dict__)  # the text is ours, and has been run as this project
            yield made.Store
        finally:
            for name in names:
                sys.modules.pop(f"{PACKAGE}.{name}", None)


def current(found):
    """What the version before answered, as records of the present one."""
    if type(found) in (list, tuple):
        return type(found)(map(current, found))
    if type(found).__module__ != f"{PACKAGE}.records":
        return found
    kind = getattr(records, type(found).__name__)
    if dataclasses.is_dataclass(found):
        # What this version keeps no more does not matter to it.
        kept = {f.name for f in dataclasses.fields(kind)}
        return kind(**{f.name: current(getattr(found, f.name)) for f in dataclasses.fields(found) if f.name in kept})
    return kind(*found)


class Mixed:
    """A process that is of either version at each call, as `versions` says (True: the present one)."""

    def __init__(self, present, previous, versions: Iterator[bool]) -> None:
        self.present, self.previous, self._versions = present, previous, versions

    def __getattr__(self, name):
        async def call(*args, **options):
            # What the version before has no word for, it never does.
            unknown = not hasattr(self.previous, name) or options.get("mode") == "p"
            if next(self._versions) or unknown or await self._parked(name, args):
                return await getattr(self.present, name)(*args, **options)
            previous = sys.modules[f"{PACKAGE}.records"]
            # The version before takes whatever run it finds.
            options.pop("suspect", None)
            args = [
                previous.RunSpec.from_dict(orjson.loads(orjson.dumps(a.as_dict()))) if isinstance(a, records.RunSpec) else a for a in args
            ]
            try:
                return current(await getattr(self.previous, name)(*args, **options))
            except previous.Fenced as error:
                raise records.Fenced(str(error)) from None

        return call

    async def _parked(self, name, args) -> bool:
        """Whether the run is parked, which the version before has no word for: its sweeper leaves alone what has a newer schema, so it
        never claims one, and what its look at one would answer tells nobody anything."""
        return name in ("claim", "inspect") and (await self.present.inspect(args[0]))[0] == "parked"


class MixedBackend(ValkeyBackend):
    """A backend whose processes are rolled forwards and back all the time."""

    def __init__(self, client, lua: Path, previous: type, versions: Iterator[bool]) -> None:
        super().__init__(client, lua)
        self._previous, self._versions = previous, versions

    def process(self, instance: str, replicas: int = 0) -> Mixed:
        """As Backend.process."""
        return Mixed(super().process(instance, replicas), self._previous(self.client, instance, replicas), self._versions)

    async def advance(self, seconds: float) -> None:
        """As Backend.advance, for the clocks of both versions."""
        await set_clock(self._previous(self.client, "clock")._library, self.clock)
        present = ValkeyBackend(self.client, self._lua)
        present.clock = self.clock
        await present.advance(seconds)
        await set_clock(self._previous(self.client, "clock")._library, self.clock)
