"""The counts of SOURCE.md beside each real data set, as the step gives them."""

import polars as pl
import pytest

LLMFAO = {
    "votes": "llmfao/crowd-comparisons.csv",
    "battles": "llmfao/pairs-crowd.jsonl.gz",
    "models": "llmfao/models.jsonl",
}


@pytest.fixture
def real(raw, run):
    def _real(places, **given):
        named = places if isinstance(places, dict) else {"raw": places}
        return run({table: sorted(map(str, raw.glob(place))) for table, place in named.items()}, **given)

    return _real


def test_hh_rlhf(real):
    found = real("hh_rlhf_harmless/test.jsonl.gz", adapter="hh_rlhf")
    assert (found.records.rows_in, found.records.out) == (2312, 2307)
    assert found.records.quarantined == {"prompt.mismatch": 5}
    assert found.quarantine["raw_ref"].explode().to_list() == [
        f"test.jsonl.gz#{i}" for i in (1254, 1688, 1950, 1952, 2036)
    ]
    chosen = found.judgments.join(found.completions, on="completion_id").filter(pl.col("completion") == "")
    assert sorted(chosen["raw_ref"]) == sorted(f"test.jsonl.gz#{i}" for i in (86, 516, 925, 1103))


def test_llmbar(real):
    found = real("llmbar/*.json", adapter="llmbar")
    assert found.judgments.height == 419
    assert found.judgments.group_by(pl.col("raw_ref").str.extract(r"(.*)\.json")).agg(
        (pl.col("value") == 1).sum()
    ).sort("raw_ref")["value"].to_list() == [45, 22, 22, 75, 42]
    assert found.completions["category"].n_unique() == 5
    assert found.prompts.height == 418


def test_pandalm(real):
    found = real("pandalm/testset-v1.json", adapter="pandalm")
    assert found.records.quarantined == {"column.type": 6}
    assert found.judgments.height == 2997 - 6 * 3
    assert found.prompts.height == 170
    refused = found.quarantine["raw_ref"].explode().to_list()
    assert refused == [f"testset-v1.json#{i}" for i in (157, 158, 159, 161, 162, 164)]


def test_llmfao(real):
    found = real(LLMFAO, adapter="llmfao")
    votes = found.judgments["value"].value_counts(sort=True).rows()
    assert votes == [(0.5, 3471), (1.0, 2911), (0.0, 2549)]
    assert found.judgments["annotator"].n_unique() == 124
    assert found.prompts.height == 13
    assert found.quarantine.height == 0
    assert found.judgments["raw_ref"][-1] == "crowd-comparisons.csv#8930"


def test_llmfao_limits_the_votes_and_not_the_battles(real):
    assert real(LLMFAO, adapter="llmfao", limit=100).judgments.height == 100


ALPACA = [
    ("claude-2*", {"verdict": "probability"}, {"pair.identical": 1}),
    ("phi-2*", {"verdict": "code", "tie": 0}, {"pair.identical": 22, "verdict.missing": 6}),
    ("gemini-pro*", {"verdict": "code", "tie": 1.5}, {"pair.identical": 4, "verdict.missing": 1}),
]


@pytest.mark.parametrize(("file", "options", "refused"), ALPACA, ids=["claude-2", "phi-2", "gemini-pro"])
def test_alpaca_eval(file, options, refused, real):
    found = real(f"alpaca_eval/{file}", adapter="alpaca_eval", options=options)
    assert found.records.rows_in == 805
    assert found.records.quarantined == refused
    first = found.judgments.filter(pl.col("value") > 0.5).height
    assert first == {"claude-2*": 673, "phi-2*": 543, "gemini-pro*": 665}[file]


def test_oasst(real):
    found = real("oasst_en_100/en_100_tree.jsonl", adapter="oasst")
    ranks = found.judgments.select("prompt_id", "value")
    assert ranks.join(ranks, on="prompt_id").filter(pl.col("value") < pl.col("value_right")).height == 754
    assert found.prompts.height == 212
    assert found.observations.filtered == {"rank.missing": 46}
    assert found.records.out == 100


def test_llamafactory_kto(real):
    found = real("llamafactory_kto_en_demo/kto_en_demo.json", adapter="llamafactory_kto")
    assert found.judgments["value"].sum() == 150
    assert (found.judgments.height, found.prompts.height) == (300, 297)


def test_shapes_that_have_no_adapter_are_read_by_their_columns(real):
    turns = {
        "from": "conversations",
        "role": "from",
        "content": "value",
        "roles": {"human": "user", "gpt": "assistant"},
    }
    dpo = real(
        "llamafactory_dpo_en_demo/*.json",
        columns={"prompt": turns, "chosen": "chosen.value", "rejected": "rejected.value"},
    )
    assert (dpo.judgments.height, dpo.prompts.height) == (300, 295)
    selected = {"from": "annotations[0].result[0].value.selected", "map": {"left": 1, "right": 0}}
    studio = real(
        "label_studio_pairwise/*.json",
        columns={
            "prompt": "data.prompt",
            "completion": "data.answer1",
            "other": "data.answer2",
            "preference": selected,
        },
    )
    assert studio.judgments["value"].sum() == 18
    factual = {"from": "is_factual", "map": {"yes": True, "no": False, "NULL": None}}
    xsum = real("xsum_factuality/*.csv", columns={"prompt": "bbcid", "completion": "summary", "label": factual})
    assert (xsum.judgments["value"] == 1).sum() == 582
    assert xsum.records.filtered == {"value.left_out": 33}


def test_a_query_sums_marked_errors_to_a_rating(real):
    found = real(
        "wmt21_ted_mqm_zhen/*.gz",
        sql="""SELECT any_value(source) AS prompt, any_value(regexp_replace(target, '</?v>', '', 'g')) AS completion,
            rater AS annotator, system AS model,
            -sum(CASE severity WHEN 'Major' THEN 5 WHEN 'Minor' THEN 1 ELSE 0 END) AS rating
            FROM raw GROUP BY doc, doc_id, seg_id, system, rater""",
    )
    assert found.judgments.height == 7935
    assert (found.judgments["value"] == 0).sum() == 4297
    assert found.records.filtered == {"sql": 9915 - 7935}
