"""Signed approvals: what the orchestrator states of a tool call that was approved, and the tool executor verifies.

token = Approval(tenant, run_id, key, tool, version, digest(arguments), approvers).sign(minter)
approval = Approval.verified(verifier, token)     # raises Unauthenticated
"""

from services.common.approval._signed import Approval, canonical, digest

__all__ = ["Approval", "canonical", "digest"]
