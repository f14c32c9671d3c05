"""Values that nobody expects, for the parsers of all dialects."""

from hypothesis import strategies as st

from services.simulator.refusals import Refused

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=8,
)


def well_refused(refused: Refused) -> None:
    """Checks that it is the caller's fault, and that they are told why."""
    assert refused.status == 400
    assert refused.message
