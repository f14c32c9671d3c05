"""Questions about directed graphs: what can be reached from where, and what leads back to itself."""

from collections.abc import Mapping, Sequence

Edges = Mapping[str, Sequence[str]]


def reachable(edges: Edges, start: str) -> set[str]:
    """`start` and all that it leads to."""
    found, ahead = {start}, [start]
    while ahead:
        for target in edges.get(ahead.pop(), ()):
            if target not in found:
                found.add(target)
                ahead.append(target)
    return found


def find_cycles(edges: Edges) -> list[list[str]]:
    """Ways back to where they begin, in order of `edges`; none shares a node with another, and each knot of them is named by one.

    Agents that hand over to each other, by name, are such a graph as well as the steps of a workflow.
    """
    cycles: list[list[str]] = []
    named: set[str] = set()
    for node in edges:
        if node in named:
            continue
        cycle = _way_back(edges, node)
        if cycle:
            cycles.append(cycle)
            # All that leads back to this node is the same knot.
            named.update(other for other in reachable(edges, node) if node in reachable(edges, other))
    return cycles


def _way_back(edges: Edges, start: str) -> list[str]:
    """The shortest way from `start` to itself; empty when there is none."""
    came_from: dict[str, str] = {}
    ahead = [start]
    for node in ahead:
        for target in edges.get(node, ()):
            if target == start:
                way = [node]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target not in came_from:
                came_from[target] = node
                ahead.append(target)
    return []
