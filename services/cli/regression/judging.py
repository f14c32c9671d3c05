"""What came of a turn, held against what must have come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cli.regression.form import Call, Expected
from services.cli.rendering import brief


@dataclass
class Outcome:
    """What came of a turn. `calls` are the tool calls in order, each once; `asked` is what kept it from going on."""

    status: str = ""
    error: str = ""
    answer: str = ""
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    cited: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    duration_ms: int = 0
    asked: str = ""
    _keys: set[str] = field(default_factory=set)

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the run."""
        data = event.get("data") or {}
        match event.get("type"):
            case "tool_call_started":
                # The next owner of a run tells again of a call that it makes again.
                key = str(data.get("idempotency_key") or data.get("call_id"))
                if key not in self._keys:
                    self._keys.add(key)
                    self.calls.append((str(data.get("tool")), data.get("arguments") or {}))
            case "run_finished":
                self.status, self.answer = "succeeded", str(data.get("output_text") or "")
                self.cited = [str(citation.get("title")) for citation in data.get("citations") or []]
                self.usage = data.get("usage") or {}
            case "run_failed":
                error = data.get("error") or {}
                self.status, self.error = "failed", str(error.get("reason") or "")
                self.usage = data.get("usage") or {}
            case "run_cancelled":
                self.status = "cancelled"


def differences(outcome: Outcome, expected: Expected) -> list[str]:
    """Each thing that is not as it must be, in words; empty when all is."""
    if outcome.asked:
        return [outcome.asked]
    found = []
    if outcome.status != expected.status:
        found.append(f"it {outcome.status}{f' ({outcome.error})' if outcome.error else ''} and must have {expected.status}")
    elif expected.error and outcome.error != expected.error:
        found.append(f"it failed with {outcome.error} and must fail with {expected.error}")
    found += _of_tools([name for name, _ in outcome.calls], outcome.calls, expected)
    found += _of_words(outcome.answer, expected) if outcome.status == "succeeded" else []
    found += [f"it does not cite {title}" for title in expected.cites if title not in outcome.cited]
    if expected.at_most is not None:
        used = {**outcome.usage, "duration_ms": outcome.duration_ms}
        for name, bound in expected.at_most.model_dump(exclude_none=True).items():
            if (value := int(used.get(name) or 0)) > bound:
                found.append(f"{name} is {value} and must be at most {bound}")
    return found


def _of_tools(names: Sequence[str], calls: Sequence[tuple[str, Mapping[str, Any]]], expected: Expected) -> list[str]:
    found = []
    if expected.tools is not None:
        wanted = [call.tool if isinstance(call, Call) else call for call in expected.tools]
        if list(names) != wanted:
            found.append(f"it called {', '.join(names) or 'no tool'} and must call {', '.join(wanted) or 'none'}")
        else:
            for (name, arguments), call in zip(calls, expected.tools, strict=True):
                if isinstance(call, Call) and dict(arguments) != call.arguments:
                    found.append(f"it called {name} with {brief(dict(arguments))} and must with {brief(call.arguments)}")
    found += [f"it did not call {name}" for name in expected.uses if name not in names]
    found += [f"it called {name}, which it must never" for name in expected.never if name in names]
    return found


def _of_words(answer: str, expected: Expected) -> list[str]:
    said = _plain(answer)
    found = [f"it does not say {brief(text)!r}" for text in expected.says if _plain(text) not in said]
    found += [f"it says {brief(text)!r}, which it must not" for text in expected.says_not if _plain(text) in said]
    if expected.answer is not None and answer != expected.answer:
        found.append(f"it answered {brief(answer)!r} and must answer {brief(expected.answer)!r}")
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
