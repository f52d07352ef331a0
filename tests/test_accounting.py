"""No row is lost: what enters a step leaves it, or is accounted for by a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data.accounting import Count, lost, total

reasons = st.dictionaries(st.sampled_from(["a.b", "c.d", "tie"]), st.integers(1, 9), max_size=3)


@given(out=st.integers(0, 99), merged=reasons, quarantined=reasons, filtered=reasons, lost=st.integers(-9, 9))
def test_a_count_exists_only_if_every_row_is_accounted_for(out, merged, quarantined, filtered, lost):
    left = sum(map(sum, (merged.values(), quarantined.values(), filtered.values())))
    arguments = ("step", "rows", out + left + lost, out, merged, quarantined, filtered)
    if lost == 0:
        assert Count(*arguments).as_dict()["rows_in"] == out + left
    else:
        with pytest.raises(RuntimeError, match=rf"step: .* {lost} are lost"):
            Count(*arguments)


def test_a_total_adds_up_reasons_over_steps():
    counts = [Count("a", "rows", 3, 0, quarantined={"x.y": 3}), Count("b", "rows", 2, 0, {}, {"x.y": 1, "z.z": 1})]
    assert total(counts, "quarantined") == {"x.y": 4, "z.z": 1}


def test_what_was_lost_is_counted_once_however_many_units_speak_of_it():
    counts = [
        Count("read:a", "records", 3, 2, quarantined={"json.invalid": 1}),
        Count("read:b", "records", 3, 1, quarantined={"json.invalid": 2}),
        *(Count("clean:1", unit, 4, 0, quarantined={"text.email": 4}) for unit in ("completions", "judgments")),
        Count("rate", "judgments", 2, 1, quarantined={"rating.out_of_scale": 1}),
        Count("shape", "pairs", 2, 1, filtered={"tie": 1}),
    ]
    told = [count.as_dict() for count in counts]
    assert lost(told, "quarantined") == {"json.invalid": 3, "text.email": 4, "rating.out_of_scale": 1}
    assert lost(told, "quarantined", "filtered").total() == 9
    assert lost([], "filtered") == {}
