"""LlmService: protos to domain and back."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common.errors import InvalidInput, UpstreamFailed
from services.common.identity import Principal
from services.common.rpc.context import principal
from services.common.rpc.server import MAX_MESSAGE_BYTES
from services.llm_gateway import proto_chat
from services.llm_gateway.estimates import Estimates, measure
from services.llm_gateway.offered import offered
from services.llm_gateway.ports import Gate, Purse
from services.llm_gateway.proto_answers import StreamedAnswer, completed_message, opened_event, outcome_message, usage_message, warning_of
from services.llm_gateway.proto_models import budgets_of, health_of, page_of
from services.llm_gateway.request_rules import SCOPE
from services.llm_gateway.results import EmbedCall, ModelCalls, Notice, Outcome, RerankCall

# Half a MiB below the limit of a message, for everything that is no vector.
MAX_VECTOR_BYTES = 3_500_000
# The limit of a message, and a little for the frame of an event.
MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES - 1024
ERASE_SCOPE = "admin"
# Erases what one part holds of (tenant, user) and answers what it was and how many.
Eraser = Callable[[str, str], Awaitable[tuple[str, int]]]
Allows = Callable[[Principal, str], Awaitable[bool]]


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Serves model calls, the registry, its health and budgets over gRPC."""

    def __init__(
        self,
        calls: ModelCalls,
        gate: Gate,
        purse: Purse,
        estimates: Estimates,
        erasers: Sequence[Eraser] = (),
        allows: Allows | None = None,
    ) -> None:
        """`allows` says whether a caller may ask a model group."""
        self._calls = calls
        self._gate = gate
        self._purse = purse
        self._estimates = estimates
        self._erasers = erasers
        self._allows = allows

    async def Complete(self, request, context):
        """One whole completion."""
        principal().require(SCOPE)
        call = proto_chat.chat_call(request.input, stream=False, idempotency_key=request.idempotency_key)
        completed = await self._calls.complete(call)
        response = completed_message(completed.answer, completed.outcome, completed.notices)
        if len(completed.answer.raw) > MAX_ANSWER_BYTES // 2:
            _check_size(response)
        return response

    async def StreamComplete(self, request, context) -> AsyncIterator[llm_pb2.StreamCompleteResponse]:
        """One completion as deltas; `finished` comes last and only for a whole answer."""
        principal().require(SCOPE)
        opening: list[Outcome] = []
        told = opening.append if request.tell_opening else None
        call = proto_chat.chat_call(request.input, stream=True, idempotency_key=request.idempotency_key, opened=told)
        answer = StreamedAnswer(text_only=request.text_only)
        async with aclosing(self._calls.stream(call)) as events:
            async for event in events:
                if isinstance(event, list):
                    for outcome in opening[:1]:
                        yield opened_event(outcome)
                    opening.clear()
                    # What a provider sends at once may be large: a picture, say.
                    large = sum(len(chunk.raw) for chunk in event) > MAX_ANSWER_BYTES // 2
                    for response in answer.feed(event):
                        if large:
                            _check_size(response)
                        yield response
                elif isinstance(event, Notice):
                    yield llm_pb2.StreamCompleteResponse(warning=warning_of(event))
                else:
                    last = answer.finished(event, MAX_ANSWER_BYTES)
                    _check_size(last)
                    yield last

    async def Embed(self, request, context):
        """Embeds texts."""
        principal().require(SCOPE)
        body = proto_chat.embedding_body(request)
        self._check_vectors(request, len(body["input"]))
        terms = proto_chat.terms_of(request, request.idempotency_key)
        embedded = await self._calls.embed(EmbedCall(request.model, body, request.run_id, terms))
        vectors, outcome = embedded.vectors.vectors, embedded.outcome
        if sum(len(vector) for vector in vectors) * 4 > MAX_VECTOR_BYTES:
            raise _too_many_vectors()
        response = llm_pb2.EmbedResponse(
            model=outcome.deployment.group,
            dimension=len(vectors[0]) if vectors else 0,
            usage=usage_message(outcome.usage),
            warnings=[warning_of(notice) for notice in embedded.notices],
            cached=outcome.cached,
            outcome=outcome_message(outcome, ()),
        )
        for vector in vectors:
            response.embeddings.add().values.extend(vector)
        return response

    def _check_vectors(self, request: llm_pb2.EmbedRequest, count: int) -> None:
        """Says before anything is paid what would not fit into the answer, where the length of the vectors is known."""
        group, _ = self._calls.registry.resolve(request.model, "embedding")
        dimension = request.dimensions or max((d.dimension for d in group.deployments), default=0)
        if dimension * count * 4 > MAX_VECTOR_BYTES:
            raise _too_many_vectors()

    async def Rerank(self, request, context):
        """Ranks documents."""
        principal().require(SCOPE)
        body = proto_chat.ranking_body(request)
        terms = proto_chat.terms_of(request, request.idempotency_key)
        ranked = await self._calls.rerank(RerankCall(request.model, body, request.run_id, terms))
        response = llm_pb2.RerankResponse(
            model=ranked.outcome.deployment.group,
            usage=usage_message(ranked.outcome.usage),
            warnings=[warning_of(notice) for notice in ranked.notices],
            cached=ranked.outcome.cached,
            outcome=outcome_message(ranked.outcome, ()),
            search_units=ranked.ranking.search_units,
        )
        for index, score in ranked.ranking.ranked[: request.top_n or None]:
            response.results.add(index=index, score=score)
        return response

    async def CountTokens(self, request, context):
        """Tokens of a request that is not made."""
        principal().require(SCOPE)
        call = proto_chat.chat_call(request.input, stream=False)
        group, _ = self._calls.registry.resolve(call.model, "chat")
        measured, asked = measure(call.body), group.deployments[0].id
        bound = self._estimates.input_bound(asked, measured)
        expected = self._estimates.expected_input_tokens(asked, measured)
        return llm_pb2.CountTokensResponse(input_tokens=min(expected, bound), input_tokens_bound=bound, estimated=True)

    async def ListModels(self, request, context):
        """One entry a model group, or a name that the caller may use."""
        registry, caller = self._calls.registry, principal()
        if not request.offered:
            return page_of(request, list(registry.groups.items()))
        named = offered(registry).items()
        return page_of(request, [(n, group) for n, group in named if self._allows is None or await self._allows(caller, group.name)])

    async def GetModelHealth(self, request, context):
        """Breakers and queues of this replica."""
        registry = self._calls.registry
        if request.model:
            group = registry.find(request.model)
            groups = [] if group is None else [group]
            if not groups:
                raise InvalidInput.field("model", "is not in the registry")
        else:
            groups = [*registry.groups.values(), *registry.wildcards]
        return llm_pb2.GetModelHealthResponse(
            deployments=[health_of(state) for state in self._gate.state(d for group in groups for d in group.deployments)]
        )

    async def GetBudget(self, request, context):
        """What limits the caller."""
        return budgets_of(await self._purse.budgets(principal(), request.run_id))

    async def EraseSubject(self, request, context):
        """Deletes what is held of a user of the caller's tenant. Doing it again is harmless, so the key needs no record."""
        caller = principal()
        caller.require(ERASE_SCOPE)
        if not request.user:
            raise InvalidInput.field("user", "is required")
        response = llm_pb2.EraseSubjectResponse()
        for erase in self._erasers:
            kind, count = await erase(caller.tenant, request.user)
            response.erased.add(kind=kind, count=count)
        return response


def _too_many_vectors() -> InvalidInput:
    return InvalidInput.field("texts", "the vectors of so many texts do not fit into one message; send fewer")


def _check_size(response: llm_pb2.CompleteResponse | llm_pb2.StreamCompleteResponse) -> None:
    """Raises UpstreamFailed in words of ours for what gRPC would refuse to send."""
    if response.ByteSize() > MAX_ANSWER_BYTES:
        size = {"bytes": str(response.ByteSize())}
        raise UpstreamFailed("the model's answer does not fit into one message", reason="ANSWER_TOO_LARGE", metadata=size)
