"""A small client of the native API for end-to-end tests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx

TERMINAL = {"run_finished", "run_failed", "run_cancelled"}


class Api:
    """Calls the gateway with one key."""

    def __init__(self, url: str, key: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}", **headers}, timeout=60.0)

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """JSON of a POST that succeeds."""
        answer = self.http.post(path, json=body, headers=headers)
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def get(self, path: str) -> Any:
        """JSON of a GET that succeeds."""
        answer = self.http.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    @contextmanager
    def stream(self, thread: str, text: str, **body: Any) -> Iterator[Iterator[dict]]:
        """Starts a run and follows it; the iterator yields event envelopes."""
        payload = {"input": text, "stream": True, **body}
        with self.http.stream("POST", f"/v1/threads/{thread}/runs", json=payload, headers={"accept": "text/event-stream"}) as answer:
            if answer.status_code != 200:
                answer.read()
                raise AssertionError(f"{answer.status_code} {answer.text}")
            yield events_of(answer.iter_lines())

    def turn(self, thread: str, text: str, **body: Any) -> list[dict]:
        """All events of one run, to its end."""
        with self.stream(thread, text, **body) as events:
            found = []
            for event in events:
                found.append(event)
                if event["type"] in TERMINAL:
                    return found
        raise AssertionError(f"the stream ended without a terminal event: {[e['type'] for e in found]}")

    def run(self, run_id: str) -> dict:
        """One run."""
        return self.get(f"/v1/runs/{run_id}")


def events_of(lines: Iterator[str]) -> Iterator[dict]:
    """The data of each server-sent event; asserts that the SSE id is the sequence number."""
    event: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in event:
                data = json.loads(event["data"])
                if "id" in event:
                    assert int(event["id"]) == data["seq"]
                yield data
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")


def answer_of(events: list[dict]) -> str:
    """Text of the finished run; AssertionError with the events when it did not finish."""
    last = events[-1]
    assert last["type"] == "run_finished", json.dumps(last)
    return last["data"]["output_text"]
