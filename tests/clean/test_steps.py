"""The cleaning operations on tables: what is left out, by which reason, and what stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlhf_data import tables, texts
from rlhf_data.clean import near, pii, steps
from rlhf_data.clean.collect import collect
from rlhf_data.sources.ingest import ingest

LONG = "Please explain in simple words why the sky is blue at noon and red in the evening, with two examples"


class Folder:
    """A text folder made of records, and operations on it."""

    def __init__(self, root: Path, **sources: list[dict[str, Any]]) -> None:
        self.root, self.path, self.steps = root, root / "text", 0
        read = {}
        for source, records in sources.items():
            file = root / f"{source}.jsonl"
            file.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
            read[source] = root / f"read-{source}"
            read[source].mkdir()
            ingest(read[source], chunks=root / "chunks", source=source, files={"raw": [str(file)]})
        self.path.mkdir()
        collect(read, self.path)

    def run(self, operation, **parameters):
        """Run a step on the folder and stand at its result; its counts."""
        self.steps += 1
        (out := self.root / f"out{self.steps}").mkdir()
        counts = operation({"text": self.path}, out, **parameters)
        self.path = out
        return counts

    @property
    def completions(self) -> list[str]:
        parts = [batch["completion"] for batch in texts.completions_by_chunk(self.path)]
        return sorted(pl.concat(parts)) if parts else []

    @property
    def asked(self) -> set[str]:
        """The prompts of the completions."""
        return {text for batch in texts.completions_by_chunk(self.path) for text in steps.joined(batch["prompt"])}

    @property
    def judgments(self) -> int:
        return texts.read(self.path, "judgments").height


@pytest.fixture
def folder(tmp_path):
    def made(**sources):
        (root := tmp_path / "folder").mkdir()
        return Folder(root, **sources)

    return made


def rating(prompt, completion, value=3.0):
    return {"prompt": prompt, "completion": completion, "rating": value}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def counted(counts, unit):
    (count,) = [count for count in counts if count.unit == unit]
    return count


def test_of_the_same_answer_to_the_same_prompt_the_best_rated_stays(folder):
    held = folder(a=[rating("Why?", "Because.", 1), rating("why? ", "because. ", 5), rating("Why?", "No", 2)])
    counts = held.run(steps.dedup, keys=["prompt", "completion"], prefer="highest_rating")
    assert held.completions == ["No", "because. "]
    assert counted(counts, "completions").merged == {"the same prompt and completion": 1}
    assert counted(counts, "judgments").filtered == {"the same prompt and completion": 1}
    assert held.judgments == 2


def test_ratings_of_two_sources_are_compared_by_their_standing(folder):
    low = [rating("other", "x", 1), rating("why?", "Because", 2)]  # the best of its source
    high = [rating("other", "y", 100), rating("why?", "because", 50)]  # the worst of its source
    held = folder(low=low, high=high)
    held.run(steps.dedup, keys=["prompt", "completion"], prefer="highest_rating")
    assert held.completions == ["Because", "x", "y"]


def test_of_the_same_prompt_the_one_with_the_best_answer_stays_with_all_its_answers(folder):
    held = folder(a=[rating("Why?", "a", 1), rating("Why?", "b", 5), rating("why?", "c", 4), rating("How?", "d", 1)])
    counts = held.run(steps.dedup, keys=["prompt"], prefer="highest_rating")
    assert held.completions == ["a", "b", "d"]
    assert counted(counts, "completions").merged == {"the same prompt": 1}


def test_near_prompts_are_one_and_short_answers_to_a_long_prompt_are_not(folder):
    records = [rating(LONG, "yes"), rating(LONG, "no"), rating(f"{LONG}.", "yes"), rating("Another prompt?", "yes")]
    by_both = folder(a=records)
    counts = by_both.run(steps.dedup, keys=["prompt", "completion"], threshold=0.8)
    assert by_both.completions == ["no", "yes", "yes"]
    assert counted(counts, "completions").merged == {"nearly the same prompt and completion": 1}


def test_the_same_answer_under_any_prompt_stays_once(folder):
    held = folder(a=[rating("a", "I cannot help."), rating("b", "i cannot  help."), rating("c", "Sure!")])
    held.run(steps.dedup, keys=["completion"])
    assert len(held.completions) == 2


def test_signatures_lie_in_the_chunk_and_a_damaged_file_of_them_is_made_again(folder, monkeypatch):
    held = folder(a=[rating(LONG, "yes"), rating(f"{LONG}.", "yes")])
    start = held.path
    held.run(steps.dedup, keys=["prompt"], threshold=0.8)
    (kept,) = held.root.glob(f"chunks/*/prompts.{near.method()}.npy")
    whole = kept.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(near, "signatures", lambda *_: pytest.fail("made again"))
        held.path = start
        held.run(steps.dedup, keys=["prompt"], threshold=0.8)
    kept.write_bytes(whole[:100])
    held.path = start
    held.run(steps.dedup, keys=["prompt"], threshold=0.8)
    assert kept.read_bytes() == whole


def test_of_the_same_pair_in_either_order_the_better_rated_stays_with_all_its_votes(folder):
    compared = [pair("p", "X", "Y"), pair("p", "X", "Y"), pair("p", "y", "x"), pair("p", "x", "z"), pair("q", "X", "Y")]
    for best, judged in (("y", 3), ("Y", 4)):  # x–y was judged once, X–Y twice; two other pairs
        root = folder(a=compared, b=[rating("p", best, 5), rating("p", "z", 1)])
        counts = root.run(steps.dedup, keys=["pair"], prefer="highest_rating")
        assert counted(counts, "judgments").merged == {"the same pair": 5 - judged}
        judgments = texts.read(root.path, "judgments")
        assert judgments.height == judged + 2
        named = set(judgments["completion_row"]) | set(judgments["other_row"].drop_nulls())
        assert named == set(texts.read(root.path, "completions")["completion_row"])
        shutil.rmtree(root.root)


def test_the_result_does_not_depend_on_the_order_of_records(tmp_path):
    records = [
        rating(p, c, v) for p in ("Why?", "why?", f"{LONG}", f"{LONG}!") for c, v in (("A", 1), ("a", 2), ("b", 3))
    ]
    found = []
    for name, order in (("there", records), ("back", records[::-1])):
        (tmp_path / name).mkdir()
        held = Folder(tmp_path / name, a=order)
        held.run(steps.dedup, keys=["prompt", "completion"], threshold=0.8, prefer="highest_rating")
        found.append((held.completions, texts.read(held.path, "completions")["completion_id"].to_list()))
    assert found[0] == found[1]


def test_contaminated_prompts_and_answers_are_left_out_by_file(folder, tmp_path):
    (tmp_path / "e.txt").write_text(f"{LONG}\nyes\n", encoding="utf-8")
    (tmp_path / "f.json").write_text(json.dumps({"q": "Name the three largest rivers of that continent."}))
    files = [str(tmp_path / "e.txt"), str(tmp_path / "f.json")]
    records = [
        rating(f"Hello! {LONG.upper()}", "1"),
        rating("q", f"As you said: {LONG}."),
        rating("q", "yes"),  # an answer is no leak because it is short
        rating("Name the three largest rivers of that continent!", "2"),
        rating("fine", "3"),
    ]
    held = folder(a=records)
    counts = held.run(steps.decontaminate, files=files)
    assert held.completions == ["3", "yes"]
    assert counted(counts, "completions").filtered == {
        "completion in e.txt": 1, "prompt in e.txt": 1, "prompt in f.json": 1,
    }  # fmt: skip
    assert counted(counts, "judgments").out == 2


def test_only_the_side_asked_for_is_looked_at(folder, tmp_path):
    (tmp_path / "e.txt").write_text(LONG, encoding="utf-8")
    records = [rating(LONG, "1"), rating("q", LONG)]
    for of, kept in (("prompt", [LONG]), ("completion", ["1"])):
        (tmp_path / of).mkdir()
        held = Folder(tmp_path / of, a=records)
        held.run(steps.decontaminate, files=[str(tmp_path / "e.txt")], of=of)
        assert held.completions == kept


def test_an_evaluation_file_without_words_is_refused(folder, tmp_path):
    (tmp_path / "e.txt").write_text(LONG, encoding="utf-8")
    for name, content in {"f.jsonl": "", "g.json": '{"n": 3, "q": " … "}'}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    held = folder(a=[rating(LONG, "1")])
    with pytest.raises(ValueError, match=r"against: no words are in .*f\.jsonl, .*g\.json; leave it out"):
        held.run(steps.decontaminate, files=[str(tmp_path / name) for name in ("e.txt", "f.jsonl", "g.json")])


def test_languages_are_kept_by_prompt(folder):
    pytest.importorskip("fasttext", reason="the extra `lang` is not installed")
    held = folder(a=[rating(LONG, "a"), rating("Warum ist der Himmel am Mittag blau?", "b"), rating("1 + 1 = ?", "c")])
    counts = held.run(steps.keep_languages, keep=["en"], min_confidence=0.5)
    assert held.completions == ["a"]
    assert counted(counts, "completions").filtered == {"prompt: language de": 1, "prompt: no language": 1}


PERSONAL = [
    pair("Write to a@d.co", "Dear a@d.co", "no"),
    pair("Where is 8.8.8.8?", "there", "here"),
    pair("fine", "good", "call 415-555-2671"),
    pair("fine", "good", "bad"),
]


def test_marking_leaves_everything_and_says_where_it_is(folder):
    held = folder(a=PERSONAL)
    counts = held.run(steps.mark_personal_data)
    assert len(held.completions) == 7
    marks = tables.read(held.path / "marks.parquet", "marks")
    assert sorted(marks.select("side", "kind").rows()) == [
        ("completion", "email"), ("completion", "phone"), ("prompt", "email"), ("prompt", "ip_address"),
    ]  # fmt: skip
    assert {count.unit: count.out for count in counts[2:]} == {
        "email in texts": 2, "ip_address in texts": 1, "phone in texts": 1,
    }  # fmt: skip


def test_presidio_looks_where_a_spacy_model_is_named(folder, monkeypatch):
    asked = []

    def find(texts, kinds=None, *, language, model):
        asked.append((kinds, language, model))
        rows = [(row, "person", 0, 4) for row, text in enumerate(texts) if text.startswith("good")]
        return pl.DataFrame(rows, schema=pii.FOUND, orient="row")

    monkeypatch.setattr(pii, "find_with_presidio", find)
    held = folder(a=PERSONAL)
    held.run(steps.mark_personal_data, refuse=True, presidio="xx_core", language="de", kinds=["PERSON"])
    assert sorted(held.completions) == ["Dear a@d.co", "bad", "call 415-555-2671", "here", "no", "there"]
    assert set(map(repr, asked)) == {repr((["PERSON"], "de", "xx_core"))}


def test_what_holds_personal_data_goes_to_quarantine_with_its_lineage(folder):
    held = folder(a=PERSONAL)
    counts = held.run(steps.mark_personal_data, refuse=True)
    assert held.completions == ["bad", "good"]
    assert counted(counts, "completions").quarantined == {"text.email": 2, "text.ip_address": 2, "text.phone": 1}
    assert counted(counts, "judgments").quarantined == {"text.email": 1, "text.ip_address": 1, "text.phone": 1}
    quarantine = tables.read(held.path / "quarantine.parquet", "quarantine").sort("raw_ref")
    assert quarantine.select("code", pl.col("raw_ref").list.first()).rows() == [
        ("text.email", "a.jsonl#0"), ("text.ip_address", "a.jsonl#1"), ("text.phone", "a.jsonl#2"),
    ]  # fmt: skip
    assert "a@d.co" not in str(quarantine.rows())


def test_masked_texts_have_their_own_ids_and_keep_their_judgments(folder):
    held = folder(a=PERSONAL)
    start, chunks = held.path, held.root / "chunks"
    counts = held.run(steps.mask_personal_data, chunks=chunks)
    assert held.completions == sorted(["Dear [EMAIL]", "no", "there", "here", "good", "call [PHONE]", "bad"])
    assert held.asked == {"Write to [EMAIL]", "Where is [IP_ADDRESS]?", "fine"}
    assert counted(counts, "email in texts").filtered == {"masked": 2}
    said = texts.read(held.path, "judgments").select(pl.col("file").cast(pl.String), "record").rows()
    assert sorted(said) == [("a.jsonl", k) for k in range(4)]
    before = set(texts.read(start, "completions")["completion_id"])
    after = set(texts.read(held.path, "completions")["completion_id"])
    assert len(before & after) == 2  # "good" and "bad" to "fine"


def test_texts_that_masking_makes_the_same_are_one_and_are_not_compared(folder):
    held = folder(
        a=[pair("Write to a@d.co", "Hi a@d.co", "Hi b@d.co"), pair("Write to b@d.co", "Hi b@d.co", "no")],
        b=[rating("Write to c@d.co", "Hi a@d.co", 5)],
    )
    counts = held.run(steps.mask_personal_data, chunks=held.root / "chunks")
    assert held.completions == ["Hi [EMAIL]", "no"]
    assert counted(counts, "judgments").filtered == {"of two answers the same once masked": 1}
    assert texts.read(held.path, "judgments")["kind"].cast(pl.String).sort().to_list() == ["comparison", "rating"]
    assert texts.read(held.path, "completions")["source"].cast(pl.String).to_list() == ["a", "a"]


def test_near_roots_share_the_smallest_key_and_others_keep_theirs(folder):
    held = folder(a=[rating(LONG, "1"), rating(f"{LONG}!", "2"), rating("Something else", "3")])
    prompts = texts.read(held.path, "prompts")
    (count,) = held.run(steps.cluster_prompts, threshold=0.8)
    clusters = tables.read(held.path / "clusters.parquet", "clusters")
    assert clusters["prompt_row"].to_list() == prompts["prompt_row"].to_list()
    assert clusters["split_key"].n_unique() == 2
    for own, shared in zip(prompts["split_key"], clusters["split_key"], strict=True):
        assert shared <= own
    assert (count.rows_in, count.out, count.merged) == (3, 2, {"near another": 1})


EVERY = {
    "exact": (steps.dedup, {"keys": ["prompt", "completion"], "prefer": "highest_rating"}),
    "near": (steps.dedup, {"keys": ["prompt"], "threshold": 0.9}),
    "pair": (steps.dedup, {"keys": ["pair"]}),
    "decontaminate": (steps.decontaminate, {"files": []}),
    "mark": (steps.mark_personal_data, {}),
    "quarantine": (steps.mark_personal_data, {"refuse": True}),
    "mask": (steps.mask_personal_data, {}),
}


@pytest.mark.parametrize("first", [steps.mark_personal_data, steps.mask_personal_data])
@pytest.mark.parametrize(("operation", "parameters"), EVERY.values(), ids=EVERY)
def test_every_operation_takes_what_another_left_even_if_that_is_nothing(folder, operation, parameters, first):
    personal = [rating("call 415-555-2671", "yes")]
    for sources in ({"a": personal, "b": [pair("fine", "a", "b")]}, {"a": personal}):
        held = folder(**sources)
        extra = {"chunks": held.root / "chunks"}
        refuse = {"refuse": True} if first is steps.mark_personal_data else extra
        held.run(first, **refuse)
        before = held.completions
        held.run(operation, **parameters, **(extra if operation is steps.mask_personal_data else {}))
        assert held.completions == before
        shutil.rmtree(held.root)
