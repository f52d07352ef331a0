"""Laws of cleaning, through raw files: what is left out, and that doing it twice or in another order is the same."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlhf_data import texts
from rlhf_data.clean.filter import filter_completions
from rlhf_data.clean.steps import decontaminate, dedup
from tests.laws import oracle, raw
from tests.laws.raw import laws_of_files
from tests.laws.way import Folder

KEYS = (("completion",), ("prompt",), ("prompt", "completion"))
CONDITIONS = ("length(completion) > 1", "prompt LIKE '%q'", "source <> 's'", "category = 'c'", "turns = 1")
some = raw.worlds(raw.IN_FILES, fewest=1)


def left(way):
    """The answers that are left, with their texts."""
    rows = [row for batch in texts.completions_by_chunk(way.path / "text") for row in batch.to_dicts()]
    return {row["completion_id"]: (row["prompt"][0]["content"], row["completion"]) for row in rows}


def judged(way):
    """What is left of what was said: judgments by their lineage."""
    rows = way.judgments()
    return sorted((row["completion_id"], row["other_id"] or "", row["value"] or 0.0, *row["raw_ref"]) for row in rows)


@laws_of_files
@given(seen=some, keys=st.sampled_from(KEYS))
def test_of_the_same_texts_the_first_by_id_stays_and_a_second_time_nothing_goes(seen, keys):
    with Folder().read(seen) as way:
        once = left(way.cleaned(dedup, keys=keys))
        assert once.keys() == oracle.same_texts(seen, keys)
        judgments = judged(way)
        twice = left(way.cleaned(dedup, keys=keys))
        assert (twice, judged(way)) == (once, judgments)
        assert all(count.rows_in == count.out for count in way.counts["clean"])


@laws_of_files
@given(seen=some, keys=st.sampled_from(KEYS), prefer=st.sampled_from((None, "highest_rating")), draw=st.data())
def test_neither_files_nor_sources_in_another_order_change_what_stays(seen, keys, prefer, draw):
    seen = [one.__class__(**{**vars(one), "category": None}) for one in seen]
    order = draw.draw(st.permutations(raw.SOURCES))
    with Folder().read(seen) as one, Folder().read(seen, order) as other:
        for way in (one, other):
            way.cleaned(dedup, keys=keys, prefer=prefer)
        assert left(one) == left(other)
        assert judged(one) == judged(other)


@laws_of_files
@given(seen=some, first=st.sampled_from(CONDITIONS), second=st.sampled_from(CONDITIONS))
def test_two_filters_are_one_filter_of_both_conditions_in_either_order(seen, first, second):
    found = []
    with Folder() as way:
        files = raw.write(way.path / "raw", seen)
        for conditions in ((first, second), (second, first), (f"({first}) AND ({second})",)):
            way.read_files(files)
            for where in conditions:
                way.cleaned(filter_completions, where=where)
            found.append((left(way), judged(way)))
    assert found[0] == found[1] == found[2]


@laws_of_files
@given(seen=some, ngram=st.integers(1, 3), leaked=st.lists(st.sampled_from((*raw.PROMPTS, *raw.ANSWERS)), max_size=3))
def test_no_text_that_is_left_shares_a_run_of_words_with_an_evaluation_file(seen, ngram, leaked):
    with Folder().read(seen) as way:
        lines = (*leaked, "elsewhere")  # a file without words is refused
        (way.path / "eval.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
        before = left(way)
        after = left(way.cleaned(decontaminate, files=[str(way.path / "eval.jsonl")], ngram=ngram))
    forbidden = {run for text in leaked for run in oracle.runs(text, ngram)}

    def clean(both):
        asked, answered = both
        runs = set(oracle.runs(asked, ngram))
        # A short answer is never a leak by itself: it would take every "Yes".
        runs |= set(oracle.runs(answered, ngram)) if len(oracle.words(answered)) >= ngram else set()
        return not runs & forbidden

    assert after == {key: both for key, both in before.items() if clean(both)}


@laws_of_files
@given(seen=some, keys=st.sampled_from(KEYS), where=st.sampled_from(CONDITIONS))
def test_what_a_step_gives_the_next_one_takes(seen, keys, where):
    with Folder().read(seen) as way:
        counts = [*way.counts["collect"]]
        counts += way.cleaned(filter_completions, where=where).counts["clean"]
        counts += way.cleaned(dedup, keys=keys).counts["clean"]
        counts += way.rated().counts["rate"]
    for unit in ("completions", "judgments"):
        chain = [count for count in counts if count.unit == unit]
        assert all(after.rows_in == before.out for before, after in pairwise(chain))
