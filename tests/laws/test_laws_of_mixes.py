"""Laws of the mix and of weights: which rows are drawn, and what each counts for."""

from collections import Counter
from fractions import Fraction
from math import sqrt

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from rlhf_data import ids
from rlhf_data.weigh.mix import mix, targets
from tests.laws import oracle, raw
from tests.laws.oracle import Row
from tests.laws.raw import laws
from tests.laws.way import Folder, close

PARTS = tuple(Fraction(n, 10) for n in range(11))
rows = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from("stu"), st.sampled_from(("train", "train", "test"))),
    max_size=40,
    unique_by=lambda row: row[0],
).map(lambda rows: [Row(oracle.prompt_id(str(number)), source, split) for number, source, split in rows])
seeds = st.integers(0, 3)
a_part_each = st.fixed_dictionaries({source: st.sampled_from(PARTS) for source in "stu"})
a_part_of_one = st.dictionaries(st.sampled_from("stu"), st.sampled_from(PARTS[1:]), min_size=1, max_size=1)
a_part_of_some = st.builds(dict.__or__, a_part_each, a_part_of_one)
one_of_each = [Row(oracle.prompt_id(f"of {source}"), source, "train") for source in "stu"]
a_count_each = st.fixed_dictionaries({source: st.integers(0, 9) for source in "stu"})


def kept(rows, *, seed=0, **asked):
    """The identities of the rows that the mix draws."""
    frame = pl.DataFrame(
        [(row.identity, row.source, row.split) for row in rows],
        schema={"identity": pl.String, "source": pl.String, "split": pl.String},
        orient="row",
    )
    asked = {
        key: {k: float(v) if isinstance(v, Fraction) else v for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in asked.items()
    }
    lots = ids.keyed_hash(frame["identity"], "mix", seed)
    stays, left_out = mix(frame, lots, pl.repeat(1.0, frame.height, eager=True), **asked)
    assert frame.height - stays.sum() == sum(left_out.values())
    return set(frame.filter(stays)["identity"])


@laws
@given(rows=rows, keep=a_part_each, most=a_count_each, seed=seeds)
def test_the_rows_of_a_mix_are_those_with_the_smallest_lots(rows, keep, most, seed):
    for asked in ({"keep": keep}, {"most": most}, {"keep": keep, "most": most}):
        assert kept(rows, seed=seed, **asked) == oracle.drawn(rows, seed=seed, **asked)


@laws
@given(rows=rows.map(one_of_each.__add__), share=a_part_of_some, seed=seeds)
def test_shares_are_of_the_largest_mix_that_no_source_is_too_small_for(rows, share, seed):
    there = Counter(row.source for row in rows if row.split == "train")
    found = kept(rows, seed=seed, share=share)
    assert found == oracle.drawn(rows, seed=seed, share=share)
    drawn = Counter(row.source for row in rows if row.split == "train" and row.identity in found)
    whole = min(there[source] / part for source, part in share.items() if part)
    assert all(0 <= whole * part - drawn[source] < 1 for source, part in share.items())
    assert any(part and drawn[source] == there[source] for source, part in share.items())


@laws
@given(rows=rows, more=rows, keep=a_part_each, most=a_count_each, seed=seeds)
def test_rows_that_arrive_bring_back_no_row_that_was_left_out(rows, more, keep, most, seed):
    known = {row.identity for row in rows}
    every = [*rows, *(row for row in more if row.identity not in known)]
    assert kept(every, seed=seed, keep=keep) & known == kept(rows, seed=seed, keep=keep)
    assert kept(every, seed=seed, most=most) & known <= kept(rows, seed=seed, most=most)


@laws
@given(rows=rows, low=a_part_each, high=a_part_each, most=a_count_each, seed=seeds)
def test_who_asks_for_more_gets_all_that_they_had(rows, low, high, most, seed):
    either = {source: max(low[source], high[source]) for source in "stu"}
    assert kept(rows, seed=seed, keep=low) <= kept(rows, seed=seed, keep=either)
    above = {source: n + 1 for source, n in most.items()}
    assert kept(rows, seed=seed, most=most) <= kept(rows, seed=seed, most=above)


@laws
@given(rows=rows, keep=a_part_each, most=a_count_each, draw=st.randoms(use_true_random=False))
def test_the_order_of_rows_draws_no_other_row(rows, keep, most, draw):
    asked = {"keep": keep, "most": most, "temperature": 2.0}
    assert kept(rows, **asked) == kept(draw.sample(rows, len(rows)), **asked)


@laws
@given(rows=rows, keep=a_part_each, most=a_count_each)
def test_held_out_rows_are_in_every_mix(rows, keep, most):
    held_out = {row.identity for row in rows if row.split != "train"}
    assert held_out <= kept(rows, keep=keep, most=most, temperature=4.0)


@laws
@given(rows=rows)
def test_a_temperature_of_one_leaves_the_sources_as_they_are_and_of_two_their_roots(rows):
    assert kept(rows, temperature=1.0) == {row.identity for row in rows}
    there = Counter(row.source for row in rows if row.split == "train")
    found = kept(rows, temperature=2.0)
    drawn = Counter(row.source for row in rows if row.split == "train" and row.identity in found)
    if there:
        smallest = min(there.values())  # of which all is taken
        wanted = {source: int(sqrt(smallest * n) * (1 + 1e-12)) for source, n in there.items()}
        assert drawn == wanted


@laws
@given(amounts=st.dictionaries(st.sampled_from("stu"), st.integers(1, 100), min_size=1), data=st.data())
def test_targets_have_the_parts_asked_for_and_take_a_source_whole(amounts, data):
    asked = {source: data.draw(st.sampled_from(PARTS)) for source in amounts}
    asked |= {data.draw(st.sampled_from(sorted(asked))): data.draw(st.sampled_from(PARTS[1:]))}  # some part at all
    found = targets({k: float(v) for k, v in amounts.items()}, {k: float(v) for k, v in asked.items()})
    whole = sum(found.values())
    for source, part in asked.items():
        assert abs(found[source] - whole * float(part / sum(asked.values()))) < 1e-9
        assert found[source] <= amounts[source] * (1 + 1e-12)
    assert any(abs(found[source] - amount) < 1e-9 for source, amount in amounts.items() if asked[source])


FACTORS = tuple(Fraction(n, 2) for n in range(5))
factors = st.fixed_dictionaries(
    {
        "source": st.dictionaries(st.sampled_from(raw.SOURCES), st.sampled_from(FACTORS)),
        "category": st.dictionaries(st.sampled_from("cd"), st.sampled_from(FACTORS)),
        "clip": st.sampled_from((None, Fraction(1, 2), Fraction(2))),
    }
)


def as_rows(found):
    margin = {row["pair_id"]: row["margin"] for row in found}
    return [
        Row(row["pair_id"], row["source"], row["split"], row["category"], None if m is None else Fraction(m))
        for row, m in zip(found, margin.values(), strict=True)
    ]


def with_ids(found):
    return [row | {"pair_id": oracle.pair_id(row["chosen_id"], row["rejected_id"])} for row in found]


@laws
@given(seen=raw.observations(), asked=factors, by_margin=st.booleans(), mean_one=st.booleans())
def test_a_weight_is_the_product_of_its_factors_clipped_then_divided_by_the_mean(seen, asked, by_margin, mean_one):
    written = {
        key: {k: float(v) for k, v in value.items()} if isinstance(value, dict) else value and float(value)
        for key, value in asked.items()
    }
    row = (lambda one: one.margin) if by_margin else None
    with Folder().hold(seen).rated() as way:
        shaped = as_rows(with_ids(way.shaped("paired", pairing="all", test=0.4)))
        plain = oracle.weights(shaped, **asked, row=row)
        train = [plain[one.identity] for one in shaped if one.split == "train" and one.identity in plain]
        if mean_one and not any(train):
            return
        told = {"row": "margin" if by_margin else None, "normalize": "mean_one" if mean_one else None}
        found = {one["pair_id"]: one["weight"] for one in with_ids(way.weighed(**written, **told))}
        refused = way.quarantine("weigh")
    wanted = oracle.weights(shaped, **asked, row=row, mean_one=mean_one)
    assert found.keys() == wanted.keys() and len(refused) == len(shaped) - len(wanted)
    assert all(close(found[key], weight) for key, weight in wanted.items())
    if mean_one:
        assert abs(sum(found[one.identity] for one in shaped if one.split == "train" and one.identity in found)
                   / len(train) - 1) < 1e-9  # fmt: skip
    elif asked["clip"] is not None:
        assert all(weight <= asked["clip"] for weight in found.values())


@laws
@given(seen=raw.observations(), keep=a_part_each, most=a_count_each, seed=seeds)
def test_the_mix_of_a_table_is_drawn_by_the_ids_of_its_rows_and_counted(seen, keep, most, seed):
    with Folder().hold(seen).rated() as way:
        before = with_ids(way.shaped("paired", pairing="all", ties="soft", test=0.3))
        after = with_ids(way.weighed(keep={k: float(v) for k, v in keep.items()}, rows=most, seed=seed))
        (count,) = way.counts["weigh"]
    wanted = oracle.drawn(as_rows(before), keep=keep, most=most, seed=seed)
    assert after == [row for row in before if row["pair_id"] in wanted]
    assert (count.rows_in, count.out) == (len(before), len(after))
