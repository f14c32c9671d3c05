"""One way through a request for an answer, whatever its dialect: faults, the rules, what is billed, the answer."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.simulator import faults, planner, plans, prices
from services.simulator.chat_request import ChatRequest
from services.simulator.dialects import Dialect
from services.simulator.fault_book import Subject
from services.simulator.faults import Faults, count
from services.simulator.plans import Head, StreamPlan, is_error_body
from services.simulator.prices import Model
from services.simulator.prompt_cache import NO_USE, Boundary, CacheUse
from services.simulator.refusals import Refused
from services.simulator.replies import Reply, call_reply
from services.simulator.scenarios import Step, step_text
from services.simulator.served_log import LOGGED_HEADERS, Visit
from services.simulator.simulator import Simulator, check_context, labels_of, scenario_header, tool_call_ids
from services.simulator.surfaces import delivery
from services.simulator.surfaces.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an answer in any dialect. `boundaries` are the prompt's blocks, where any is marked to be cached."""

    chat: ChatRequest
    tools_json: bytes
    boundaries: Sequence[Boundary] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An answer that is ready to be sent, with the faults it is sent under."""

    replies: Sequence[Reply]
    head: Head
    faults: Faults
    cache_use: CacheUse


def begin(simulator: Simulator, exchange: Exchange, endpoint: str, prefix: str) -> Visit:
    """Open the log's line of a request."""
    headers = {name: value for name, value in exchange.headers.items() if name in LOGGED_HEADERS}
    visit = Visit(prefix + simulator.next_id(), endpoint, headers, time.time(), time.monotonic())
    exchange.answer_id = visit.id
    simulator.log.begin(visit)
    return visit


async def refuse(exchange: Exchange, visit: Visit, dialect: Dialect, refused: Refused) -> None:
    """Answer with the error in the dialect's form."""
    status, body, headers = dialect.refusal(refused, visit.id)
    visit.status = status
    visit.error_code = refused.code or refused.type
    await exchange.respond(status, body, headers)


def prepare(simulator: Simulator, visit: Visit, dialect: Dialect, asked: Asked, headers: Mapping[str, str], key: str) -> Prepared:
    """Find the faults of a request and make its answer; raises Refused. What is billed stands in `visit`."""
    chat = asked.chat
    visit.requested_model = chat.model
    base_model, of_model = faults.split_model(chat.model)
    visit.stream = chat.stream
    visit.asked = chat.asked
    visit.model = model = chat_model(base_model)
    scenario = simulator.scenarios.find(scenario_header(headers), base_model, chat.asked)
    step = scenario.step_for(chat) if scenario else None
    if scenario and step:
        visit.scenario = scenario.name
        of_model = {**step.faults, **of_model}
    subject = Subject(visit.endpoint, base_model, chat.asked, labels_of(headers, *chat.labels))
    visit.faults = asked_faults = simulator.faults_for(subject, headers, of_model)
    simulator.check_key(key, asked_faults)
    visit.prompt_tokens = chat.prompt_tokens(asked.tools_json)
    check_context(visit.prompt_tokens, model.context_tokens)
    use = simulator.prompt_cache.use(asked.boundaries, visit.prompt_tokens) if asked.boundaries else NO_USE
    if asked_faults:
        chat = _changed(chat, asked_faults)
        if "cached_prefix" in asked_faults and not asked.boundaries:
            use = _prefix_use(simulator, chat, count(asked_faults, "cached_prefix") or 0, visit.prompt_tokens)
    visit.cached_tokens, visit.cache_write_tokens = use.read_tokens, use.write_tokens
    replies = [_reply(chat, step, visit, dialect, asked_faults, choice) for choice in range(chat.choices)]
    head = Head(
        visit.id,
        model.name,
        int(visit.received_unix_s),
        visit.prompt_tokens,
        chat.include_usage,
        use.read_tokens,
        use.write_tokens,
        chat.show_thinking or "show_reasoning" in asked_faults,
    )
    return Prepared(replies, head, asked_faults, use)


def account(simulator: Simulator, visit: Visit, made: Prepared) -> None:
    """Bill the answer."""
    replies = made.replies
    visit.completion_tokens = sum(reply.completion_tokens for reply in replies)
    visit.reasoning_tokens = sum(reply.reasoning_tokens for reply in replies)
    if replies[0].finish_reason == "tool_calls":
        visit.tool_calls = sum(len(reply.tool_calls()) for reply in replies)
    # A whole answer has no events: an error event stands for the body, and an error inside a 200 costs nothing.
    visit.billed = not (costs_nothing(made.faults) or (not visit.stream and is_error_body(made.faults)))
    if visit.billed and made.cache_use.digests:
        simulator.prompt_cache.keep(made.cache_use)


def costs_nothing(asked: Faults) -> bool:
    """Whether the faults leave nothing of the answer: an error in a 200 is no completion."""
    return bool(asked) and ("error_body" in asked or "empty_body" in asked or "html_body" in asked or asked.get("error_event_after") == 0)


def with_stream(dialect: Dialect, change: Callable[[StreamPlan], StreamPlan], content_type: bytes) -> Dialect:
    """The dialect with streams in another form."""
    return replace(dialect, stream=lambda replies, head, asked: change(dialect.stream(replies, head, asked)), stream_type=content_type)


async def generate(simulator: Simulator, exchange: Exchange, visit: Visit, dialect: Dialect, asked: Asked, key: str) -> None:
    """Answer a request; raises Refused where it has none."""
    made = prepare(simulator, visit, dialect, asked, exchange.headers, key)
    blocked = dialect.blocks_in_answer and "content_policy" in made.faults
    if not await delivery.before_answer(exchange, visit, dialect, made.faults):
        return
    account(simulator, visit, made)
    if blocked:
        visit.completion_tokens = visit.reasoning_tokens = visit.tool_calls = 0
    if visit.stream and "error_body" not in made.faults:
        await delivery.send_stream(exchange, visit, dialect.stream(made.replies, made.head, made.faults), made.faults, dialect.stream_type)
    else:
        await delivery.send_body(exchange, visit, dialect.whole_body(made.replies, made.head, made.faults), made.faults)


def chat_model(name: str) -> Model:
    """The row of a model that chats; raises Refused (404) for one that does not."""
    model = prices.model_named(name)
    if model.embeds or model.ranks:
        raise Refused("This is not a chat model and thus not supported in the v1/chat/completions endpoint.", status=404, param="model")
    return model


def _changed(chat: ChatRequest, asked: Faults) -> ChatRequest:
    """The request after the faults that change what is asked."""
    if chat.prefilled:
        if "no_prefill" in asked:
            raise Refused(
                "This model does not support assistant message prefill. The conversation must end with a user message.", param="messages"
            )
        if "restart" in asked and len(chat.messages) > 1:
            chat = replace(chat, messages=chat.messages[:-1])
    thinking = count(asked, "reasoning_tokens")
    return chat if thinking is None else replace(chat, thinking_tokens=thinking)


def _prefix_use(simulator: Simulator, chat: ChatRequest, wanted: int, prompt_tokens: int) -> CacheUse:
    """The prompt's first tokens, if it is long enough to have so many."""
    if wanted > prompt_tokens:
        return NO_USE
    told = "\x00".join(f"{message.role}\x01{message.text}" for message in chat.messages).encode()[: wanted * 4]
    return simulator.prompt_cache.prefix(hashlib.blake2b(b"prefix" + told, digest_size=16).digest(), wanted)


def _reply(chat: ChatRequest, step: Step | None, visit: Visit, dialect: Dialect, asked: Faults, choice: int) -> Reply:
    malformed = "malformed_tool_arguments" in asked

    def make_ids(wanted: int) -> Sequence[str]:
        return tool_call_ids(chat, visit.id, wanted, prefix=dialect.call_prefix, choice=choice)

    if step is None:
        reply = planner.reply_to(chat, make_ids, malformed_arguments=malformed)
    elif step.calls and chat.tool_choice != "none":
        ids = make_ids(len(step.calls))
        reply = call_reply(step.calls, ids, text=step_text(step, chat), max_tokens=chat.max_tokens, malformed=malformed)
    else:
        reply = planner.finish_text(chat, step_text(step, chat))
    if chat.thinking_tokens:
        reply = reply.after_thinking(chat.thinking_tokens, chat.max_tokens)
    return plans.with_reply_faults(reply, asked) if asked else reply
