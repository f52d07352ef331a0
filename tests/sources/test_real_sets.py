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


@pytest.mark.parametrize(("language", "prompts", "systems"), [("en", 295, 80), ("zh", 289, 64)])
def test_llamafactory_dpo(language, prompts, systems, real):
    found = real(f"llamafactory_dpo_{language}_demo/*.json", adapter="llamafactory_dpo")
    assert (found.judgments.height, found.quarantine.height) == (300, 0)
    assert found.judgments.unique(["prompt_id", "completion_id", "other_id"]).height == prompts
    # Eight rows of the Chinese file and five of the English one repeat another of the 300.
    first = pl.col("prompt").list.get(0).struct.field("role")
    rows = found.judgments.join(found.prompts, on="prompt_id")
    assert rows.filter(first == "system").height == systems


ARENA_BENCH = {
    "judgments": "arena_bench_scores/model_judgment__*",
    "answers": "arena_bench_scores/model_answer__*",
    "questions": "arena_bench_scores/question.jsonl.gz",
}


def test_arena_bench_gives_no_score_to_a_text_that_nobody_scored(real):
    found = real(ARENA_BENCH, adapter="arena_bench")
    refused = found.quarantine.group_by(
        "code", file=pl.col("raw_ref").list.first().str.extract("__(.*?)[.]jsonl")
    ).len()
    assert found.records.rows_in == 1800
    assert refused.filter(pl.col("code") == "text.mismatch").rows() == [("text.mismatch", "Llama-2-70b-chat", 195)]
    missing = refused.filter(pl.col("code") == "rating.missing")
    # Sixteen scores are null; one of them is of a text that is not in the answer file.
    assert missing["len"].sum() == 15
    assert found.judgments.height == 1800 - 195 - 15
    scores = found.judgments.join(found.completions, on="completion_id").filter(pl.col("model") == "gpt-4-0314")[
        "value"
    ]
    assert ((scores == 10).sum(), (scores == 9).sum()) == (114, 95)


def test_arena_bench_without_llama_has_the_pairs_that_were_counted(real):
    found = real({**ARENA_BENCH, "judgments": "arena_bench_scores/model_judgment__[!L]*"}, adapter="arena_bench")
    assert found.records.rows_in == 1500
    assert found.records.quarantined == {"rating.missing": 15}


FASTCHAT = {
    "reviews": "fastchat_vicuna_reviews/review__*",
    "answers": "fastchat_vicuna_reviews/answer__*",
    "questions": "fastchat_vicuna_reviews/question.jsonl",
}


def test_fastchat_reviews(real):
    found = real(FASTCHAT, adapter="fastchat_reviews")
    assert found.quarantine.height == 0
    assert found.judgments["value"].value_counts(sort=True).rows() == [(0.0, 451), (1.0, 198), (0.5, 71)]
    assert found.prompts.height == 80
    assert set(found.judgments["position"]) == {"first"}
    assert set(found.judgments["annotator"]) >= {"1", "2", "3"}
    rated = real(FASTCHAT, adapter="fastchat_reviews", options={"judgment": "rating"})
    assert rated.judgments.height == 1440
    assert (rated.judgments["value"] % 1 != 0).sum() == 67


FINEGRAINED = "finegrained_qa_feedback/dev_feedback.json.gz"


def test_finegrained_qa_keeps_the_verdicts_that_fit_no_ranking(real):
    found = real(FINEGRAINED, adapter="finegrained_qa")
    assert found.records.out == 500
    assert found.judgments["value"].value_counts(sort=True).rows() == [(1.0, 1577), (0.0, 1039), (0.5, 384)]
    assert found.prompts.height == 500
    by_record = found.judgments.group_by("raw_ref").agg(tie=(pl.col("value") == 0.5).sum())
    assert by_record.filter(tie=0).height == 298
    assert by_record.filter(tie=6).height == 12


def test_finegrained_qa_counts_the_marked_errors_of_the_first_answer(real):
    found = real(FINEGRAINED, adapter="finegrained_qa", options={"judgment": "errors"})
    counted = found.judgments.group_by("aspect").agg(pl.col("value").sum()).rows()
    assert dict(counted) == {
        "Irrelevant": -909,
        "Wrong-Grounding": -163,
        "Unverifiable": -152,
        "Redundant": -133,
        "Incoherent": -16,
        "missing-info": -842,
    }
    assert found.quarantine.height == 0


def test_prometheus(real):
    found = real("prometheus_vicuna_eval/vicuna_eval.json.gz", adapter="prometheus")
    assert found.quarantine.height == 0
    assert found.judgments["value"].value_counts().sort("value")["count"].to_list() == [12, 41, 80, 489, 338]
    assert found.prompts.height == 80
    assert set(found.judgments["annotator"]) == {"gpt4-1", "gpt4-2", "gpt4-3"}
    sums = found.judgments.group_by("prompt_id", "completion_id").agg(pl.col("value").sum())
    tied = sums.group_by("prompt_id").agg(pl.col("value").n_unique() < pl.len())
    assert tied["value"].sum() == 71


def test_mqm_sums_the_errors_of_each_output(real):
    found = real("wmt21_ted_mqm_zhen/*.gz", adapter="mqm")
    assert (found.records.rows_in, found.judgments.height) == (9915, 7935)
    assert found.records.filtered == {"error.summed": 9915 - 7935}
    assert (found.judgments["value"] == 0).sum() == 4297
    assert found.judgments["value"].min() == -25
    assert found.judgments["annotator"].n_unique() == 9
    assert found.completions["model"].n_unique() <= 15


IMAGE_RANKS = "SELECT record, prompt, unnest(generations) AS completion, unnest(ranking) AS rank FROM raw"


def test_image_reward_keeps_ties_and_gaps_of_its_rankings(real):
    found = real("image_reward_rankings/test.json", sql=IMAGE_RANKS)
    assert found.records.out == 466
    ranks = found.judgments.select("value", record="raw_ref")
    sizes = ranks.group_by("record").len()["len"].value_counts().sort("len")["count"].to_list()
    assert sizes == [194, 2, 45, 159, 43, 23]
    pairs = (
        ranks.with_row_index().join(ranks.with_row_index(), on="record").filter(pl.col("index") < pl.col("index_right"))
    )
    strict = pairs.filter(pl.col("value") != pl.col("value_right"))
    assert (strict.height, pairs.height - strict.height) == (6399, 831)


PANDALM_JUDGE = """
    SELECT judged.record, response1 AS completion, response2 AS other, 'pandalm-7b' AS annotator,
        instruction || CASE WHEN trim(input) = '' THEN '' ELSE chr(10) || chr(10) || input END AS prompt,
        CASE pandalm_result WHEN 1 THEN 1.0 WHEN 2 THEN 0.0 WHEN 0 THEN 0.5 END AS preference
    FROM judged JOIN pairs USING (idx)
"""


def test_the_verdicts_of_pandalm_are_joined_to_the_texts_they_are_about(real):
    files = {"judged": "pandalm/pandalm-7b-testset-v1.json", "pairs": "pandalm/testset-v1.json"}
    found = real(files, sql=PANDALM_JUDGE)
    # 433 / 459 / 107, less the six records whose answers are booleans
    verdicts = dict(found.judgments["value"].value_counts().rows())
    assert sum(verdicts.values()) == 999 - 6
    assert all(verdicts[value] <= count for value, count in ((1.0, 433), (0.0, 459), (0.5, 107)))
    assert found.codes() == ["column.type"] * 6
    assert found.records.filtered == {"sql": 6}
    assert found.judgments["raw_ref"][0] == "pandalm-7b-testset-v1.json#0"


LLMFAO_JUDGE = """
    SELECT votes.record, text AS prompt, result_x AS completion, result_y AS other, 'gpt-4' AS annotator,
        type AS category, CASE winner WHEN 'left' THEN 1.0 WHEN 'right' THEN 0.0 WHEN 'tie' THEN 0.5 END AS preference,
        'first' AS position
    FROM votes JOIN battles ON votes.id = CAST(battles.id AS VARCHAR)
"""


def test_the_verdicts_of_a_judge_on_llmfao_are_joined_to_their_battles(real):
    files = {"votes": "llmfao/gpt4-crowd-comparisons.csv", "battles": "llmfao/pairs-crowd.jsonl.gz"}
    found = real(files, sql=LLMFAO_JUDGE)
    assert found.judgments.height == 2139
    assert (found.judgments["value"] == 0.5).sum() == 66
    assert found.quarantine.height == 0


def test_shapes_that_have_no_adapter_are_read_by_their_columns(real):
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
        sql="""SELECT any_value(regexp_replace(source, '</?v>', '', 'g')) AS prompt,
            any_value(regexp_replace(target, '</?v>', '', 'g')) AS completion,
            rater AS annotator, system AS model,
            -sum(CASE severity WHEN 'Major' THEN 5 WHEN 'Minor' THEN 1 ELSE 0 END) AS rating
            FROM raw GROUP BY doc, doc_id, seg_id, system, rater""",
    )
    assert found.judgments.height == 7935
    assert (found.judgments["value"] == 0).sum() == 4297
    assert found.records.filtered == {"sql": 9915 - 7935}
