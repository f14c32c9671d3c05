"""Reciprocal rank fusion of routes that can each surface a result alone.

Source: Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods" (2009).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The constant of the paper: it damps how much the very first ranks outweigh the next.
K = 60


@dataclass(frozen=True, slots=True)
class Fused:
    """One result: its key, its score and its rank (from 1) on each route that found it."""

    key: str
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)


def fuse(routes: Mapping[str, Sequence[str]], k: int = K) -> list[Fused]:
    """Fuses ranked keys by route name; best first, ties by key so that the order is stable.

    A key that a route lists twice counts at its better rank.
    """
    ranks: dict[str, dict[str, int]] = {}
    for route, keys in routes.items():
        for rank, key in enumerate(dict.fromkeys(keys), start=1):
            ranks.setdefault(key, {})[route] = rank
    found = [Fused(key, sum(1.0 / (k + rank) for rank in by_route.values()), by_route) for key, by_route in ranks.items()]
    found.sort(key=lambda result: (-result.score, result.key))
    return found
