"""Who pays for a call, out of which budgets: the limits of a principal as a plan that a purse can follow without further work.

plans = Plans(accounts, tier_policy, subjects)
plan = plans.known(principal, "gpt") or await plans.find(principal, "gpt")     # PermissionDenied for a model that is not allowed
"""

from services.llm_gateway.accounting.plans import Account, Caps, Holder, LimitsOf, Plan, Plans, SubjectsOf, run_holder
from services.llm_gateway.accounting.states import Budget, BudgetStates, RateLimit, Threshold
from services.llm_gateway.accounting.subjects import Subject

__all__ = [
    "Account",
    "Budget",
    "BudgetStates",
    "Caps",
    "Holder",
    "LimitsOf",
    "Plan",
    "Plans",
    "RateLimit",
    "Subject",
    "SubjectsOf",
    "Threshold",
    "run_holder",
]
