"""What a test file may say. It is YAML, written by `bulkhead replay --as-test` or by hand.

version: 1
name: boat
turns:
- agent: assistant
  input: What is 17 * 23?
  expect:
    status: succeeded
    tools: [calculator]        # these calls and no others, in this order
    says: ["504"]              # all of these stand in the answer
  recorded: 17 * 23 is 391.    # the answer of then, for readers; nothing is compared with it
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.cli.failure import UsageProblem

VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Said(_Form):
    """One message of an input that has several."""

    role: Literal["system", "user", "assistant"]
    content: str


class Call(_Form):
    """A tool call with the arguments that it must have."""

    tool: Text
    arguments: dict[str, Any]


class Decision(_Form):
    """How the run's question about a call of a tool with just these arguments is answered; `edited` goes with the verb `edit`."""

    tool: Text
    arguments: dict[str, Any]
    verb: Literal["approve", "edit", "reject"]
    edited: dict[str, Any] | None = None
    reason: str = ""


class AtMost(_Form):
    """What a turn may use up."""

    model_calls: Count | None = None
    tool_calls: Count | None = None
    cost_microusd: Count | None = None
    duration_ms: Count | None = None


class Expected(_Form):
    """What must be so after a turn; what is absent is not looked at."""

    status: Literal["succeeded", "failed"] = "succeeded"
    error: Text | None = None
    tools: list[Text | Call] | None = None
    uses: list[Text] = Field(default_factory=list)
    never: list[Text] = Field(default_factory=list)
    says: list[Text] = Field(default_factory=list)
    says_not: list[Text] = Field(default_factory=list)
    cites: list[Text] = Field(default_factory=list)
    answer: str | None = None
    at_most: AtMost | None = None


class Turn(_Form):
    """One message to the agent, and what must come of it."""

    input: Text | Annotated[list[Said], Field(min_length=1)]
    agent: Text | None = None
    expect: Expected = Field(default_factory=Expected)
    approvals: list[Decision] = Field(default_factory=list)
    recorded: str | None = None


class Conversation(_Form):
    """A test: the turns of one thread, in order."""

    version: Literal[1]
    name: Text
    turns: Annotated[list[Turn], Field(min_length=1)]


def read(path: Path) -> Conversation:
    """The test in a file. Raises UsageProblem that names every mistake."""
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise UsageProblem(f"{path}: {len(raw) / 1_048_576:.1f} MiB; a test may have {MAX_BYTES // 1_048_576} MiB")
        content = yaml.safe_load(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageProblem(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageProblem(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    try:
        return Conversation.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors(include_url=False))
        raise UsageProblem(f"{path}: {wrong}") from None


def written(test: Conversation) -> str:
    """The test as YAML, with what it means to a reader."""
    content = test.model_dump(exclude_none=True, exclude_defaults=True) | {"version": VERSION}
    ordered = {name: content[name] for name in ("version", "name", "turns")}
    return f"{_head(test.name)}{yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120)}"


def _head(name: str) -> str:
    return (
        f"# What happened in the thread {name}, as a test: `bulkhead test FILE` has the same conversation on a new thread and compares.\n"
        "# Take out what may differ the next time, and add what must hold: docs/cli.md lists what `expect` knows.\n"
    )
