"""What the model of `make chaos` is asked for: scripts in which every word and every call is of one run, and of no other."""

import random
import uuid
from typing import Any

from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script


def marked(of: str = "") -> str:
    """A name that nothing else has: of a new run, or of something that is said to the run `of`."""
    return f"{of}.{uuid.uuid4().hex[:6]}" if of else f"r{uuid.uuid4().hex[:12]}"


def words(least: int, most: int) -> str:
    """So many words; a long answer is likelier to be cut off."""
    return " ".join(f"w{i}" for i in range(random.randint(least, most)))


def _tools(name: str, step: int, only: str = "") -> dict[str, Any]:
    count = random.choice((1, 1, 2, 3))
    return calls(*((only or random.choice((ONCE, REPEATABLE)), f"{name}.{step}.{i}") for i in range(count)), say=words(0, 6))


def wish(name: str, steps: int = 3) -> str:
    """Up to three steps with tools, and an answer."""
    return script(*(_tools(name, step) for step in range(random.randint(0, steps))), f"{name} {words(3, 20)}")


def asking(name: str) -> str:
    """One or two steps with mails, which need an approval, and perhaps one without."""
    steps = [_tools(name, step, ONCE if random.random() < 0.7 else "") for step in range(random.randint(1, 2))]
    return script(*steps, f"{name} {words(3, 12)}")


def delegating(name: str) -> str:
    """Steps that have other agents work, some beside tools of the run's own."""
    steps = []
    for step in range(random.randint(1, 2)):
        tasks = [["delegate_to_quick", {"task": wish(f"{name}.t{step}.{i}", steps=2)}] for i in range(random.randint(1, 3))]
        own = _tools(name, step)["calls"] if random.random() < 0.4 else []
        wanted = [*tasks, *own]
        random.shuffle(wanted)
        steps.append({"say": words(0, 4), "calls": wanted})
    return script(*steps, f"{name} {words(3, 12)}")


def planning(name: str) -> str:
    """A plan, steps with tools, and the plan again with what is done."""
    titles = [f"{name} part {i}" for i in range(random.randint(1, 3))]
    steps: list[Any] = [_plan(titles, 0)]
    for done in range(1, len(titles) + 1):
        steps.append(_tools(name, done))
        if random.random() < 0.6:
            steps.append(_plan(titles, done))
    return script(*steps, f"{name} {words(3, 12)}")


def _plan(titles: list[str], done: int) -> dict[str, Any]:
    steps = [{"title": title, "status": "done" if i < done else "pending"} for i, title in enumerate(titles)]
    return {"say": "", "calls": [["update_plan", {"steps": steps}]]}
