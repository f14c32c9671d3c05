"""What the orchestrator is made of is given to it when it is made; what is set later is what goes round in circles, and no more."""

import ast
import inspect

from services.orchestrator import app

CIRCLES = {"services.children", "outbox.on_end", "store.on_admitted", "accepting.on_mortal", "accepting.tools"}


def set_later(source):
    """The attributes of others that a piece of code assigns."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            found |= {ast.unparse(part) for part in parts if isinstance(part, ast.Attribute) and ast.unparse(part.value) != "self"}
    return found


def test_nothing_is_set_on_what_was_made_but_what_closes_a_circle():
    assert set_later("a.b, c = 1, 2\nself.d = 3\ne.f = 4") == {"a.b", "e.f"}
    assert set_later(inspect.getsource(app)) <= CIRCLES
