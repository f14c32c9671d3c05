"""Reciprocal rank fusion."""

from hypothesis import given
from hypothesis import strategies as st

from services.memory.fusion import K, fuse

KEYS = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@given(KEYS, KEYS)
def test_every_key_of_every_route_comes_once_by_falling_score_with_its_ranks(dense, keyword):
    found = fuse({"dense": dense, "keyword": keyword})
    assert {f.key for f in found} == {*dense, *keyword}
    assert len(found) == len({f.key for f in found})
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    for fused in found:
        for route, keys in (("dense", dense), ("keyword", keyword)):
            unique = list(dict.fromkeys(keys))
            assert fused.ranks.get(route) == (unique.index(fused.key) + 1 if fused.key in unique else None)
        assert abs(fused.score - sum(1 / (K + rank) for rank in fused.ranks.values())) < 1e-12


@given(KEYS, KEYS)
def test_the_order_of_routes_does_not_matter(dense, keyword):
    one = [(f.key, f.score) for f in fuse({"dense": dense, "keyword": keyword})]
    other = [(f.key, f.score) for f in fuse({"keyword": keyword, "dense": dense})]
    assert [key for key, _ in one] == [key for key, _ in other]


def test_a_result_of_one_route_is_never_cut_by_the_other():
    found = fuse({"dense": ["a", "b", "c"], "keyword": ["z"]})
    assert {f.key for f in found[:2]} == {"a", "z"}


def test_two_first_ranks_beat_one_and_k_is_sixty():
    found = fuse({"dense": ["a", "b"], "keyword": ["b", "a", "c"]})
    assert found[2].key == "c"
    assert found[2].score == 1 / 63
