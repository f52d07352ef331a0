import re
import time
from html.parser import HTMLParser

import polars as pl
import pytest

from rlhf_data.report import snapshot_page
from rlhf_data.report.snapshot import accounting

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "rect", "circle"}
MARKUP = "</div><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & \"q\""
HOSTILE = f"{MARKUP} \x00\x07 \u202eevil\u202c 🤖 שלום"


class Page(HTMLParser):
    """Refuses tags that do not nest, ids that repeat and anything that is fetched."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.ids, self.tags, self.links = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open
        assert len(self.ids) == len(set(self.ids))
        assert {link[1:] for link in self.links} <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        assert tag not in {"script", "img", "iframe", "link", "object"}
        assert not any(name.startswith("on") or name == "src" for name in held)
        self.ids += [held["id"]] if "id" in held else []
        self.links += [held["href"]] if "href" in held else []
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


def test_a_paired_page_has_every_section_that_has_data(paired, manifest, refused):
    rows = paired(300)
    html = snapshot_page(manifest(rows, score={"model": "m", "versions": {"torch": "2.11"}}), rows, refused(40))
    Page(html)
    assert sections(html) == [
        "accounting", "sources", "categories", "splits", "rewards", "margins", "preference",
        "lengths", "weights", "reference", "quarantine", "examples", "provenance",
    ]  # fmt: skip


def test_annotators_are_shown_with_how_well_they_agree(paired, manifest, refused):
    rows = paired(5)
    person = {"source": HOSTILE, "annotator": None, "votes": 9, "right": 0.875, "tie": 0.0, "wrong": 0.125}
    agreement = {"votes": {"units": 7, "votes": 40, "percent": 0.75, "alpha": None}}
    rating = {"annotators": 60, "most_active": [{**person, "annotator": f"a{k}"} for k in range(59)] + [person]}
    html = snapshot_page(manifest(rows, rating={**rating, "agreement": agreement}), rows, refused(0))
    Page(html)
    assert "annotators" in sections(html)
    for shown in ("87.5 %", "75.0 %", "30 of 60 are shown", "a29"):
        assert shown in html
    assert "a30" not in html
    assert "annotators" in sections(snapshot_page(manifest(rows, rating={"agreement": agreement}), rows, refused(0)))


def test_an_unpaired_page_has_labels_and_no_pairs(unpaired, manifest, refused):
    rows = unpaired(300, scored=True)
    html = snapshot_page(manifest(rows), rows, refused(3))
    Page(html)
    assert {"labels", "reference", "rewards"} <= set(sections(html))
    assert not {"margins", "preference"} & set(sections(html))


def test_sections_without_data_are_left_out(paired, manifest, refused):
    rows = paired(20, scored=False, category=None, margin=None, chosen_reward=None, rejected_reward=None)
    html = snapshot_page(manifest(rows, accounting=[]), rows, refused(0))
    Page(html)
    left_out = {"accounting", "categories", "rewards", "margins", "reference", "quarantine"}
    assert not left_out & set(sections(html))


@pytest.mark.parametrize("table", ["paired", "unpaired"])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_tables_make_a_page(table, n, request, manifest, refused):
    rows = request.getfixturevalue(table)(n)
    Page(snapshot_page(manifest(rows), rows, refused(n)))


def test_a_table_without_test_rows_says_so_and_is_a_page(paired, manifest, refused):
    rows = paired(50, splits=("train",))
    html = snapshot_page(manifest(rows), rows, refused(1))
    Page(html)
    assert "There is one split only." in html


def test_hostile_text_is_text(paired, manifest, refused):
    rows = paired(
        6,
        chosen=HOSTILE,
        rejected=HOSTILE * 400,
        prompt=[[{"role": HOSTILE, "content": HOSTILE}] * 9] * 6,
        source=HOSTILE,
        category=HOSTILE,
        raw_ref=[[HOSTILE]] * 6,
    )
    held = refused(3, detail=[HOSTILE] * 3, row=[HOSTILE] * 3, source=[HOSTILE] * 3)
    over = {"name": HOSTILE, "about": HOSTILE, "sources": {HOSTILE: {"license": HOSTILE, "files": [{"name": HOSTILE}]}}}
    html = snapshot_page(manifest(rows, **over, versions={HOSTILE: HOSTILE}), rows, held)
    Page(html)
    assert "&lt;script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", html)
    assert "␀" in html and "⟨U+202E⟩" in html


def test_a_megabyte_of_text_is_cut_with_a_note(paired, manifest, refused):
    rows = paired(5, chosen="&" * 1_000_000, rejected="🤖" * 1_000_000, category="c" * 1_000_000)
    held = refused(5, row=["{" * 1_000_000] * 5)
    html = snapshot_page(manifest(rows), rows, held)
    assert "2,000 of 1,000,000 characters shown" in html
    assert len(html.encode()) < 300_000


def test_many_groups_and_codes_stay_a_small_page(paired, manifest, refused):
    n = 3000
    rows = paired(n, category=[f"category {k}" for k in range(n)], source=[f"source {k % 500}" for k in range(n)])
    held = refused(n, code=[f"code.c_{'abcdefghij'[k % 10]}{'abcdefghij'[k // 10 % 10]}" for k in range(n)])
    html = snapshot_page(manifest(rows), rows, held)
    Page(html)
    assert "2970 more" in html and "80 more codes" in html
    assert len(html.encode()) < 300_000


def test_the_same_rows_give_the_same_bytes_in_any_order(paired, manifest, refused):
    rows, held = paired(500), refused(60)
    page = snapshot_page(manifest(rows), rows, held)
    assert snapshot_page(manifest(rows), rows, held) == page
    assert snapshot_page(manifest(rows), rows.reverse(), held.reverse()) == page


def test_the_figures_are_those_of_the_rows(paired, manifest, refused):
    rows = paired(
        4,
        splits=("train",),
        weight=[1.0, 1.0, 2.0, 0.0],
        preference=[1.0, 1.0, 0.8, 0.5],
        chosen_n_tokens=[9, 9, 1, 9],
        rejected_n_tokens=[3, 3, 3, 3],
    )
    html = snapshot_page(manifest(rows), rows, refused(0))
    assert "They are worth <b>3</b> rows of equal weight" in html  # 4² / 6 = 2.67
    assert "1 row has weight 0" in html
    assert "the longer one in <b>66.7 %</b>" in html  # the tie does not count
    assert "certain (1) <b>2</b>" in html and "soft (between) <b>1</b>" in html and "ties (0.5) <b>1</b>" in html


def test_a_prompt_in_two_splits_is_said_at_the_top(paired, manifest, refused):
    rows = paired(2, prompt_id="0" * 32, split=["train", "test"])
    html = snapshot_page(manifest(rows), rows, refused(0))
    assert "1 prompt is in more than one split" in html.split("<section")[0]


def test_rows_that_are_lost_are_said_at_the_top(paired, manifest, refused):
    rows = paired(2)
    lost = [{"step": "clean", "unit": "pairs", "rows_in": 5, "out": 2, "filtered": {"short": 1}}]
    html = snapshot_page(manifest(rows, accounting=lost), rows, refused(0))
    assert "Rows are unaccounted for" in html.split("<section")[0]
    found = accounting(lost)
    assert found is not None and found["lines"][0]["lost"] == 2


def test_examples_show_every_source_before_a_second_row_of_one(paired, manifest, refused):
    rows = paired(100, source=["rare"] + ["common"] * 99)
    html = snapshot_page(manifest(rows), rows, refused(0))
    examples = html.split('<section id="examples">')[1]
    assert examples.count('<article class="example">') == 5
    assert examples.count("rare ·") == 1


def test_a_large_table_takes_seconds(paired, manifest, refused):
    part, many = paired(2000), 150
    rows = pl.concat([part] * many).with_columns(pair_id=pl.int_range(2000 * many).cast(pl.String).str.zfill(32))
    at = time.perf_counter()
    html = snapshot_page(manifest(rows), rows, refused(100))
    print(f"\n{rows.height:,} rows: {time.perf_counter() - at:.2f} s, {len(html):,} bytes")
