"""Ways round in a graph, of steps or of agents that ask each other."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.graphs import find_cycles, reachable

graphs = st.dictionaries(st.sampled_from("abcde"), st.lists(st.sampled_from("abcde"), max_size=3), max_size=5)


def test_a_way_round_is_named_by_its_nodes_in_order_once():
    edges = {"lead": ["sales", "stock"], "sales": ["stock"], "stock": ["audit"], "audit": ["sales"], "desk": ["desk"], "lone": ["lead"]}
    assert find_cycles(edges) == [["sales", "stock", "audit"], ["desk"]]
    assert find_cycles({"a": ["b", "c"], "b": ["c"], "c": ["unknown"]}) == []
    assert reachable(edges, "stock") == {"stock", "audit", "sales"}


@given(graphs)
def test_there_is_a_way_round_exactly_where_one_can_be_walked(edges):
    found = find_cycles(edges)
    for cycle in found:
        assert all(after in edges[before] for before, after in itertools.pairwise([*cycle, cycle[0]]))
    on_one = {node for node in edges if any(node in reachable(edges, target) for target in edges[node])}
    assert bool(found) is bool(on_one)
    # Without the nodes that were named, and those of the same knot, nothing goes round.
    for node in on_one:
        assert any(node in reachable(edges, cycle[0]) and cycle[0] in reachable(edges, node) for cycle in found)
