"""Requests that are nearly right: what a caller's mistake looks like, for hypothesis."""

from hypothesis import strategies as st

NOW = 1_100_000_000

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["id3", "5", NOW, -1, 2**63, "\ud800", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ids = st.sampled_from(["id3", "id4", "id9", "nowhere", "", 7])
times = st.integers(NOW - 10**8, NOW)


@st.composite
def requests(draw):
    """One request, right in most cases, with at most one column replaced by anything."""
    length = draw(st.integers(0, 6))

    def column(of):
        return st.lists(of, min_size=length, max_size=length)

    request = {
        "request_time": NOW,
        "item_ids": draw(column(ids)),
        "timestamps": draw(column(times)),
        "actions": draw(st.none() | column(st.sampled_from(["1", "5", "new", None, 5]))),
        "session_ids": draw(st.none() | column(st.sampled_from(["a", "b", None, 3]))),
    }
    if draw(st.booleans()):
        name = draw(st.sampled_from([*request, "other"]))
        request[name] = draw(values)
    elif draw(st.booleans()):
        request.pop(draw(st.sampled_from(list(request))))
    return request


@st.composite
def bodies(draw):
    """The body of POST /recommend."""
    body = {"requests": draw(st.lists(requests(), min_size=1, max_size=3))}
    if draw(st.booleans()):
        body["k"] = draw(st.integers(1, 12) | values)
    if draw(st.booleans()):
        body["like_weight"] = draw(st.floats(0, 100) | values)
    for name in ("allow", "deny"):
        if draw(st.integers(0, 3)) == 0:
            body[name] = draw(st.lists(ids, max_size=4) | values)
    return body
