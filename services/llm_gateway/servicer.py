"""LlmService: protos to domain and back."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common.errors import InvalidInput
from services.common.rpc.context import principal
from services.llm_gateway import proto_chat
from services.llm_gateway.estimates import Estimates, measure
from services.llm_gateway.ports import Gate, Purse
from services.llm_gateway.proto_models import budgets_of, health_of, page_of
from services.llm_gateway.request_rules import SCOPE, check_texts
from services.llm_gateway.results import EmbedCall, Finished, ModelCalls, Notice, RerankCall

# Half a MiB below the limit of a message, for everything that is no vector.
MAX_VECTOR_BYTES = 3_500_000
MAX_DOCUMENTS = 1_000
ERASE_SCOPE = "admin"
# Erases what one part holds of (tenant, user) and answers what it was and how many.
Eraser = Callable[[str, str], Awaitable[tuple[str, int]]]


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Serves model calls, the registry, its health and budgets over gRPC."""

    def __init__(
        self,
        calls: ModelCalls,
        gate: Gate,
        purse: Purse,
        estimates: Estimates,
        erasers: Sequence[Eraser] = (),
    ) -> None:
        self._calls = calls
        self._gate = gate
        self._purse = purse
        self._estimates = estimates
        self._erasers = erasers

    async def Complete(self, request, context):
        """One whole completion."""
        principal().require(SCOPE)
        call = proto_chat.chat_call(request.input, stream=False, idempotency_key=request.idempotency_key)
        completed = await self._calls.complete(call)
        return llm_pb2.CompleteResponse(
            message=proto_chat.answer_message(completed.answer.data["choices"][0]["message"]),
            outcome=proto_chat.outcome_message(completed.outcome, completed.notices),
        )

    async def StreamComplete(self, request, context) -> AsyncIterator[llm_pb2.StreamCompleteResponse]:
        """One completion as deltas; `finished` comes last and only for a whole answer."""
        principal().require(SCOPE)
        call = proto_chat.chat_call(request.input, stream=True, idempotency_key=request.idempotency_key)
        async with aclosing(self._calls.stream(call)) as events:
            async for event in events:
                if isinstance(event, list):
                    for response in proto_chat.delta_events(event):
                        yield response
                elif isinstance(event, Notice):
                    yield llm_pb2.StreamCompleteResponse(warning=proto_chat.warning_of(event))
                else:
                    yield _finished(event)

    async def Embed(self, request, context):
        """Embeds texts."""
        principal().require(SCOPE)
        texts = list(request.texts)
        check_texts(texts, "texts")
        if request.dimensions < 0:
            raise InvalidInput.field("dimensions", "must not be negative")
        body: dict = {"input": texts, "dimensions": request.dimensions} if request.dimensions else {"input": texts}
        terms = proto_chat.terms_of(request, request.idempotency_key)
        embedded = await self._calls.embed(EmbedCall(request.model, body, request.run_id, terms))
        vectors, outcome = embedded.vectors.vectors, embedded.outcome
        if sum(len(vector) for vector in vectors) * 4 > MAX_VECTOR_BYTES:
            raise InvalidInput.field("texts", "the vectors of so many texts do not fit into one message; send fewer")
        response = llm_pb2.EmbedResponse(
            model=outcome.deployment.group,
            dimension=len(vectors[0]) if vectors else 0,
            usage=proto_chat.usage_message(outcome.usage),
            warnings=[proto_chat.warning_of(notice) for notice in embedded.notices],
            cached=outcome.cached,
        )
        for vector in vectors:
            response.embeddings.add().values.extend(vector)
        return response

    async def Rerank(self, request, context):
        """Ranks documents."""
        principal().require(SCOPE)
        if not request.query:
            raise InvalidInput.field("query", "must not be empty")
        if not 1 <= len(request.documents) <= MAX_DOCUMENTS:
            raise InvalidInput.field("documents", f"must hold 1 to {MAX_DOCUMENTS} texts")
        if request.top_n < 0:
            raise InvalidInput.field("top_n", "must not be negative")
        body: dict = {"query": request.query, "documents": list(request.documents)}
        if request.top_n:
            body["top_n"] = request.top_n
        terms = proto_chat.terms_of(request, request.idempotency_key)
        ranked = await self._calls.rerank(RerankCall(request.model, body, request.run_id, terms))
        response = llm_pb2.RerankResponse(
            model=ranked.outcome.deployment.group,
            usage=proto_chat.usage_message(ranked.outcome.usage),
            warnings=[proto_chat.warning_of(notice) for notice in ranked.notices],
            cached=ranked.outcome.cached,
        )
        for index, score in ranked.ranking.ranked:
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
        """One entry a model group."""
        return page_of(request, list(self._calls.registry.groups.values()))

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


def _finished(event: Finished) -> llm_pb2.StreamCompleteResponse:
    finished = llm_pb2.CompletionFinished(
        message=proto_chat.message_of(event.text, event.tool_calls), outcome=proto_chat.outcome_message(event.outcome, [])
    )
    return llm_pb2.StreamCompleteResponse(finished=finished)
