"""Laws of the whole way, from raw files to published rows; contracts are checked and tables written as in a build."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import rlhf_data as rd
from rlhf_data import snapshot, tables
from rlhf_data.shape import paired
from rlhf_data.sources import ingest, readers
from tests.laws import oracle, raw
from tests.laws.raw import laws_of_files
from tests.laws.way import Folder, close
from tests.rows import answers_of


@laws_of_files
@given(seen=raw.worlds(raw.IN_FILES, damaged=True, fewest=1))
def test_every_record_is_read_or_refused_with_its_code_and_none_is_both(seen):
    with Folder(on_disk=True).read(seen) as way:
        refused = way.quarantine(*(f"read-{source}" for source in raw.SOURCES))
        counts = [count for name, counts in way.counts.items() if name.startswith("read:") for count in counts]
    wanted = sorted((one.ref, code) for one in seen if (code := oracle.refusal(one)))
    assert sorted((*row["raw_ref"], row["code"]) for row in refused) == wanted
    for unit in ("records", "observations"):
        told = [count for count in counts if count.unit == unit]
        assert sum(count.rows_in for count in told) == len(seen)
        assert sum(count.out for count in told) == len(seen) - len(wanted)
        assert sum(sum(count.quarantined.values()) for count in told) == len(wanted)


@laws_of_files
@given(seen=raw.worlds(raw.IN_FILES, damaged=True, fewest=1), pieces=st.sampled_from((100, 1000, 1 << 20)))
def test_texts_are_held_once_and_judgments_speak_of_the_texts_they_were_given_with(seen, pieces):
    sound = [one for one in seen if oracle.refusal(one) is None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", pieces)
        with Folder(on_disk=True).read(seen) as way:
            rows = answers_of(way.path / "text").to_dicts() if sound else []
            found = {row["completion_id"]: row for row in rows}
            heard = way.judgments()
    wanted = oracle.merged(sound)
    assert len(rows) == len(found) and found.keys() == wanted.keys()
    for key, text in wanted.items():
        row = found[key]
        assert (row["prompt"], row["completion"]) == ([{"role": "user", "content": text.prompt}], text.completion)
        assert (row["source"], row["category"], row["model"]) == (text.source, text.category, text.model)
    told = sorted((row["raw_ref"][0], row["prompt_id"], row["completion_id"], row["other_id"] or "") for row in heard)
    assert told == sorted((one.ref, one.prompt_id, one.first, one.second or "") for one in sound)


either = st.sampled_from(("paired", "unpaired"))
SPEC = """version: 1
name: demo
about: Laws.
seed: 3
sources:
{sources}
split: {{test: 0.3, validation: 0.2}}
shape: {{to: {table}{shape}}}
weigh: {{weight: {{category: {{c: 2.0}}}}}}
publish: {{to: {to}}}
"""
SHAPES = {"paired": ", pairing: all, ties: soft", "unpaired": ", ties: soft"}


def build(folder: Path, files, table="paired", name="snapshots"):
    """The published snapshot of raw files, through the spec and the engine."""
    sources = "\n".join(f"  {source}: {{path: {json.dumps(paths)}}}" for source, paths in files.items())
    spec = folder / f"{name}.yaml"
    text = SPEC.format(sources=sources, table=table, shape=SHAPES[table], to=folder / name)
    spec.write_text(text, encoding="utf-8")
    return rd.build(spec, workspace=folder / f"{name}.rlhf")


def digests(built):
    return {file["path"]: file["digest"] for file in built.manifest["files"]}


def gives_pairs(seen):
    """Whether there is anything to publish, whatever the table."""
    sound = [one for one in seen if oracle.refusal(one) is None]
    told = {"pairing": "all", "ties": "soft", "sources": raw.SOURCES}
    return bool(oracle.paired(oracle.rated(sound), oracle.compared(sound), **told))


@raw.few_builds
@given(seen=raw.worlds(raw.IN_A_BUILD, damaged=True, fewest=4), table=either)
def test_what_is_published_is_what_counting_by_hand_gives(seen, table):
    sound = [one for one in seen if oracle.refusal(one) is None]
    rated, compared = oracle.rated(sound), oracle.compared(sound)
    if table == "paired":
        told = {"pairing": "all", "ties": "soft", "sources": raw.SOURCES, "seed": 3}
        wanted = {oracle.pair_id(one.chosen_id, one.rejected_id): one for one in oracle.paired(rated, compared, **told)}
    else:
        found = oracle.unpaired(rated, compared, ties="soft", sources=raw.SOURCES)
        wanted = {one.completion_id: one for one in found}
    assume(wanted)
    held = oracle.merged(sound)
    with Folder(on_disk=True) as way:
        built = build(way.path, raw.write(way.path / "raw", seen), table)
        rows = {
            row["pair_id" if table == "paired" else "completion_id"]: row for row in built.scan().collect().to_dicts()
        }
        assert built.manifest["quarantined"] == len(seen) - len(sound)
    assert rows.keys() == wanted.keys()
    for key, one in wanted.items():
        row = rows[key]
        names = (
            {"chosen": "chosen_id", "rejected": "rejected_id"} if table == "paired" else {"completion": "completion_id"}
        )
        texts = {name: held[getattr(one, of)] for name, of in names.items()}
        assert {name: row[name] for name in names} == {name: text.completion for name, text in texts.items()}
        first = next(iter(texts.values()))
        assert row["prompt"] == [{"role": "user", "content": first.prompt}]
        assert (row["split"], row["category"]) == (oracle.split_of(first.prompt, 0.3, 0.2), first.category)
        assert row["weight"] == (2.0 if first.category == "c" else 1.0)
        assert (row["source"], row["votes"], set(row["raw_ref"])) == (one.source, one.votes, one.refs)
        for name in ("preference", "margin") if table == "paired" else ("reward", "rating"):
            assert close(row[name], getattr(one, name))


@raw.few_builds
@given(
    seen=raw.worlds(raw.IN_A_BUILD, fewest=4),
    table=either,
    draw=st.randoms(use_true_random=False),
)
def test_the_order_of_records_and_files_changes_no_published_value(seen, table, draw):
    # Records change their places, so lineage names others; and of a text said twice the first one's category is taken.
    seen = [one.__class__(**{**vars(one), "category": None}) for one in seen]
    assume(gives_pairs(seen))
    found = []
    with Folder(on_disk=True) as way:
        for name, order in (("one", seen), ("other", draw.sample(seen, len(seen)))):
            files = raw.write(way.path / name, raw.replaced(order))
            listed = {source: paths if name == "one" else paths[::-1] for source, paths in files.items()}
            rows = build(way.path, listed, table, name).scan().collect()
            found.append(rows.with_columns(pl.col("raw_ref").list.len()))
    assert found[0].equals(found[1])


@raw.few_builds
@given(seen=raw.worlds(raw.IN_A_BUILD, damaged=True, fewest=4), table=either, n=st.integers(20, 400))
def test_the_sizes_of_parts_and_the_number_of_workers_change_no_byte(seen, table, n):
    assume(gives_pairs(seen))
    small = ((paired, "PART"), (tables, "VALIDATED"), (tables, "STREAMED"), (readers, "PIECE_BYTES"))
    with Folder(on_disk=True) as way:
        files = raw.write(way.path / "raw", seen)
        whole = build(way.path, files, table, "whole")
        with pytest.MonkeyPatch.context() as patch:
            for module, size in small:
                patch.setattr(module, size, n * 100 if size == "PIECE_BYTES" else n)  # as many records as rows
            patch.setattr(ingest, "WORKERS", 1 + n % 2)
            cut = build(way.path, files, table, "cut")
            patch.setattr(snapshot, "ROWS_PER_FILE", n)
            patch.setattr(snapshot, "TEXT_AT_ONCE", 100 * n)
            parted = build(way.path, files, table, "parted")
        assert digests(whole) == digests(cut)
        assert whole.manifest["content_hash"] == cut.manifest["content_hash"] == parted.manifest["content_hash"]
        assert whole.scan().collect().equals(parted.scan().collect())
        # But for how many texts came again in another piece of their source, which is said of the step collect.
        counts = [
            [told for told in built.manifest["accounting"] if told["step"] != "collect"] for built in (whole, cut)
        ]
        assert counts[0] == counts[1]


@raw.few_builds
@given(seen=raw.worlds(raw.IN_A_BUILD, fewest=4), more=raw.worlds(raw.IN_A_BUILD, fewest=1))
def test_a_build_after_rows_arrived_publishes_what_a_fresh_one_does(seen, more):
    grown = raw.replaced([*seen, *more])
    assume(gives_pairs(seen))
    with Folder(on_disk=True) as way:
        build(way.path, raw.write(way.path / "raw", seen), name="grown")
        shutil.rmtree(way.path / "raw")
        files = raw.write(way.path / "raw", grown)
        assert digests(build(way.path, files, name="grown")) == digests(build(way.path, files, name="fresh"))


PROGRAM = """
import sys
import rlhf_data as rd
built = rd.build(sys.argv[1], workspace=sys.argv[2])
print(sorted((file["path"], file["digest"]) for file in built.manifest["files"]), built.manifest["content_hash"])
"""


def test_neither_threads_nor_hash_seeds_nor_restarts_change_a_byte(tmp_path):
    seen = []
    for source in raw.SOURCES:
        for k, prompt in enumerate(raw.PROMPTS):
            for j, text in enumerate(raw.ANSWERS):
                said = {"prompt": prompt, "completion": text, "annotator": "xyz"[(j + k) % 3]}
                seen.append((source, "rating", said | {"value": Fraction(1 + (j * k) % 3)}))
                other = raw.ANSWERS[(j + 1) % len(raw.ANSWERS)]
                seen.append((source, "comparison", said | {"other": other, "value": Fraction((j + k) % 5, 4)}))
    placed = [
        oracle.Observation(source=source, kind=kind, file=f"{source}-{kind}.jsonl", record=0, **said)
        for source, kind, said in seen
    ]
    files = raw.write(tmp_path / "raw", raw.replaced(placed))
    sources = "\n".join(f"  {source}: {{path: {json.dumps(paths)}}}" for source, paths in files.items())
    here = build(tmp_path, files, "paired", "here")  # with as many threads as there are cores
    told = {f"{sorted(digests(here).items())} {here.manifest['content_hash']}\n"}
    for threads, seed in ((1, 0), (4, 2)):
        text = SPEC.format(sources=sources, table="paired", shape=SHAPES["paired"], to=tmp_path / f"to{threads}")
        (tmp_path / f"{threads}.yaml").write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / f"{threads}.yaml"), str(tmp_path / f"work{threads}")],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads), "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(ran.stdout)
    assert len(told) == 1
