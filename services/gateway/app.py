"""Composition root of the gateway."""

from datetime import timedelta
from functools import partial

from fastapi import FastAPI
from starlette.routing import Route

from services.common.accounts import Accounts
from services.common.audit import AuditStream, KeyAudit
from services.common.config import ConfigFile
from services.common.health import Health
from services.common.http import UvicornListener
from services.common.idempotency import IdempotencyStore
from services.common.identity import Minter
from services.common.limits import TokenBuckets, parse_policies
from services.common.rpc.addresses import Addresses
from services.common.rpc.channel import Dialer
from services.common.rpc.server import Service
from services.common.settings import StartRefused
from services.common.valkey import connect, ping, refuse_shards
from services.gateway.adapters.backends import backends
from services.gateway.adapters.event_log import OrchestratorEvents
from services.gateway.background import Background
from services.gateway.edge import failures
from services.gateway.edge.admission import Admission
from services.gateway.edge.asgi import Edge
from services.gateway.edge.document import Document
from services.gateway.edge.keyed import Keys
from services.gateway.edge.route import Doorkeeper
from services.gateway.following import Follower
from services.gateway.oidc import Issuers, Tokens, parse_issuers
from services.gateway.settings import Settings
from services.gateway.streaming import OpenStreams, StreamRules
from services.gateway.surfaces import ag_ui, console, native, openai, probes, responses, schemas
from services.gateway.surfaces.websocket import websockets, with_websockets
from services.gateway.surfaces.wiring import Wiring

DESCRIPTION = """Threads and durable runs of agents, their event log, documents and memories; OpenAI's chat completions and responses.
Authenticate with `Authorization: Bearer bh_…`. Errors are RFC 9457 problems; on OpenAI's routes they are OpenAI's."""
# Taken off the drain's grace, so that streams that must be broken off can still say so.
LAST_WORDS_S = 0.5


def build(settings: Settings) -> Service:
    """Wires the service. Raises StartRefused for configuration that cannot be used."""
    state = connect(settings.state_url)
    accounts = Accounts(state, settings.state_replicas)
    policies = ConfigFile(settings.config_dir / "policies.yaml", partial(parse_policies, policy_set=settings.policy_set))
    issuers = ConfigFile(settings.config_dir / "oidc.yaml", parse_issuers, absent=Issuers)
    try:
        minter = Minter.from_file(settings.identity_signing_key_file, "gateway")
    except (OSError, ValueError) as error:
        raise StartRefused([f"BULKHEAD_IDENTITY_SIGNING_KEY_FILE: {error}"]) from error
    dialer = Dialer("gateway", Addresses(settings.addresses(), settings.address_file))
    stubs = backends(dialer)
    follower = Follower(OrchestratorEvents(stubs.runs), reconnect_s=settings.stream_reconnect_s, silence_s=settings.stream_silence_s)
    rules = StreamRules(settings.sse_heartbeat_s, settings.stream_max_age_s, settings.slow_reader_s, settings.proof_wait_s)
    streams = OpenStreams(rules)
    health = Health({"state": partial(ping, state), "orchestrator": partial(dialer.reachable, "orchestrator")}, [policies, issuers])
    admission = Admission(accounts, Tokens(issuers), minter, TokenBuckets(state), policies, settings.policy_set)
    keys = Keys(IdempotencyStore(state, settings.state_replicas))
    records = AuditStream(state, timedelta(days=settings.audit_days), settings.state_replicas) if settings.audit_days else None
    wiring = Wiring(stubs, follower, streams, settings, accounts, policies, KeyAudit(records))
    app = application(wiring, Doorkeeper(admission, settings, keys), health)
    watching = Background(policies.watch, "policies")
    watching_issuers = Background(issuers.watch, "issuers")
    return Service(
        "gateway",
        listeners=[UvicornListener(with_websockets(Edge(app), app, settings), settings.host, settings.http_port, **websockets(settings))],
        start=[partial(refuse_shards, state), accounts.start, watching.start, watching_issuers.start],
        drain=[partial(streams.drain, max(0.1, settings.drain_grace_s - LAST_WORDS_S))],
        close=[state.aclose, dialer.close, accounts.stop, watching.stop, watching_issuers.stop],
        health=health,
    )


def application(wiring: Wiring, doorkeeper: Doorkeeper, health: Health) -> FastAPI:
    """The ASGI application, without the edge around it."""
    app = FastAPI(
        # One span and one set of metrics a request, and ours know the tenant, the run and the canary flag. FastAPI's own
        # would double them and record exception texts.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False},
        title="Bulkhead", version=wiring.settings.version, description=DESCRIPTION, docs_url=None, redoc_url=None, openapi_url=None,
        strict_content_type=False, redirect_slashes=False,
    )  # fmt: skip
    app.state.doorkeeper = doorkeeper
    failures.install(app)
    surfaces = (*native.routers(wiring), *openai.routers(wiring), *responses.routers(wiring), *ag_ui.routers(wiring))
    for router in (*surfaces, probes.router(health), schemas.router(), console.router()):
        # Not include_router: it would search a tree of routers for each request, where one list does.
        app.router.routes.extend(router.routes)
    app.router.routes.append(Route("/openapi.json", Document(app, native.NAMED_MODELS).answer))
    return app
