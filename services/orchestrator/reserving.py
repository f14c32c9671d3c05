"""What a reservation says of a run: that it is refused, or for what it waits."""

from services.common.errors import QuotaExceeded
from services.common.limits import TierPolicy
from services.orchestrator.records import Reservation, Schedule


def check_quota(reservation: Reservation, tier: TierPolicy) -> None:
    """Raises QuotaExceeded where the reservation was refused."""
    policy, what = {
        "quota": ("concurrent_runs", "runs are at work"),
        "full": ("queued_runs", "runs are waiting for others to end"),
        "delayed": ("delayed_runs", "runs are waiting for their time"),
    }.get(reservation.verdict, ("", ""))
    if policy:
        limit = getattr(tier, policy)
        raise QuotaExceeded(
            f"{limit} {what}, which is the limit of the tier", retry_after_s=max(1.0, reservation.pace_ms / 1000),
            metadata={"policy": policy, "limit": str(limit)},
        )  # fmt: skip


def waits(reservation: Reservation, schedule: Schedule, behind: int) -> dict[str, int]:
    """What run_queued tells of a run that does not start at once; `behind` is its position among the waiting runs of its thread."""
    if not reservation.held:
        return {"queue_position": behind} if behind else {}
    if not reservation.place:
        return {"start_at_ms": schedule.start_ms} if schedule.start_ms else {}
    return {"queue_position": reservation.place, "expected_wait_ms": reservation.place * reservation.pace_ms}
