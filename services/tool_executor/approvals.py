"""Which calls need an approval, and whether the one that came with a call covers it: enforced here, never asked of a model.

An approval is bound to its tenant, run, key, tool and version, and to the digest of the arguments that the tool is given in the end:
whatever changes them after somebody approved them takes the approval away.
"""

from typing import Any

from services.common.approval import Approval, digest
from services.common.errors import Unauthenticated
from services.common.identity import Verifier
from services.tool_executor.arguments import canonical
from services.tool_executor.failures import ToolFailure
from services.tool_executor.tools import Tool

REQUIRED = "policy.approval_required"
REJECTED = "policy.approval_rejected"
EXPIRED = "policy.approval_expired"
# Nothing has run: the same key may come with another approval.
CODES = frozenset({REQUIRED, REJECTED, EXPIRED})


class Approvals:
    """Verifies the approvals that calls come with."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def check(self, tool: Tool, token: str, tenant: str, run_id: str, key: str, arguments: Any) -> None:
        """Raises ToolFailure where the tool needs an approval and `token` is none for this call with these arguments."""
        if not tool.approval:
            return
        if not token:
            raise ToolFailure(REQUIRED, f"The tool {tool.name} needs the approval of a person, and there is none.")
        try:
            approval = Approval.verified(self._verifier, token)
        except Unauthenticated as error:
            if error.reason == "TOKEN_EXPIRED":
                raise ToolFailure(EXPIRED, f"The approval of this call of {tool.name} has expired.") from error
            raise ToolFailure(REJECTED, f"The approval of this call of {tool.name} is not valid.") from error
        wrong = _differs(approval, tool, tenant, run_id, key)
        waived = not approval.approvers
        if not wrong and waived and tool.approval == "required":
            wrong = "approvers"
        # What the agent's rules waive, they waive for all arguments; what people approve, for those that they have seen.
        if not wrong and not waived and approval.digest != digest(canonical(arguments)):
            wrong = "arguments"
        if wrong:
            message = f"The approval that came with this call of {tool.name} is for another one."
            raise ToolFailure(REJECTED, message, developer_message=f"differs in: {wrong}")

    def again(self, tool: Tool, token: str, tenant: str, run_id: str, key: str) -> int:
        """How often a person had this call made again whose outcome stayed unknown; 0 where `token` does not say so."""
        if not token:
            return 0
        try:
            approval = Approval.verified(self._verifier, token)
        except Unauthenticated:
            # What it means for the call, `check` says.
            return 0
        return 0 if _differs(approval, tool, tenant, run_id, key) else approval.again


def _differs(approval: Approval, tool: Tool, tenant: str, run_id: str, key: str) -> str:
    """The name of the first thing that the approval is not for; empty where it is for this call."""
    pairs = (
        ("tenant", approval.tenant, tenant), ("run", approval.run_id, run_id), ("key", approval.key, key),
        ("tool", approval.tool, tool.name), ("version", approval.version, tool.version),
    )  # fmt: skip
    return next((name for name, stated, actual in pairs if stated != actual), "")
