"""LlmService: protos to domain and back."""

import base64
import binascii
from contextlib import aclosing

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common.errors import InvalidInput
from services.common.rpc.context import principal
from services.llm_gateway import proto_chat
from services.llm_gateway.completions import Completions
from services.llm_gateway.registry import Group
from services.llm_gateway.request_rules import SCOPE, check_texts
from services.llm_gateway.results import EmbedCall, Finished, Notice

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
# Half a MiB below the limit of a message, for everything that is no vector.
MAX_VECTOR_BYTES = 3_500_000


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Serves completions, embeddings and the registry over gRPC."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    async def Complete(self, request, context):
        """One whole completion."""
        principal().require(SCOPE)
        completed = await self._completions.complete(proto_chat.chat_call(request.input, stream=False))
        return llm_pb2.CompleteResponse(
            message=proto_chat.answer_message(completed.answer.data["choices"][0]["message"]),
            outcome=proto_chat.outcome_message(completed.outcome, completed.notices),
        )

    async def StreamComplete(self, request, context):
        """One completion as deltas; `finished` comes last and only for a whole answer."""
        principal().require(SCOPE)
        call = proto_chat.chat_call(request.input, stream=True)
        async with aclosing(self._completions.stream(call)) as events:
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
        embedded = await self._completions.embed(EmbedCall(request.model, {"input": texts}, request.run_id))
        vectors, outcome = embedded.vectors.vectors, embedded.outcome
        if sum(len(vector) for vector in vectors) * 4 > MAX_VECTOR_BYTES:
            raise InvalidInput.field("texts", "the vectors of so many texts do not fit into one message; send fewer")
        response = llm_pb2.EmbedResponse(
            model=outcome.deployment.group, dimension=len(vectors[0]) if vectors else 0, usage=proto_chat.usage_message(outcome.usage)
        )
        for vector in vectors:
            response.embeddings.add().values.extend(vector)
        return response

    async def ListModels(self, request, context):
        """One entry a model group."""
        if request.page_size < 0 or request.page_size > MAX_PAGE:
            raise InvalidInput.field("page_size", f"must be 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}")
        size = request.page_size or DEFAULT_PAGE
        groups = list(self._completions.registry.groups.values())
        start = _offset(request.page_token)
        page = groups[start : start + size]
        token = _token(start + size) if start + size < len(groups) else ""
        return llm_pb2.ListModelsResponse(models=[_model(group) for group in page], next_page_token=token)


def _finished(event: Finished) -> llm_pb2.StreamCompleteResponse:
    finished = llm_pb2.CompletionFinished(
        message=proto_chat.message_of(event.text, event.tool_calls), outcome=proto_chat.outcome_message(event.outcome, [])
    )
    return llm_pb2.StreamCompleteResponse(finished=finished)


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(b"models:%d" % offset).decode()


def _offset(token: str) -> int:
    if not token:
        return 0
    try:
        kind, _, number = base64.b64decode(token, altchars=b"-_", validate=True).partition(b":")
        if kind == b"models" and len(number) < 10 and number.isdigit():
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidInput.field("page_token", "is not a token of this list")


def _model(group: Group) -> llm_pb2.Model:
    deployments = group.deployments
    return llm_pb2.Model(
        name=group.name,
        mode=group.mode,
        providers=sorted({d.provider for d in deployments}),
        max_input_tokens=min((d.max_input_tokens for d in deployments if d.max_input_tokens), default=0),
        embedding_dimension=max(d.dimension for d in deployments),
        simulated=any(d.simulated for d in deployments),
    )
