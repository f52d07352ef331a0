import json

import polars as pl
import pytest

from rlhf_data.sources import alpaca_eval, hh_rlhf, llmbar, llmfao, oasst, pandalm, ultrafeedback


def frame(*rows, **types):
    return pl.DataFrame(rows, schema_overrides=types).with_row_index("record")


def codes(read):
    return read.rejects["code"].to_list()


def test_hh_splits_at_the_last_reply_even_if_replies_begin_alike():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = hh_rlhf.read(frame({"chosen": f"{start} No, x", "rejected": f"{start} No, y"})).rows
    assert rows["prompt"].to_list() == [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    ]
    assert rows.select("completion", "other", "value").rows() == [("No, x", "No, y", 1.0)]


def test_hh_keeps_an_empty_reply_and_refuses_dialogues_that_differ_before_it():
    start = "\n\nHuman: a\n\nAssistant:"
    read = hh_rlhf.read(
        frame(
            {"chosen": f"{start} ", "rejected": f"{start} no"},
            {"chosen": f"{start} x\n\nHuman: b\n\nAssistant: y", "rejected": f"{start} x"},
            {"chosen": "hello", "rejected": f"{start} x"},
            {"chosen": None, "rejected": f"{start} x"},
        )
    )
    assert read.rows.select("completion", "other").rows() == [("", "no")]
    assert sorted(codes(read)) == ["dialogue.malformed", "dialogue.malformed", "prompt.mismatch"]


def test_llmbar_takes_the_subset_from_the_file_name():
    rows = [{"input": "p", "output_1": "a", "output_2": "b", "label": label} for label in (1, 2, 3)]
    read = llmbar.read(frame(*rows), file="Adversarial_Manual.json.gz")
    assert read.rows.select("value", "category").rows() == [(1.0, "Adversarial_Manual"), (0.0, "Adversarial_Manual")]
    assert codes(read) == ["verdict.unknown"]


def pandalm_row(*votes, **change):
    names = dict(zip(pandalm.ANNOTATORS, votes, strict=True))
    return {"instruction": "do", "input": "", "response1": "a", "response2": "b", "cmp_key": "m_n", **names, **change}


def test_pandalm_gives_one_comparison_for_each_annotator():
    read = pandalm.read(frame(pandalm_row(1, 2, 0), pandalm_row(1, 7, None, input="x")))
    assert read.rows["value"].to_list() == [1.0, 0.0, 0.5, 1.0, None]
    assert read.rows["annotator"].to_list() == ["annotator1", "annotator2", "annotator3", "annotator1", "annotator3"]
    assert read.rows["prompt"].unique(maintain_order=True).to_list() == ["do", "do\n\nx"]
    assert set(read.rows.select("model", "other_model").rows()) == {("m", "n")}
    assert read.rejects["detail"].to_list() == ["annotator2 is 7, not one of 1, 2, 0"]


def test_pandalm_without_a_tie_code_refuses_ties():
    assert codes(pandalm.read(frame(pandalm_row(1, 2, 0)), tie=None)) == ["verdict.unknown"]


def alpaca_rows(*preferences):
    texts = dict.fromkeys(
        ("instruction", "output_1", "output_2", "generator_1", "generator_2", "dataset", "annotator"), "t"
    )
    return frame(*({**texts, "preference": p} for p in preferences), preference=pl.Float64)


@pytest.mark.parametrize(
    ("options", "values", "refused"),
    [
        ({"verdict": "probability"}, [1.0, 0.0, 0.5, 0.75, None], 1),
        ({"verdict": "code"}, [1.0, 0.0, None], 3),
        ({"verdict": "code", "tie": 0}, [1.0, 0.0, 0.5, None], 2),
        ({"verdict": "code", "tie": 1.5}, [1.0, 0.0, 0.5, None], 2),
    ],
)
def test_alpaca_eval_reads_preference_as_it_is_told(options, values, refused):
    read = alpaca_eval.read(alpaca_rows(1.0, 2.0, 0.0, 1.5, 1.25, None), **options)
    assert sorted(read.rows["value"], key=str) == sorted(values, key=str)
    assert codes(read) == ["preference.out_of_range"] * refused


def test_alpaca_eval_refuses_options_that_contradict_each_other():
    with pytest.raises(ValueError, match="must be code or probability"):
        alpaca_eval.read(alpaca_rows(1.0), verdict="codes")
    with pytest.raises(ValueError, match="probabilities need none"):
        alpaca_eval.read(alpaca_rows(1.0), verdict="probability", tie=1.5)


def llmfao_tables(**change):
    winners = (("0", "left"), ("0", "tie"), ("9", "left"), ("0", "up"))
    votes = frame(*({"id": battle, "worker": "w", "winner": winner} for battle, winner in winners))
    battle = {"id": "0", "model_x": "1", "model_y": "2", "text": "q", "result_x": "a", "result_y": "", "type": "code"}
    models = frame({"id": "1", "name": "One"}, {"id": "2", "name": "Two"})
    return {"votes": votes, "battles": frame(battle), "models": models, **change}


def test_llmfao_gives_one_comparison_a_vote_and_no_vote_without_a_battle():
    read = llmfao.read(**llmfao_tables())
    assert read.rows.select("record", "value", "model", "other_model").rows() == [
        (0, 1.0, "One", "Two"),
        (1, 0.5, "One", "Two"),
    ]
    assert codes(read) == ["battle.missing", "verdict.unknown"]


def test_llmfao_never_counts_a_vote_twice():
    battles = llmfao_tables()["battles"]
    with pytest.raises(ValueError, match="battles: the id 0 occurs 2 times"):
        llmfao.read(**llmfao_tables(battles=pl.concat([battles, battles])))


def message(role, text, *replies, **more):
    return {"role": role, "text": text, "replies": list(replies), **more}


def oasst_read(*trees):
    return oasst.read(
        frame(*({"prompt": None if tree is None else json.dumps(tree)} for tree in trees), prompt=pl.String)
    )


def test_oasst_ranks_sibling_answers_under_the_messages_that_lead_to_them():
    deep = message("prompter", "q2", message("assistant", "c", rank=1), message("assistant", "d", rank=0))
    tree = message("prompter", "q", message("assistant", "a", deep, rank=0), message("assistant", "b", rank=1))
    read = oasst_read(tree)
    assert read.rows.select("completion", "value").rows() == [("a", 0.0), ("b", 1.0), ("c", 1.0), ("d", 0.0)]
    assert [[m["content"] for m in prompt] for prompt in read.rows["prompt"].to_list()] == [["q"]] * 2 + [
        ["q", "a", "q2"]
    ] * 2


def test_oasst_skips_what_is_no_judgment_and_refuses_what_is_no_tree():
    alone = message("prompter", "q", message("assistant", "a"))
    partly = message("prompter", "q", message("assistant", "a", rank=0), message("assistant", "b"))
    users = message("prompter", "q", message("assistant", "a", message("prompter", "x"), message("prompter", "y")))
    read = oasst_read(alone, partly, users, message("prompter", "q"), message("prompter", "q", deleted=True), None, {})
    assert read.rows.height == 0
    assert read.skipped.select("record", "code").rows() == [
        (0, "rank.missing"),
        (1, "rank.alone"),
        (1, "rank.missing"),
        (2, "rank.missing"),
        (3, "reply.missing"),
        (4, "message.deleted"),
    ]
    assert codes(read) == ["tree.malformed", "tree.malformed"]


def answer(**ratings):
    return {
        "model": "m",
        "custom_system_prompt": "be good",
        "response": "r",
        "annotations": {a: {"Rating": ratings[a]} if a in ratings else None for a in ultrafeedback.ASPECTS},
    }


def ultrafeedback_read(*answers, **options):
    record = {"instruction": "q", "source": "s", "completions": list(answers)}
    raw = frame(record, completions=ultrafeedback.TABLES["raw"]["completions"])
    return ultrafeedback.read(raw, **options)


def test_ultrafeedback_gives_a_rating_for_each_aspect_and_refuses_what_is_no_number():
    read = ultrafeedback_read(answer(helpfulness="4", honesty="N/A", truthfulness=None))
    assert read.rows.select("aspect", "value").rows() == [("helpfulness", 4.0)]
    assert read.rejects.select("code", "detail").rows() == [
        ("rating.not_a_number", "honesty=N/A"),
        ("rating.missing", "truthfulness"),
    ]
    assert read.skipped["detail"].to_list() == ["instruction_following"]


def test_ultrafeedback_keeps_or_drops_the_system_prompts_of_the_answers():
    prompts = {s: ultrafeedback_read(answer(honesty="1"), system=s).rows["prompt"][0] for s in ("keep", "drop")}
    roles = {s: [message["role"] for message in prompt] for s, prompt in prompts.items()}
    assert roles == {"keep": ["system", "user"], "drop": ["user"]}
    with pytest.raises(ValueError, match="must be drop or keep"):
        ultrafeedback_read(answer(), system="both")


def test_an_ultrafeedback_record_without_answers_is_refused():
    assert codes(ultrafeedback_read()) == ["completions.empty"]
