"""docs/llm-gateway.md says what the code does: classes, strategies, providers, codes, headers, settings, metrics, defaults."""

import re

import pytest
import yaml

from services.common.breaker import BreakerPolicy
from services.common.settings import PRESETS
from services.common.testing import ROOT
from services.llm_gateway import bounds, caching_rules, request_rules, semantic
from services.llm_gateway.adapters.http_upstream import MAX_BODY_BYTES as MAX_ANSWER_BYTES
from services.llm_gateway.attempts import QUEUE_SHARE
from services.llm_gateway.batches.execution import ExecutionRules
from services.llm_gateway.batches.files import FileRules
from services.llm_gateway.batches.requests import MAX_LINES
from services.llm_gateway.extras import MOST_TOOL_USES, ROUNDS, TOOL_USES
from services.llm_gateway.failures import MOVES, FailureClass, Move
from services.llm_gateway.gate import GateSettings
from services.llm_gateway.model_config import REQUEST_DEFAULTS, STRATEGIES, ModelInfo, ModelsFile
from services.llm_gateway.model_port import embeddings, exchange, rerank, terms
from services.llm_gateway.model_port.app import MAX_TIMEOUT_MS
from services.llm_gateway.price_config import PriceKeys
from services.llm_gateway.providers import AZURE_STREAM_USAGE, LOCAL_EMBEDDERS, PROVIDERS
from services.llm_gateway.registry_file import registry_parser
from services.llm_gateway.settings import Settings

PAGE = (ROOT / "docs/llm-gateway.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S)
SPANS = set(re.findall(r"`([^`]+)`", PROSE))
SOURCES = [path for folder in ("services/llm_gateway", "services/common") for path in (ROOT / folder).rglob("*.py")]
CODE = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


def default(name: str):
    return Settings.model_fields[name].default


def rows(header: str) -> list[list[str]]:
    """The cells of the table under a header line that begins so."""
    table = PAGE.partition(f"\n| {header}")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def chapter(title: str) -> str:
    """Its text on one line, however it is wrapped."""
    return re.sub(r"\s+", " ", re.split(r"\n#+ ", PAGE.partition(f"# {title}\n")[2])[0])


def test_every_failure_class_has_a_row_that_tells_its_move():
    told: dict[str, str] = {}
    for names, _, happens in rows("class | what it is"):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = happens
    assert set(told) == {found.value for found in FailureClass}
    for found, move in MOVES.items():
        words = {
            Move.RETRY: "asked again",
            Move.OTHER_DEPLOYMENT: "another deployment",
            Move.OTHER_MODEL: "only models of",
            Move.STOP: "nothing",
        }
        assert told[found.value].startswith(words[move]), found


def test_every_strategy_and_provider_is_named():
    named = {name for row in rows("`routing_strategy`") for name in re.findall(r"`([\w-]+)`", row[0])}
    assert {name for name in STRATEGIES if name not in named} == {"usage-based-routing-v2"}
    assert "`-v2`" in PAGE
    assert {name for name in PROVIDERS if name not in SPANS and f"{name}/" not in SPANS} == set()
    assert set(LOCAL_EMBEDDERS) <= SPANS


def test_the_example_files_load_and_nothing_in_them_is_without_effect():
    main, prices, auto = (yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
    keys = {"OPENAI_API_KEY": "a", "AZURE_API_KEY": "b", "ANTHROPIC_API_KEY": "c", "GROQ_API_KEY": "d"}
    found = registry_parser(keys)(main, ("prices.yaml", prices))
    assert found.unsupported == ()
    assert len(found.groups["main"].deployments) == 2
    assert found.resolve("groq/anything", "chat")[0].name == "groq/anything"
    assert found.resolve("gpt-4o", "chat")[0].name == "main"
    assert found.cache.ttl_s == 600
    assert all(d.prices.known for d in found.groups["main"].deployments[:1])
    # The prices are not only read: each of their keys means something.
    assert PriceKeys.model_validate(prices["openai/gpt-4.1-mini"]).unknown() == []
    small = {"model_name": "small", "litellm_params": {"model": "openai/x", "api_key": "k"}}
    routed = registry_parser(keys)({"model_list": [*main["model_list"], small], **auto})
    assert (routed.autos["auto"].cheap, routed.autos["auto"].best) == ("small", "claude")
    assert routed.unsupported == ()


def test_what_the_page_calls_a_key_of_models_yaml_is_one():
    keys = {key for key in SPANS if re.fullmatch(r"supports_\w+|max_input_tokens|free|base_model", key)}
    assert keys
    assert keys <= set(ModelInfo.model_fields)
    assert "max_tokens" in REQUEST_DEFAULTS
    for path in ("router_settings", "litellm_settings", "general_settings"):
        assert path in ModelsFile.model_fields


def test_what_is_billed_beside_text_is_told_with_its_keys_and_bounds():
    needs = {key for row in rows("the request has | needs") for key in re.findall(r"`(\w+)`", row[1])}
    assert needs == {
        "search_context_cost_per_query", "max_input_tokens", "code_interpreter_cost_per_session", "input_cost_per_audio_token",
        "output_cost_per_audio_token",
    }  # fmt: skip
    assert needs <= set(ModelInfo.model_fields)
    table = str(rows("the request has | needs"))
    assert f"without it {TOOL_USES} are sent, and {MOST_TOOL_USES} at most" in table
    assert f"as many rounds as uses, {ROUNDS} at most" in table


def test_providers_that_are_asked_for_the_usage_of_streams_are_named():
    told = PAGE.partition("**Usage of streams**")[2].partition("It is asked for at:")[2].partition(";")[0]
    assert set(re.findall(r"`([\w-]+)`", told)) == {name for name, p in PROVIDERS.items() if p.stream_usage} - {"text-completion-openai"}
    assert f"for `azure` from version {AZURE_STREAM_USAGE}" in re.sub(r"\s+", " ", PAGE)


def test_settings_and_their_defaults():
    named = {span for text in SPANS for span in re.findall(r"BULKHEAD_([A-Z0-9_]+)", text)}
    known = {name.upper() for name in Settings.model_fields}
    assert named - known <= {"LLM_URL", "API_KEY"}
    told = {row[0]: row[1] for row in rows("limit | default")}
    assert told["connect"] == f"{default('model_connect_timeout_s'):g} s"
    first, reasoning = default("model_first_token_timeout_s"), default("model_reasoning_first_token_timeout_s")
    assert told["first token"] == f"{first:g} s; {reasoning:g} s with `supports_reasoning`"
    assert told["between tokens"] == f"{default('model_between_tokens_timeout_s'):g} s"
    assert told["one attempt; the whole call"] == f"{default('model_total_timeout_s'):g} s"
    text = chapter("When something fails")
    assert f"at most {default('model_num_retries')} times" in text
    assert f"at most {default('model_max_attempts')} attempts" in text
    assert f"{default('model_retry_cap_s'):g} s" in text
    assert f"at most {default('queue_wait_s'):g} s (`BULKHEAD_QUEUE_WAIT_S`)" in text
    assert f"at most {default('queue_length'):,} (`BULKHEAD_QUEUE_LENGTH`), {default('queue_per_tenant')} of each tenant" in text
    assert f"at most {QUEUE_SHARE:.0%} of what".replace("%", " %") in text
    assert f"{default('hedge_extra_cost'):.0%} more".replace("%", " %") in text
    assert {env for env, preset in PRESETS.items() if preset.get("price_unknown") == "deny"} == {"staging", "prod"}


def test_numbers_of_breaker_and_queue():
    text, policy = chapter("When something fails"), BreakerPolicy()
    assert f"after {policy.failures_in_row} failures in a row" in text
    assert (policy.failure_rate, f"at least {policy.least_calls} calls of the last {policy.window_s:g} s" in text) == (0.5, True)
    assert (
        f"after {policy.first_open_s:g} s (`cooldown_time`, or the provider's Retry-After), doubling to {policy.longest_open_s:g} s" in text
    )
    assert ", ".join(f"{tier} {weight:g}" for tier, weight in GateSettings().tier_weights.items()) in text
    assert Settings().queue_tier_weights == GateSettings().tier_weights


def test_numbers_of_caches_batches_and_limits():
    caches, batches = chapter("Caches"), chapter("Files and batches")
    assert f"in the process ({default('cache_l1_entries'):,})" in caches
    assert default("cache_ttl_s") == caching_rules.TTL_S == 3600
    assert default("cache_stale_s") == caching_rules.STALE_S == 86_400
    assert f"at least {semantic.SIMILARITY} similar" in caches
    assert f"above {semantic.IMPORTANCE}" in caches
    assert (
        f"At most {MAX_LINES:,} lines and {FileRules().most_bytes // 2**20} MiB a file, files kept {FileRules().kept.days} days" in batches
    )
    assert f"{ExecutionRules().concurrency} of a batch at a time" in batches
    text = chapter("Limits")
    assert f"| {exchange.MAX_BODY_BYTES // 2**20} MiB; 413 beyond |" in text
    assert f"| {request_rules.MAX_TOOLS:,} a request |" in text
    assert request_rules.MAX_MESSAGES == request_rules.MAX_PARTS
    assert f"| {request_rules.MAX_MESSAGES:,} each |" in text
    assert f"| {terms.MAX_KEY} characters;" in text
    assert f"| {MAX_ANSWER_BYTES // 2**20} MiB |" in text
    assert f"| {MAX_TIMEOUT_MS // 1000} s |" in text
    assert f"at most {embeddings.MAX_INPUTS:,} inputs" in PAGE
    assert f"at most {rerank.MAX_DOCUMENTS:,} documents" in PAGE
    assert f"without one, {bounds.DEFAULT_OUTPUT_TOKENS:,} are" in chapter("Money")


def test_headers_codes_events_and_statuses_are_those_of_the_code():
    literals = {match.lower() for match in re.findall(r"\"([\w.-]+)\"", CODE)}
    for row in [*rows("header | effect"), *rows("header | meaning")]:
        for name in re.findall(r"`([\w-]+)(?:: false)?`", row[0]):
            if name.startswith("-") or name in ("tokens", "traceparent"):
                continue
            kept = name.lower().removesuffix("requests")
            assert kept in literals, name
    for row in rows("status | `type`"):
        for code in re.findall(r"`([a-z_]+)`", row[1] + row[2]):
            assert code in literals or code in {"param", "insufficient_quota"}, code
    events = re.findall(r"`(\w+)`", PAGE.partition("**Logs:**")[2].partition("\n\n")[0])
    assert len(events) >= 9
    assert [event for event in events if event not in literals] == []
    warnings = next(row for row in rows("header | meaning") if "warnings" in row[0])[1]
    assert set(re.findall(r"`(\w+)`", warnings)) <= set(re.findall(r"Notice\(\s*\"(\w+)\"", CODE))


def metrics_of(code: str) -> set[str]:
    found = set(re.findall(r"(?:Counter|Histogram)\(\s*(?:SCOPE|\"[\w.]+\"),\s*\"([\w.]+)\"", code))
    return found | set(re.findall(r"create_(?:\w+_)?(?:counter|histogram|gauge)\(\s*\"([\w.]+)\"", code))


@pytest.mark.parametrize("direction", ["page", "code"])
def test_metrics_are_those_of_the_code(direction):
    sources = [path for path in SOURCES if "llm_gateway" in path.parts or path.parent.name in ("breaker", "config", "telemetry", "rpc")]
    exported = metrics_of("\n".join(path.read_text(encoding="utf-8") for path in sources if path.name != "_instruments.py"))
    exported = {name for name in exported if not name.startswith("bulkhead_process")}
    named = {span for row in rows("metric | labels") for span in re.findall(r"`([\w.]+)`", row[0] + row[2]) if "_" in span or "." in span}
    parts = {name for name in named if name.startswith(".")}
    named -= parts
    inference = "gen_ai.client.inference.usage"
    named |= {inference + part for part in parts}
    usage = {f"{inference}.{part}" for part in re.findall(r"\"([a-z_.]+)\"", CODE.partition("for part in (")[2].partition(")")[0])}
    if direction == "page":
        assert {name for name in named if name.startswith(("bulkhead_", "llm", "gen_ai"))} - exported - usage == set()
    else:
        grpc_only = {name for name in exported if "rpc" in name}
        assert exported - named - grpc_only == set()


def test_the_page_is_linked():
    for page in ("README.md", "docs/model-admin.md", "docs/kubernetes.md"):
        assert "llm-gateway.md" in (ROOT / page).read_text(encoding="utf-8"), page
