"""The registry, its health and budgets as messages."""

import base64
import binascii
import time

from bulkhead.llm.v1 import llm_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import InvalidInput
from services.llm_gateway.accounting.states import BudgetStates
from services.llm_gateway.ports import DeploymentState
from services.llm_gateway.registry import Group

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
NANO_PER_MICRO = 1_000


def page_of(request: llm_pb2.ListModelsRequest, named: list[tuple[str, Group]]) -> llm_pb2.ListModelsResponse:
    """One page of names with their groups. Raises InvalidInput for a size or a token that is none."""
    if request.page_size < 0 or request.page_size > MAX_PAGE:
        raise InvalidInput.field("page_size", f"must be 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}")
    size = request.page_size or DEFAULT_PAGE
    start = _offset(request.page_token)
    token = _token(start + size) if start + size < len(named) else ""
    models = [_model(name, group) for name, group in named[start : start + size]]
    return llm_pb2.ListModelsResponse(models=models, next_page_token=token)


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


def _model(name: str, group: Group) -> llm_pb2.Model:
    deployments = group.deployments
    return llm_pb2.Model(
        name=name,
        mode=group.mode,
        providers=sorted({d.provider for d in deployments}),
        max_input_tokens=min((d.max_input_tokens for d in deployments if d.max_input_tokens), default=0),
        embedding_dimension=max(d.dimension for d in deployments),
        simulated=any(d.simulated for d in deployments),
    )


def health_of(state: DeploymentState) -> llm_pb2.DeploymentHealth:
    """How one deployment does."""
    message = llm_pb2.DeploymentHealth(
        model=state.group,
        deployment_id=state.deployment_id,
        breaker=state.breaker,
        in_flight=state.in_flight,
        queued=state.queued,
        failure_rate=state.failure_rate,
    )
    message.latency.FromNanoseconds(int(state.latency_s * 1e9))
    if state.breaker == "open":
        message.retry_at.CopyFrom(_timestamp(time.time() + state.retry_in_s))
    return message


def budgets_of(states: BudgetStates) -> llm_pb2.GetBudgetResponse:
    """Budgets with a cap, and rate limits."""
    response = llm_pb2.GetBudgetResponse()
    for budget in states.budgets:
        if budget.limit_nanousd is None:
            continue
        made = response.budgets.add(
            scope=budget.scope,
            scope_id=budget.scope_id,
            period=budget.period,
            limit_microusd=budget.limit_nanousd // NANO_PER_MICRO,
            spent_microusd=-(-budget.spent_nanousd // NANO_PER_MICRO),
            reserved_microusd=-(-budget.reserved_nanousd // NANO_PER_MICRO),
        )
        if budget.resets_at:
            made.resets_at.CopyFrom(_timestamp(budget.resets_at))
    for limit in states.limits:
        response.limits.add(scope=limit.scope, scope_id=limit.scope_id, kind=limit.kind, limit=limit.limit, remaining=limit.remaining)
    return response


def _timestamp(unix_s: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(int(unix_s * 1e9))
    return made
