"""Filtered lists of runs: every run that fits, once and in order, over pages of any size, none of which reads without bound."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.identity import Principal
from services.orchestrator import run_listing
from services.orchestrator.run_listing import Wanted, list_runs

ANA = Principal("acme", "ana")


class Store:
    """Runs with positions, newest first; of some the record is gone."""

    def __init__(self, runs):
        self.runs_ = runs
        self.read = 0

    async def list_members(self, kind, tenant, user, before, size, thread_id=""):
        below = [(number, run) for number, run in enumerate(self.runs_, 1) if not before or number < before]
        found = [(run.run_id if kind == "thread" else f"t/{run.run_id}", number) for number, run in reversed(below)][:size]
        self.read += len(found)
        return found

    async def runs(self, refs):
        known = {run.run_id: run for run in self.runs_ if run.there}
        return [known[ref.run_id] for ref in refs if ref.run_id in known]


def a_run(number, status, agent, there):
    return SimpleNamespace(run_id=f"r{number}", status=status, spec=SimpleNamespace(agent=agent), there=there)


kinds = st.tuples(st.sampled_from(["running", "failed", "succeeded"]), st.sampled_from(["one", "two"]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(
    made=st.lists(kinds, max_size=40), statuses=st.frozensets(st.sampled_from(["running", "failed"])), agent=st.sampled_from(["", "one"]),
    size=st.integers(1, 7), thread=st.sampled_from(["", "t"]), chunk=st.integers(1, 9), most=st.integers(1, 20),
)  # fmt: skip
def test_all_that_fit_are_listed_once_newest_first(made, statuses, agent, size, thread, chunk, most):
    store = Store([a_run(number, *kind) for number, kind in enumerate(made)])
    wanted = Wanted(statuses, agent)

    async def pages():
        found, before = [], 0
        while True:
            store.read = 0
            page, rest = await list_runs(store, ANA, thread, wanted, size, before)
            assert len(page) <= size
            # Each time one more than is looked at, to know whether that is all.
            assert store.read <= most + -(-most // chunk) + (size + 1 if wanted.all else 0)
            found += [run.run_id for run in page]
            if not rest:
                return found
            assert not before or rest < before
            before = rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_listing, "CHUNK", chunk)
        patch.setattr(run_listing, "MOST_LOOKED_AT", most)
        found = asyncio.run(pages())
    expected = [run for run in reversed(store.runs_) if run.there and (not statuses or run.status in statuses)]
    assert found == [run.run_id for run in expected if agent in ("", run.spec.agent)]
