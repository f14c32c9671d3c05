"""The house rules, as checks of the tree. Each rule is also shown a fault, so that it is known to bite."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common import edges
from services.common.testing import ROOT

MAX_LINES = 400
VAGUE = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common_utils"}
COMMON = Path("services/common")
# The embedded vector store is another program's server, started as a process of its own: no service.
STORES = {COMMON / "milvus_lite_server.py"}
SERVES = {COMMON / "rpc/server.py"} | STORES
DIALS = {COMMON / "rpc/channel.py", COMMON / "rpc/probe.py"}
# The command ends by Ctrl-C, and supervises processes: it is no server.
SIGNALS = SERVES | {Path("services/cli/up/run.py"), Path("services/cli/up/keeper.py"), Path("services/cli/chat.py")}
# Settings are read once, in one place. Secrets in product configuration stand there as os.environ/NAME, and whoever reads such a
# file looks the name up.
ENVIRONMENT = {
    *(COMMON / "settings.py", Path("services/llm_gateway/app.py"), Path("services/tool_executor/configuration.py")),
    # Writes what gRPC reads when it is imported.
    COMMON / "rpc" / "__init__.py",
}
# Every importable part of common has at least two services behind it, by itself or through another part of common.
SERVICES = ("gateway", "orchestrator", "llm_gateway", "tool_executor", "memory", "simulator", "cli")


def sources(folder: str = "services") -> Iterator[Path]:
    """Python files below `folder`, relative to the root."""
    return (path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def for_tests(path: Path) -> bool:
    """What tests stand on is no part of a running service."""
    return "testing" in (*path.parts, path.stem) or path.stem.startswith("fake")


def dotted(node: ast.AST) -> str:
    """`grpc.aio.server` of an attribute or a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(code: str) -> set[str]:
    """Dotted names of all that is called."""
    return {dotted(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)}


def reads_environment(code: str) -> bool:
    return any(
        dotted(node) in ("os.environ", "os.getenv", "os.environb") for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)
    )


def makes_servers(code: str) -> bool:
    return bool(calls(code) & {"grpc.aio.server", "grpc.server", "aio.server"})


def dials(code: str) -> bool:
    return any(name.endswith(("insecure_channel", "secure_channel")) for name in calls(code))


def handles_signals(code: str) -> bool:
    return any(name == "signal.signal" or name.endswith(".add_signal_handler") for name in calls(code))


def module_state(code: str) -> list[str]:
    """What module level holds that is empty, mutable and no constant by its name: nothing else is made to be filled."""
    found = []
    for node in ast.parse(code).body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        empty = (isinstance(value, (ast.List, ast.Dict)) and not ast.unparse(value).strip("[]{} ")) or (
            isinstance(value, ast.Call)
            and dotted(value.func) in ("dict", "list", "set", "deque", "defaultdict", "OrderedDict")
            and not value.args
        )
        names = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) if empty else ""
        if empty and not names.isupper():
            found.append(ast.unparse(node))
    return found


def uses_global(code: str) -> bool:
    return any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(code)))


def outside(allowed: set[Path], rule) -> list[str]:
    """Service files where `rule` holds though only `allowed` ones may."""
    return [
        str(path) for path in sources() if path not in allowed and not for_tests(path) and rule((ROOT / path).read_text(encoding="utf-8"))
    ]


def test_no_file_is_longer_than_one_can_take_in():
    long = {}
    for folder in ("services", "scripts", "tests"):
        for path in sources(folder):
            lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
            if lines > MAX_LINES:
                long[str(path)] = lines
    assert not long


def test_no_module_has_a_name_that_says_nothing():
    assert not [str(path) for path in sources() if {path.stem, *path.parts} & VAGUE]


def test_one_place_makes_grpc_servers():
    assert makes_servers("server = grpc.aio.server(options=[])")
    assert not outside(SERVES, makes_servers)


def test_one_place_dials():
    assert dials("channel = grpc.aio.insecure_channel('x')")
    assert not outside(DIALS, dials)


def test_one_place_of_the_services_handles_signals():
    assert handles_signals("loop.add_signal_handler(15, stop)")
    assert handles_signals("signal.signal(15, stop)")
    assert not outside(SIGNALS, handles_signals)


def test_one_place_of_the_services_reads_the_environment():
    assert reads_environment("import os\nx = os.environ['HOME']")
    assert reads_environment("import os\nx = os.getenv('HOME')")
    assert not [path for path in outside(ENVIRONMENT, reads_environment) if not path.startswith("services/cli/")]


def test_modules_hold_constants_and_loggers_only():
    assert module_state("_cache: dict = {}") == ["_cache: dict = {}"]
    assert module_state("_cache = deque(maxlen=5)")
    assert not module_state("NOTHING: dict = {}\nTABLE = {'a': 1}\nlog = get_logger('x')")
    found = {str(path): module_state((ROOT / path).read_text(encoding="utf-8")) for path in sources() if not for_tests(path)}
    assert not {path: state for path, state in found.items() if state}
    assert uses_global("def f():\n    global x\n    x = 1")
    assert not outside(set(), uses_global)


def test_only_generated_code_lives_under_the_import_name_bulkhead():
    python = [path.relative_to(ROOT) for folder in ("services", "scripts", "tests", "protos") for path in (ROOT / folder).rglob("*.py*")]
    named = [path for path in python if "bulkhead" in (*path.parts[:-1], path.stem)]
    assert named
    assert not [str(path) for path in named if path.parts[:4] != ("protos", "gen", "python", "bulkhead")]
    assert not [str(path) for path in (ROOT / "protos/gen").rglob("__init__.py")]


def test_the_generated_code_is_what_the_protos_say():
    done = subprocess.run([sys.executable, "scripts/gen_protos.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rpcs() -> set[str]:
    """Full paths of all declared RPCs."""
    generated = ROOT / "protos/gen/python"
    names = [".".join(path.relative_to(generated).with_suffix("").parts) for path in generated.rglob("*_pb2.py")]
    files = [importlib.import_module(name) for name in names]
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def test_every_edge_names_rpcs_that_exist_and_have_a_deadline():
    used = {f"/{edge.grpc_service}/{method}" for edge in edges.EDGES for method in edge.methods}
    assert used <= rpcs()
    assert used <= set(edges.METHODS)
    assert set(edges.METHODS) <= rpcs()
    assert set(edges.METHODS) >= edges.NO_DEADLINE_NEEDED


def test_the_call_graph_has_no_cycle_and_nothing_behind_llm_gateway():
    graph: dict[str, set[str]] = {}
    for edge in edges.EDGES:
        graph.setdefault(edge.caller, set()).add(edge.callee)

    def reachable(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            for callee in graph.get(todo.pop(), ()):
                if callee not in found:
                    found.add(callee)
                    todo.append(callee)
        return found

    assert not [service for service in graph if service in reachable(service)]
    assert "llm_gateway" not in graph


def common_part(module: str) -> str | None:
    """`rpc` of `services.common.rpc.server`."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["services", "common"] and len(parts) > 2 else None


def imported_parts(path: Path) -> set[str]:
    """The parts of common that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "services.common")]
        found |= {part for module in modules if (part := common_part(module))}
    return found


def test_every_part_of_common_has_two_users():
    parts: dict[str, set[str]] = {}
    for path in sources(str(COMMON)):
        part = path.relative_to(COMMON).parts[0].removesuffix(".py")
        if part not in ("__init__", "testing"):
            parts.setdefault(part, set()).update(imported_parts(path) - {part})
    users: dict[str, set[str]] = {part: set() for part in parts}
    for service in SERVICES:
        todo = [part for path in sources(f"services/{service}") if not for_tests(path) for part in imported_parts(path)]
        while todo:
            part = todo.pop()
            if part in users and service not in users[part]:
                users[part].add(service)
                todo += parts[part]
    # The embedded stores are started by the command and by the development charts, which are no Python.
    users["embedded"].add("charts")
    users["milvus_lite_server"] |= {"cli", "charts"}
    assert not {part: sorted(found) for part, found in users.items() if len(found) < 2}


@pytest.mark.parametrize("folder", ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory", "simulator"])
def test_each_service_has_the_same_rooms(folder):
    there = {path.name for path in (ROOT / "services" / folder).iterdir()}
    assert {"__main__.py", "settings.py", "app.py"} <= there
    assert (ROOT / "services" / folder / "__main__.py").read_text(encoding="utf-8").count("\n") <= 20
