"""What a call asks of the gateway itself, beside what it asks of the model."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CacheTerms:
    """How this call may use the caches. `max_age_s` bounds the age of an answer that is taken, `ttl_s` sets that of one that is
    stored; None stands for the setting. `semantic` opts in to answers of similar questions; `importance` is the caller's mark
    (0 to 1) that decides whether an answer is worth keeping there. `stale_if_error_s` asks for answers of at most that age where
    every provider fails, and keeps this call's for as long (RFC 5861); None stands for the setting.
    """

    read: bool = True
    write: bool = True
    max_age_s: float | None = None
    ttl_s: float | None = None
    semantic: bool = False
    importance: float = 0.0
    stale_if_error_s: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """Money in micro-USD. `run_budget_microusd` caps what all calls of the run may cost together, `max_cost_microusd` this call.

    `low_priority` calls (batch lines) wait behind all others. `discounted` calls are charged the batch price where the
    deployment has one. `arm` is the arm of an experiment, for telemetry. With `lingers` a call with an idempotency key goes on when
    its caller leaves, so that the caller can come back for the answer; without it an abandoned call ends and costs no more.
    """

    cache: CacheTerms = field(default_factory=CacheTerms)
    idempotency_key: str = ""
    run_budget_microusd: int | None = None
    max_cost_microusd: int | None = None
    low_priority: bool = False
    discounted: bool = False
    arm: str = ""
    lingers: bool = False


PLAIN = Terms()
