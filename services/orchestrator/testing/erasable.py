"""A service that is asked to erase subjects: it remembers who, and refuses as often as it is told to."""

from services.common.errors import BulkheadError


class Erasable:
    """What fakes of the services behind the orchestrator have in common for EraseSubject."""

    def __init__(self) -> None:
        self.erased: list[str] = []
        self.sessions: list[str] = []
        self.refusals: list[BulkheadError] = []

    def erase(self, user: str) -> None:
        """Remembers the user. Raises the next refusal."""
        if self.refusals:
            raise self.refusals.pop(0)
        self.erased.append(user)
