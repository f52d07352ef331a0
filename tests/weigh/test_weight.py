"""One weight a row: factors multiply, are clipped, then normalised."""

import itertools
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data import ids, tables
from rlhf_data.rate.rate import rate
from rlhf_data.shape.paired import to_paired
from rlhf_data.shape.split import split
from rlhf_data.weigh.weight import weigh
from tests.rows import compared, identity, index, rated, text_folder

COUPLES = list(itertools.combinations("abcdef", 2))


def pair(i: int = 0, **changes) -> dict:
    """The i-th pair of two answers; a pair has a margin if it was made of ratings."""
    chosen, rejected = ("abcdef".index(name) for name in COUPLES[i])
    row = {"prompt_row": 0, "chosen_row": chosen, "rejected_row": rejected, "weight": 1.0, "preference": 1.0}
    return row | {"source": "s", "split": "train", "category": None, "margin": None} | changes


def answer(i: int = 0, **changes) -> dict:
    row = {"prompt_row": 0, "completion_row": i, "source": "s", "split": "train", "judgment_rows": [i]}
    return row | {"weight": 1.0, "label": None} | changes


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The step on rows; gives the rows that are left, the quarantine and the count."""
    folder = tmp_path_factory.mktemp("known")
    ratings = [{"completion": name, "kind": "rating", "file": "rated"} for name in "abcdef"]
    verdicts = [{"completion": one, "other": other, "kind": "comparison", "file": "given"} for one, other in COUPLES]
    text = index(folder / "text", judgments=[*ratings, *verdicts])
    (rate := folder / "rate").mkdir()
    tables.write(rated(*({"completion": name} for name in "abcdef")), rate / "rated.parquet", "rated")
    pairs = compared(*({"chosen": one, "rejected": other} for one, other in COUPLES), first=6)
    tables.write(pairs, rate / "compared.parquet", "compared")

    def step(*rows: dict, table: str = "paired", **parameters):
        folder = tmp_path_factory.mktemp("weigh")
        frame = pl.DataFrame(list(rows), infer_schema_length=None) if rows else tables.empty(f"{table}_rows")
        tables.write(frame, folder / "rows.parquet", f"{table}_rows")
        (out := folder / "out").mkdir()
        (count,) = weigh({"shape": folder, "text": text, "rate": rate}, out, table=table, **parameters)
        kept = tables.read(out / "rows.parquet", f"{table}_rows")
        return kept, tables.read(out / "quarantine.parquet", "quarantine"), count

    return step


def weights(found) -> list[float]:
    return found[0]["weight"].to_list()


def test_a_category_that_no_row_has_is_told_with_what_was_meant(step):
    rows = [pair(0, category="math"), pair(1, category="code"), pair(2)]
    found = step(*rows, category={"maths": 2.0, "code": 3.0, "other": 0.5})
    assert weights(found) == [1.0, 3.0, 1.0]
    assert list(found[2].notes) == [
        "weigh.weight.category: no row is of 'maths': did you mean 'math'?",
        "weigh.weight.category: no row is of 'other'; there are code, math",
    ]
    assert list(step(pair(0), category={"x": 2.0})[2].notes) == ["weigh.weight.category: no row is of 'x'"]
    assert not step(*rows, category={"code": 3.0})[2].notes


def test_without_factors_every_weight_is_one(step):
    assert weights(step(pair(0), pair(1))) == [1.0, 1.0]


@settings(deadline=None, max_examples=10)
@given(s=st.floats(0, 10), x=st.floats(0, 10), margin=st.floats(0, 10))
def test_factors_multiply(step, s, x, margin):
    rows = [pair(0, category="x", margin=margin), pair(1, source="t", category="y", margin=margin)]
    found = step(*rows, source={"s": s}, category={"x": x}, row="margin")
    assert weights(found) == pytest.approx([s * x * margin, margin])


def test_what_is_not_named_has_factor_one_and_so_has_what_is_null(step):
    found = step(pair(0, category="x"), pair(1, category="y"), pair(2), category={"x": 2.0})
    assert weights(found) == [2.0, 1.0, 1.0]


def test_a_label_has_its_factor(step):
    rows = [answer(0, label=True), answer(1, label=False), answer(2)]
    assert weights(step(*rows, table="unpaired", label={True: 3.0, False: 0.5})) == [3.0, 0.5, 1.0]


def test_no_weight_is_over_the_clip(step):
    rows = [pair(i, margin=float(i)) for i in range(5)]
    assert weights(step(*rows, row="margin", clip=2.5)) == [0.0, 1.0, 2.0, 2.5, 2.5]


def test_the_mean_is_one_over_the_train_split_after_clipping(step):
    rows = [pair(0, margin=1.0), pair(1, margin=9.0), pair(2, margin=5.0, split="test")]
    # clipped: 1, 3, 3; the mean over train is 2
    assert weights(step(*rows, row="margin", clip=3.0, normalize="mean_one")) == [0.5, 1.5, 1.5]


@pytest.mark.parametrize("rows", [[pair(margin=0.0)], [pair(margin=1.0, split="test")]], ids=["all 0", "no train row"])
def test_a_mean_of_nothing_cannot_be_made_one(step, rows):
    with pytest.raises(ValueError, match="no train row has a weight over 0"):
        step(*rows, row="margin", normalize="mean_one")


def test_a_mean_beyond_floats_cannot_be_made_one(step):
    with pytest.raises(ValueError, match="beyond floats"):
        step(pair(0), pair(1), source={"s": 1.5e308}, normalize="mean_one")


def test_a_temperature_near_zero_leaves_the_largest_source_alone(step):
    rows = [pair(i, source="s" if i else "t") for i in range(6)]
    assert set(step(*rows, temperature=0.0001)[0]["source"]) == {"s"}


@pytest.mark.parametrize(
    ("expression", "margin"),
    [("margin", None), ("margin - 2", 1.0), ("1 / (margin - 2)", 2.0), ("ln(margin - 2)", 1.0), ("exp(margin)", 1e9)],
    ids=["null", "negative", "infinite", "not a number", "too large"],
)
def test_a_weight_that_is_none_is_refused_and_the_other_rows_go_on(step, expression, margin):
    kept, quarantine, count = step(pair(0, margin=margin), pair(1, margin=3.0), row=expression)
    assert kept.select("chosen_row", "rejected_row").rows() == [(0, 2)]
    assert quarantine["code"].to_list() == ["weight.invalid"]
    refused = json.loads(quarantine["row"][0])
    assert (refused["chosen_id"], refused["rejected_id"]) == (identity("a"), identity("b"))
    # a margin is of two ratings, the judgments 0 and 1; the comparison of a and b is judgment 6
    assert quarantine["raw_ref"].to_list() == [["given#6"] if margin is None else ["rated#0", "rated#1"]]
    assert count.quarantined == {"weight.invalid": 1}


def test_a_condition_is_a_weight_of_one_or_nothing(step):
    assert weights(step(pair(0, margin=1.0), pair(1, margin=3.0), row="margin > 2")) == [0.0, 1.0]


def test_an_expression_that_fails_on_a_row_is_an_error_that_names_it(step):
    with pytest.raises(ValueError, match=r"weigh\.weight\.row: CAST\(source AS INT\): "):
        step(pair(0), row="CAST(source AS INT)")


def test_an_answer_whose_weight_is_none_is_refused_with_its_lineage(step):
    kept, quarantine, _ = step(answer(0), answer(1, reward=-1.0), table="unpaired", row="reward")
    assert kept.height == 0
    assert quarantine["raw_ref"].to_list() == [["rated#0"], ["rated#1"]]
    assert [json.loads(row)["completion_id"] for row in quarantine["row"]] == [identity("a"), identity("b")]


@pytest.mark.parametrize("table", ["paired", "unpaired"])
def test_no_rows_have_no_weights(table, step):
    kept, quarantine, count = step(table=table, row="1.0 / votes", source={"s": 2.0}, category={"x": 2.0}, clip=1.0)
    assert (kept.height, quarantine.height, count.rows_in) == (0, 0, 0)


def pair_id(chosen: str, rejected: str) -> str:
    return ids.pair_ids(pl.Series([identity(chosen)]), pl.Series([identity(rejected)]), "pair_id").item()


def learnt(path, key: str, missing: float | None = None) -> dict:
    return {"path": str(path), "key": key, "column": "w", "missing": missing}


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("category", ["x", "y"]),
        ("source", ["s", "t"]),
        ("chosen_id", [identity("a"), identity("b")]),
        ("pair_id", [pair_id("a", "b"), pair_id("b", "c")]),
    ],
)
def test_weights_learnt_elsewhere_multiply_the_others_by_any_key(step, tmp_path, key, keys):
    pl.DataFrame({key: keys, "w": [0.5, 3]}).write_parquet(tmp_path / "w.parquet")
    rows = [pair(0, category="x"), pair(5, category="y", source="t")]  # a over b, b over c
    found = step(*rows, source={"s": 2.0}, learnt=learnt(tmp_path / "w.parquet", key))
    assert weights(found) == [1.0, 3.0]


def test_a_row_without_a_learnt_weight_is_refused_unless_one_is_said_for_it(step, tmp_path):
    (tmp_path / "w.csv").write_text("category,w\nx,0.5\n")
    rows = [pair(0, category="x"), pair(1, category="y"), pair(2)]
    kept, quarantine, count = step(*rows, learnt=learnt(tmp_path / "w.csv", "category"))
    assert kept["weight"].to_list() == [0.5]
    assert (quarantine["code"].to_list(), count.quarantined) == (["weight.missing"] * 2, {"weight.missing": 2})
    assert weights(step(*rows, learnt=learnt(tmp_path / "w.csv", "category", missing=4.0))) == [0.5, 4.0, 4.0]


@pytest.mark.parametrize(("name", "between"), [("w.tsv", "\t"), ("W.CSV", ",")])
def test_a_table_of_weights_is_text_by_its_suffix(step, tmp_path, name, between):
    (tmp_path / name).write_text(f"category{between}w\nx{between}0.5\n")
    assert weights(step(pair(0, category="x"), learnt=learnt(tmp_path / name, "category"))) == [0.5]


def test_a_table_of_weights_that_no_row_is_named_in_is_told(step, tmp_path):
    (tmp_path / "w.csv").write_text("category,w\nx,0.5\n")
    given_weights = learnt(tmp_path / "w.csv", "category", missing=1.0)
    assert step(pair(0, category="x"), pair(1), learnt=given_weights)[2].notes == []
    (note,) = step(pair(0, category="X"), pair(1), learnt=given_weights)[2].notes
    assert note.endswith("has no row's category; each weighs 1")


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("category,v\nx,1\n", "has no column w; it has category, v"),
        ("category,w\nx,heavy\n", "w is 'heavy', not a number"),
        ("category,w\nx,1\nx,2\n", "1 of its keys stand twice, such as category = x"),
    ],
)
def test_a_table_of_weights_that_cannot_be_used_says_why(step, tmp_path, table, what):
    (tmp_path / "w.csv").write_text(table)
    with pytest.raises(ValueError, match=what):
        step(pair(0, category="x"), learnt=learnt(tmp_path / "w.csv", "category"))


def test_a_csv_of_weights_is_read_whole_before_a_column_is_taken_for_numbers(step, tmp_path):
    lines = [f"{k:03},1" for k in range(150)] + ["007x,0.5", "x,"]
    (tmp_path / "w.csv").write_text("\n".join(["category,w", *lines]))
    rows = [pair(0, category="007"), pair(1, category="007x"), pair(2, category="x")]
    kept, quarantine, _ = step(*rows, learnt=learnt(tmp_path / "w.csv", "category"))
    assert (kept["weight"].to_list(), quarantine["code"].to_list()) == ([1.0, 0.5], ["weight.missing"])


def test_a_learnt_weight_that_is_none_is_refused(step, tmp_path):
    pl.DataFrame({"category": ["x", "y"], "w": [float("nan"), -1.0]}).write_parquet(tmp_path / "w.parquet")
    given_weights = learnt(tmp_path / "w.parquet", "category")
    _, quarantine, _ = step(pair(0, category="x"), pair(1, category="y"), learnt=given_weights)
    assert quarantine["code"].to_list() == ["weight.invalid", "weight.invalid"]


def test_a_share_of_tokens_counts_those_of_both_answers_of_a_pair(tmp_path):
    answers = {"short": ("one", "two"), "long": ("one two three four", "one two three four")}
    records = {
        name: [
            {"prompt": f"{name} {i}?", "completion": f"{text} {i}", "rating": rating}
            for i in range(12)
            for text, rating in ((good, 2), (f"{bad} not", 1))
        ]
        for name, (good, bad) in answers.items()
    }
    text = text_folder(tmp_path / "text", records)
    for folder, made in (("rate", rate), ("split", split)):
        (tmp_path / folder).mkdir()
        made({"text": text}, tmp_path / folder)
    steps = {"rate": tmp_path / "rate", "split": tmp_path / "split", "text": text}
    (shape := tmp_path / "shape").mkdir()
    to_paired(steps, shape)
    share = {"short": 0.5, "long": 0.5}
    count_tokens = lambda texts: [len(text.split()) for text in texts]  # noqa: E731
    kept = {}
    for of in ("rows", "tokens"):
        (out := tmp_path / of).mkdir()
        asked = {"table": "paired", "share": share, "of": of, "count_tokens": count_tokens}
        weigh({"shape": shape, "text": text, "rate": steps["rate"]}, out, **asked)
        kept[of] = dict(tables.read(out / "rows.parquet", "paired_rows").group_by("source").len().iter_rows())
    assert kept["rows"] == {"short": 12, "long": 12}
    # A short pair has 2 + 3 tokens and a long one 5 + 6: of 60 tokens, five long pairs are 55, and six would be 66.
    assert kept["tokens"] == {"short": 12, "long": 5}
