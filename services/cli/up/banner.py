"""What `up` prints when everything is ready."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Banner:
    """The facts to tell. Empty strings are left out."""

    took_s: float
    url: str
    llm_url: str
    api_key: str
    models: str
    otlp_endpoint: str
    data_dir: Path
    partial: bool = False
    chat_model: str = ""

    def lines(self) -> list[str]:
        """Plain text, one fact a line, and commands that work when pasted as they are: three, or one for the model port alone."""
        out = ["", f"Bulkhead is ready after {self.took_s:.1f} s", ""]
        if self.url:
            out.append(f"  console and API   {self.url}")
            out.append(f'  openai SDK        base_url="{self.url}/v1", model="assistant"')
        if self.llm_url:
            out.append(f"  models only       {self.llm_url}/v1")
        if self.api_key:
            out.append(f"  API key           {self.api_key}")
        if self.models:
            out.append(f"  models            {self.models}")
        out += [*self._traces(), f"  logs              {self.data_dir / 'logs'}"]
        if self.partial:
            out.append("  only some services were started: they answer, but are not ready without the others")
        if self.url and not self.partial:
            out += ["", "Try:", *(f"  {command}" for command in self._commands())]
        elif self.llm_url and self.api_key and self.chat_model and not self.url:
            out += ["", "Try:", f"  {self._model_call()}"]
        return [*out, "", "Ctrl-C ends everything; the data stays."]

    def facts(self, processes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
        """The same for programs: where everything is. The key itself stands in `env_file` alone. `processes` are ports by process and
        kind."""
        return {
            "took_s": round(self.took_s, 3),
            "url": self.url or None,
            "llm_url": self.llm_url or None,
            "env_file": str(self.data_dir / "dev.env") if self.api_key else None,
            "models": self.models or None,
            "data_dir": str(self.data_dir),
            "log_dir": str(self.data_dir / "logs"),
            "partial": self.partial,
            "processes": processes,
        }

    def _traces(self) -> list[str]:
        if self.otlp_endpoint:
            return [f"  traces            sent to {self.otlp_endpoint}"]
        timeline = f"timeline of a run at {self.url}/replay/THREAD; " if self.url else ""
        return [
            f"  traces            {timeline}trace_id stands in every log line",
            "                    (BULKHEAD_OTLP_ENDPOINT=http://localhost:4317 make run sends them to a collector)",
        ]

    def _model_call(self) -> str:
        body = json.dumps({"model": self.chat_model, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
        headers = f'-H "authorization: Bearer {self.api_key}" -H "content-type: application/json"'
        return f"curl -s {self.llm_url}/v1/chat/completions {headers} -d {shlex.quote(body)}"

    def _commands(self) -> list[str]:
        # Another data folder than the default has its own dev.env, which the commands must find.
        where = "" if self.data_dir == Path.cwd() / ".bulkhead" else f"BULKHEAD_DATA_DIR={shlex.quote(str(self.data_dir))} "
        program = sys.argv[0] if Path(sys.argv[0]).name == "bulkhead" else "bulkhead"
        if Path(program).is_relative_to(Path.cwd()):
            program = str(Path(program).relative_to(Path.cwd()))
        question = "Which five services does Bulkhead have, and what is 17 * 23?"
        return [f"{where}{program} {rest}" for rest in ("ingest README.md docs", f'chat --thread tour "{question}"', "replay tour")]
