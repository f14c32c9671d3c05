"""The port of guardrails: what may look at a turn's texts, and what it may say of them. Detectors stand behind it, and none is here.

What a turn does with a verdict is in turn/guarding.py. Source: design page "governance", section Guardrails.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal, Protocol

from services.orchestrator.records import RunRef

# What is looked at: what users say, what memory recalls, what a model says, what it asks a tool for, and what a tool gives.
INPUT, CONTEXT, OUTPUT, ARGUMENTS, RESULT = STAGES = ("input", "context", "output", "arguments", "result")


@dataclass(frozen=True, slots=True)
class Examined:
    """One text and where it stands. `kind` is the role of a message or the kind of what was recalled; `tool` names the tool of arguments
    and results, which are JSON."""

    stage: str
    text: str
    ref: RunRef
    agent: str
    kind: str = ""
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`text` stands in for a text that is replaced. `reason` is a stable name in lower_snake_case, also of what is allowed and yet worth
    telling; of what was found, `spans` are places (first and last + 1 character) and never the words."""

    action: Literal["allow", "refuse", "replace"] = "allow"
    reason: str = ""
    text: str = ""
    detector: str = ""
    version: str = ""
    score: float | None = None
    threshold: float | None = None
    spans: Sequence[tuple[int, int]] = ()


ALLOWED = Verdict()


class Guardrails(Protocol):
    """Looks at texts of the `stages` that it names; the others cost nothing.

    A check that fails, or takes longer than `timeout_s`, refuses, but in the stages that `fails_open` names: which these are is a matter of
    the policy that it was made from. To look at output, the answers of models are held back until they are whole.
    """

    @property
    def stages(self) -> Set[str]:
        """Those of STAGES that are looked at."""
        ...

    @property
    def fails_open(self) -> Set[str]:
        """Those in which a text that could not be looked at is allowed."""
        ...

    @property
    def timeout_s(self) -> float:
        """Longest time of one check, in seconds."""
        ...

    async def check(self, what: Examined) -> Verdict:
        """What is to become of a text. May raise anything, which counts as a check that failed."""
        ...


class AllowAll:
    """Looks at nothing."""

    stages: Set[str] = frozenset()
    fails_open: Set[str] = frozenset()
    timeout_s = 1.0

    async def check(self, what: Examined) -> Verdict:
        """Allows it."""
        return ALLOWED
