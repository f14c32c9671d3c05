"""tools.yaml: which tools are offered, in which versions, with which limits."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.tool_executor.tools import DEFAULT_TIMEOUT_S, MAX_OUTPUT_BYTES, MAX_TIMEOUT_S

NAME = r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$"  # what model providers accept as the name of a function
VERSION = r"^\d{1,6}\.\d{1,6}\.\d{1,6}$"
_REFERENCE = "os.environ/"
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RetryConfig(_Strict):
    """Repeats of read-only and idempotent tools after timeouts, 5xx answers and transport errors."""

    times: Annotated[int, Field(ge=0, le=2)] = 2
    backoff_s: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0, le=60)]] = (2.0, 5.0)


class AnnotationsConfig(_Strict):
    """Declared behaviour; absent statements keep what the tool itself declares, or the pessimistic reading."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class HttpConfig(_Strict):
    """A tool that is one HTTP request: arguments as JSON body, or as query of a GET; a 2xx answer is the output."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: str
    headers: Mapping[str, str] = {}
    idempotency_header: str = "Idempotency-Key"

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        value = resolved(value)
        if not re.match(r"https?://[^\s/]+", value):
            raise ValueError("must begin with http:// or https://")
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name in value:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is no header name")
        return {name: resolved(text) for name, text in value.items()}


class ToolConfig(_Strict):
    """One version of one tool: a built-in, or an HTTP tool with its own schema."""

    name: Annotated[str, Field(pattern=NAME)]
    version: Annotated[str, Field(pattern=VERSION)] | None = None
    enabled: bool = True
    description: str | None = None
    scopes: tuple[str, ...] = ()
    annotations: AnnotationsConfig = AnnotationsConfig()
    approval: Literal["by_annotations", "always", "never"] = "by_annotations"
    fallback: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}(@\d{1,6}\.\d{1,6}\.\d{1,6})?$")] | None = None
    stale_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] | None = None
    max_output_bytes: Annotated[int, Field(ge=1, le=MAX_OUTPUT_BYTES)] | None = None
    concurrent_calls: Annotated[int, Field(ge=1)] | None = None
    retry: RetryConfig | None = None
    options: Mapping[str, Any] = {}
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    http: HttpConfig | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "ToolConfig":
        if self.http is None:
            given = [name for name in ("input_schema", "output_schema") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} belongs to tools with http:, a built-in has its own")
        else:
            missing = [name for name in ("version", "description", "input_schema") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a tool with http: needs {', '.join(missing)}")
            if self.options:
                raise ValueError("options belong to built-in tools")
        return self


class DefaultsConfig(_Strict):
    """What holds for every tool that says nothing else."""

    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)] = DEFAULT_TIMEOUT_S
    max_output_bytes: Annotated[int, Field(ge=1, le=MAX_OUTPUT_BYTES)] = MAX_OUTPUT_BYTES
    concurrent_calls: Annotated[int, Field(ge=1)] = 64
    retry: RetryConfig = RetryConfig()


class ToolsFile(_Strict):
    """The file."""

    defaults: DefaultsConfig = DefaultsConfig()
    tools: tuple[ToolConfig, ...] = ()


def resolved(text: str) -> str:
    """`text`, or the value of the variable that `os.environ/NAME` refers to. Raises ValueError when that is not set."""
    if not text.startswith(_REFERENCE):
        return text
    name = text.removeprefix(_REFERENCE)
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(f"the variable {name} is not set")
    return value
