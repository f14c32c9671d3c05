"""Which tool calls of an agent need the approval of a person, whose, and what happens where nobody decides."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Words = Annotated[str, Field(min_length=1, max_length=128)]
MOST_DAYS = 30
DAY_S = 86_400.0


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApproverRule(_Strict):
    """Who may decide: these users, whoever holds one of these scopes, and the user of the run unless four eyes are asked for."""

    users: Sequence[Words] = ()
    scopes: Sequence[Words] = ()
    requester: bool = True


class ApprovalRule(_Strict):
    """When the calls of a tool need an approval, and how it is given.

    `when`: as the tool says, always or never; from `above_cost_microusd` of the run on, and for the tiers named, always. `expires_s`
    counts from the question; `on_expiry` rejects the call or fails the run, and nothing is ever approved by time.
    """

    when: Literal["by_tool", "always", "never"] = "by_tool"
    above_cost_microusd: Annotated[int, Field(ge=0)] | None = None
    tiers: Sequence[Words] = ()
    approvers: ApproverRule = ApproverRule()
    four_eyes: bool = False
    expires_s: Annotated[float, Field(gt=0, le=MOST_DAYS * DAY_S)] = DAY_S
    on_expiry: Literal["reject", "fail"] = "reject"

    @model_validator(mode="after")
    def _decidable(self) -> "ApprovalRule":
        approvers = self.approvers
        if self.four_eyes and not approvers.scopes and len(set(approvers.users)) < 2:
            raise ValueError("four_eyes needs approvers.scopes or two approvers.users: the user of a run never counts")
        if not (approvers.users or approvers.scopes or approvers.requester):
            raise ValueError("approvers must name somebody")
        return self

    def why(self, tool: str, tier: str, cost_microusd: int) -> str:
        """Why a call needs an approval, '' where it does not; `tool` is what the tool says: '', waivable or required."""
        if tool == "required":
            return "by_tool_always"
        if self.when == "always":
            return "by_agent"
        if self.above_cost_microusd is not None and cost_microusd >= self.above_cost_microusd:
            return "by_cost"
        if tier in self.tiers:
            return "by_tier"
        return "by_tool" if tool and self.when == "by_tool" else ""


class ApprovalPolicy(ApprovalRule):
    """The rule of an agent. A tool named in `tools` has a rule of its own, of which nothing is taken from here.

    `ask` false: nobody can be asked, so calls that need an approval are refused, and the model is told so. `unknown_outcome`: a person
    is asked what became of a call of unknown outcome, by this rule's approvers; or the model is told that it is unknown.
    """

    ask: bool = True
    tools: Mapping[str, ApprovalRule] = {}
    unknown_outcome: Literal["ask", "tell"] = "ask"

    def of(self, tool: str) -> ApprovalRule:
        """The rule for a tool."""
        return self.tools.get(tool, self)
