"""The orchestrator as the next version of it might be: `python -m tests.system.next_version`, in place of `services.orchestrator`.

It is the same program but for what a version may change of what is kept. It reads one schema more, and writes that schema for runs that
have been parked; its checkpoints of those hold what this version would lose. All else that it writes is what this version is said to read:
further fields of a run's record, its specification and its state, events of a later schema and of a type that nobody knows yet. Its
segments have a format of their own. Its Lua functions differ, and stand beside those of this version, as they do in an upgrade.
"""

import re
import shutil
import sys
import tempfile
import types
from pathlib import Path

NEWS, KEPT = "of_next", "kept"
EVENT = "news_of_next"
ORCHESTRATOR = Path(__file__).parents[2] / "services/orchestrator"


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text of a part, with changes (pattern, replacement) to places that must be there once."""
    for old, new in changes:
        text, count = re.subn(old, new, text, flags=re.MULTILINE)
        assert count == 1, f"{old!r} is there {count} times"
    return text


def change_records() -> None:
    """Records that name the schemas of the next version, before anybody else reads them."""
    import services.orchestrator

    name, path = "services.orchestrator.records", ORCHESTRATOR / "records.py"
    text = changed(path.read_text(), (r"^(SCHEMA_VERSION = .+)$", r"\1 + 1"), (r"^(EVENT_SCHEMA = .+)$", r"\1 + 1"))
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = str(path)
    services.orchestrator.records = module
    exec(compile(text, str(path), "exec"), module.__dict__)  # the text is ours


def change_functions(folder: Path) -> None:
    """Functions of the store that write more than this version does."""
    from services.orchestrator.adapters import store_base
    from services.orchestrator.records import EVENT_SCHEMA, SCHEMA_VERSION

    shutil.copytree(store_base.LUA, folder, dirs_exist_ok=True)
    for name, changes in {
        "run": [(r"^local PARKED_SCHEMA = .+$", f"local PARKED_SCHEMA = '{SCHEMA_VERSION}'")],
        "thread": [
            ("'t', trace, 'v', SCHEMA,", f"'t', trace, 'v', '{EVENT_SCHEMA}',"),
            (r"'schema_version', SCHEMA, 'run', args\[4\]", rf"'{NEWS}', '{KEPT}', \g<0>"),
        ],
    }.items():
        path = folder / f"{name}.lua"
        path.write_text(changed(path.read_text(), *changes))
    store_base.LUA = folder


def change_contents() -> None:
    """More in what is kept as JSON, an event that nobody knows, segments that nobody else can read."""
    import orjson

    from services.orchestrator import segments
    from services.orchestrator.records import RunSpec
    from services.orchestrator.turn.state import TurnState
    from services.orchestrator.writer import RunWriter

    segments.SEGMENT_VERSION += 1
    as_dict, encode, emit = RunSpec.as_dict, TurnState.encode, RunWriter.emit

    def emit_more(self, kind, data):
        emit(self, kind, data)
        if kind == "step_started":
            emit(self, EVENT, {NEWS: KEPT})

    RunSpec.as_dict = lambda self: {**as_dict(self), NEWS: KEPT}
    TurnState.encode = lambda self: orjson.dumps({**orjson.loads(encode(self)), NEWS: KEPT})
    RunWriter.emit = emit_more


def main() -> None:
    """Serves as the next version until SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-next-") as folder:
        change_records()
        change_functions(Path(folder))
        change_contents()
        from services.orchestrator.__main__ import main as serve

        serve()


if __name__ == "__main__":
    main()
