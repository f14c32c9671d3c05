"""What generations of Claude models take, by the version in their names. A deployment's declared capabilities win over it.

Source: the migration guides of the Claude API. 4.5 brought structured outputs; 4.6 ended prefill and brought adaptive thinking; 4.7 ended
thinking budgets and sampling parameters; Opus 4.8 and 5 take system messages in mid-conversation.
"""

import re
from dataclasses import dataclass

_VERSION = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)", re.A)
_NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model takes. `both_samplings` is temperature and top_p together; `known` is False for what is no Claude model."""

    known: bool = False
    prefill: bool = True
    sampling: bool = True
    both_samplings: bool = True
    thinking_budget: bool = True
    adaptive_thinking: bool = False
    structured_output: bool = True
    later_system: bool = False


def traits_of(model: str) -> Traits:
    """The traits of a model by its name; one that is no Claude model is taken to accept what the API has documented longest."""
    name = model.lower()
    if "claude" not in name:
        return Traits()
    found = _VERSION.search(name)
    # A Claude model without a version in its name is newer than this table.
    version = (int(found[2]), int(found[3] or 0)) if found else _NEWEST
    return Traits(
        known=True,
        prefill=version < (4, 6),
        sampling=version < (4, 7),
        both_samplings=version < (4, 1),
        thinking_budget=version < (4, 7),
        adaptive_thinking=version >= (4, 6),
        structured_output=version >= (4, 5),
        later_system=version >= (5, 0) or (version >= (4, 8) and "opus" in name),
    )
