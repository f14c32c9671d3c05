"""A user is forgotten on the whole platform, and then every key, every row and every file is searched for their words."""

import json
import re
import subprocess
from collections.abc import Iterable

import httpx2 as httpx
import pytest
import redis
from pymilvus import MilvusClient

from services.cli.keys import DEFAULT_SCOPES
from services.common import testing
from services.common.testing import eventually
from tests import raw_content
from tests.e2e.api import Api, answer_of
from tests.e2e.harness import start_platform

pytestmark = pytest.mark.system

ANA, BOB = "anaquest", "bobquest"
SCOPES = (*DEFAULT_SCOPES, "documents:write")
IN_STORE = {
    "prompt", "question", "code", "result", "label", "memory", "title", "liked", "corrected", "schedule", "planned", "file", "batchlabel",
    "cached",
}  # fmt: skip
IN_FILES = {"prompt", "question", "batch", "custom"}
IN_INDEX = {"memory", "document", "heading"}
# Counts of requests by user, which end within a day.
COUNTS = ("rate:", "tool_rate:")
# What the stand-in for a provider writes down of its own; and what stores keep of their own, which is looked at through them.
NOT_OURS = ("logs/simulator-served.jsonl", "milvus/", "valkey-state/")


class Site:
    """A platform, and all that it keeps."""

    def __init__(self, platform):
        self.platform = platform
        self.stores = [f"redis://127.0.0.1:{platform.base + port}/0" for port in (13, 14)]

    def key(self, user):
        """A new API key of a user."""
        wanted = f"-m services.cli keys create --user {user} --tier free".split()
        for scope in SCOPES:
            wanted += ["--scope", scope]
        command = testing.python(*wanted, "--data-dir", str(self.platform.data_dir))
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=testing.ROOT).stdout.strip()

    def in_stores(self, user):
        """Kinds of words, and where they stand; "" is the user's name itself."""
        return words(user, (found for url in self.stores for found in raw_content.of_store(url)))

    def in_files(self, user, only=""):
        """As `in_stores`, in the platform's own files of the data folder, logs included."""
        files = raw_content.of_folder(self.platform.data_dir)
        return words(user, (file for file in files if file[0].startswith(only) and not file[0].startswith(NOT_OURS)))

    def in_index(self, user):
        """As `in_stores`, in all rows of the index."""
        client = MilvusClient(uri=f"http://127.0.0.1:{self.platform.base + 15}")
        rows = [
            (name, repr(row).encode())
            for name in client.list_collections()
            for row in client.query(name, filter='pk != ""', limit=1000, output_fields=["*"])
        ]
        client.close()
        return words(user, rows)

    def in_state_files(self, user):
        """As `in_stores`, in the state store's own files."""
        return words(user, raw_content.of_folder(self.platform.data_dir / "valkey-state"))


def words(user: str, contents: Iterable[tuple[str, bytes]]) -> dict[str, set[str]]:
    """Kinds of a user's words in these contents, with the names of the contents."""
    found: dict[str, set[str]] = {}
    for name, content in contents:
        for kind in re.findall(rb"%s([a-z]*)" % user.encode(), content):
            found.setdefault(kind.decode(), set()).add(name)
    return found


@pytest.fixture(scope="module")
def site(otlp, tmp_path_factory):
    receiver, port = otlp
    folder = tmp_path_factory.mktemp("forgotten")
    # In plain text: what is deleted shall be seen to be gone, and not be unreadable only.
    env = {"BULKHEAD_SEGMENTS_AFTER_S": "0.2", "BULKHEAD_ENVELOPE_KEYS_FILE": ""}
    running = start_platform(folder / "data", testing.free_port_base(), receiver, port, env=env)
    made = Site(running)
    with redis.Redis.from_url(made.stores[0]) as client:
        # Packed words are not found by whoever searches a file.
        client.config_set("rdbcompression", "no")
    yield made
    running.process.stop()


def fill(site, api, user, thread):
    """Everything that a user can leave behind, each thing with a word of its own."""
    first = api.turn(thread, f"My project has the code name {user}prompt.", agent="assistant", metadata={"about": f"{user}label"})
    assert f"{user}prompt" in answer_of(first)
    assert f"{user}prompt" in answer_of(api.turn(thread, f"What is the code name of my project, {user}question?", agent="assistant"))
    program = f"print('{user}' + 'result', len('{user}code'))"
    assert f"{user}result" in answer_of(api.turn(thread, f"Run `{program}`", agent="assistant"))
    api.post("/v1/memories", {"text": f"The favourite bird is {user}memory."})
    text = f"# {user}heading\n\nToday the bird {user}document flew over the lake."
    api.post("/v1/documents", {"title": f"Diary {user}title", "text": text})
    judged = {"run_id": first[0]["run_id"], "rating": 2, "text": f"{user}liked", "corrected_answer": f"{user}corrected"}
    api.post("/v1/feedback", judged)
    plan = {"timing": {"cron": "@yearly"}, "input": f"{user}schedule", "agent": "plain", "metadata": {"for": f"{user}planned"}}
    api.post("/v1/schedules", plan)
    headers = {"authorization": api.http.headers["authorization"]}
    with httpx.Client(base_url=site.platform.env["BULKHEAD_LLM_URL"], headers=headers, timeout=60) as models:
        asked = {"model": "assistant-model", "messages": [{"role": "user", "content": f"Say exactly: {user}cached"}]}
        for _ in range(2):
            answer = models.post("/v1/chat/completions", json=asked, headers={"x-bulkhead-cache-control": "ttl=600"})
            assert f"{user}cached" in answer.text
        assert answer.headers["x-bulkhead-cache"] == "exact"
        body = {"model": "assistant-model", "messages": [{"role": "user", "content": f"Say exactly: {user}batch"}]}
        line = {"custom_id": f"{user}custom", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = models.post("/v1/files", files={"file": (f"{user}file.jsonl", json.dumps(line))}, data={"purpose": "batch"}).json()["id"]
        order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = models.post("/v1/batches", json={**order, "metadata": {"for": f"{user}batchlabel"}}).json()["id"]
        eventually(lambda: models.get(f"/v1/batches/{batch}").json()["status"] == "completed", "the batch is done", timeout_s=60)


def everywhere(site, user):
    """Whether a user's words stand wherever they may."""
    lacking = IN_STORE - site.in_stores(user).keys() or IN_FILES - site.in_files(user).keys() or IN_INDEX - site.in_index(user).keys()
    return not lacking and "prompt" in site.in_files(user, "segments/")


def test_a_forgotten_user_is_in_no_key_no_row_and_no_file_and_logs_never_named_them(site):
    with (
        Api(site.platform.url, site.key(ANA)) as ana,
        Api(site.platform.url, site.key(BOB)) as bob,
        Api(site.platform.url, site.platform.key) as root,
    ):
        for api, user, thread in ((ana, ANA, "t-first"), (bob, BOB, "t-second")):
            fill(site, api, user, thread)
        for user in (ANA, BOB):
            eventually(lambda user=user: everywhere(site, user), f"the words of {user} are all over the place", timeout_s=60)
            assert site.in_state_files(user).keys() >= IN_STORE - {"cached"}
        begun = root.post("/v1/erasures", {"user": ANA})
        where = f"/v1/erasures/{begun['erasure_id']}"
        eventually(lambda: root.get(where)["state"] == "done", "the erasure is done", timeout_s=60)
        left = {kind: places for kind, places in site.in_stores(ANA).items() if kind}
        assert not left
        # Lists of threads that have ended lose a name with the next look of whoever keeps them.
        eventually(lambda: not named(site), "nothing but counts of requests bears the name")
        assert not site.in_files(ANA)
        assert not site.in_index(ANA)
        # The orchestrator has the store write them anew.
        eventually(lambda: not {kind for kind in site.in_state_files(ANA) if kind}, "the store's files have none of the words")
        assert ana.http.get("/v1/threads").status_code == 401
        assert everywhere(site, BOB)
        assert f"{BOB}memory" in bob.post("/v1/memories/search", {"query": "favourite bird"})["data"][0]["text"]
        assert f"{BOB}document" in bob.post("/v1/documents/search", {"query": "bird over the lake"})["data"][0]["text"]
        assert f"{BOB}prompt" in answer_of(bob.turn("t-second", "What is the code name of my project?", agent="assistant"))
    for user in (ANA, BOB):
        assert not site.in_files(user, "logs/")
        assert user not in site.platform.process.output()


def named(site):
    """Keys in which the forgotten user's name stands, but for counts of requests that end by themselves."""
    state = redis.Redis.from_url(site.stores[0])
    found = {name for places in site.in_stores(ANA).values() for name in places}
    state_left = {name for name in found if not (name.startswith(COUNTS) and 0 < state.ttl(name) <= 86_400)}
    state.close()
    return state_left
