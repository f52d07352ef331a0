"""Damage to raw data: what each kind of it becomes, and that no record vanishes on the way."""

import csv
import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl
import pytest

from rlhf_data import engine, tables
from rlhf_data.sources import readers
from rlhf_data.spec import read
from tests.project import SPEC, Project, ratings

SOUND = ratings(4)  # 16 answers to 4 prompts; a prompt's ratings all differ, so each record stands behind a pair
HALF = len(SOUND) // 2
ANY = SPEC.replace("*.jsonl", "*")
VOTES = """version: 1
name: demo
seed: 7
sources:
  a: {path: raw/*, columns: {prompt: p, completion: a, other: b, preference: v, annotator: who}}
rate: {by: votes}
split: {test: 0.5}
shape: {to: paired, ties: soft}
publish: {to: snapshots/demo}
"""
MAPPED = VOTES.replace("preference: v", "preference: {from: v, map: {A: 1, B: 0, tie: 0.5}}")


class Damage(NamedTuple):
    """One kind of damage and what becomes of it.

    Attributes:
        files: the raw files; bytes, or records to be written as JSON lines.
        refused: how many records are refused, by code.
        merged: how many records say again what another one says.
        spec: of the source that is damaged.
    """

    files: dict[str, bytes] | list[Any]
    refused: dict[str, int] = {}  # noqa: RUF012  (nobody changes it)
    merged: int = 0
    spec: str = SPEC


class Fate(NamedTuple):
    """What became of the records of a build: file#record of those behind a published row, code of those refused."""

    published: set[str]
    refused: dict[str, str]
    rows: pl.DataFrame


def lines(rows: Iterable[Any]) -> bytes:
    """JSON lines; a text, or bytes, stands there as it is."""
    texts = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    return b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts)


def among(*damaged: Any) -> list[Any]:
    """Damaged records in the middle of sound ones."""
    return [*SOUND[:HALF], *damaged, *SOUND[HALF:]]


def answer(**change: Any) -> dict[str, Any]:
    """One more answer to the first prompt, better rated than most; a part that is changed to ... is left out."""
    row = {"prompt": "question 0?", "completion": "one more", "rating": 5, "category": "x"} | change
    return {key: value for key, value in row.items() if value is not ...}


def vote(one: str, other: str, value: Any, who: str = "w") -> dict[str, Any]:
    return {"p": "q", "a": one, "b": other, "v": value, "who": who}


def talks(*roles: str) -> list[dict[str, Any]]:
    """Two answers to a conversation of these roles."""
    prompt = [{"role": role, "content": f"{role} {k}"} for k, role in enumerate(roles)]
    return [{"prompt": prompt, "completion": text, "rating": rating} for text, rating in (("a", 1), ("b", 2))]


def sheet(*more: str, header: str = "prompt,completion,rating") -> bytes:
    """The sound records as CSV, and further lines."""
    text = io.StringIO()
    csv.writer(text).writerows([row["prompt"], row["completion"], row["rating"]] for row in SOUND)
    return "\r\n".join([header, *text.getvalue().splitlines(), *more, ""]).encode("utf-8", "surrogateescape")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    held = io.BytesIO()
    pl.DataFrame(rows).write_parquet(held)
    return held.getvalue()


def lay(project: Project, files: dict[str, bytes] | list[Any]) -> None:
    project.raw([]).unlink()
    for name, content in files.items() if isinstance(files, dict) else [("r.jsonl", lines(files))]:
        (project.folder / "raw" / name).write_bytes(content)


def fate(project: Project) -> Fate:
    """Where each record is; fails if the accounting and the lineage do not both know all of them."""
    snapshot = project.snapshot
    rows = snapshot.scan().collect()
    quarantine = tables.read(snapshot.path / "quarantine" / "quarantine.parquet", "quarantine").explode("raw_ref")
    published, refused = set(rows["raw_ref"].explode()), dict(quarantine.select("raw_ref", "code").rows())
    records = {
        f"{path.name}#{k}"
        for path in sorted((project.folder / "raw").iterdir())
        for k in range(readers.read(path).height)
    }
    counts = {(count["step"], count["unit"]): count for count in snapshot.manifest["accounting"]}
    assert counts["read:a", "records"]["rows_in"] == len(records)
    assert published | refused.keys() == records
    assert not published & refused.keys()
    return Fate(published, refused, rows)


TALK = talks("user")
SURROGATES = [
    r'{"prompt": "question 0?", "completion": "\ud800", "rating": 1}',
    r'{"prompt": "\udfff", "completion": "x", "rating": 1}',
]
NUMBERS = [f'{{"prompt": "question 0?", "completion": "n", "rating": {n}}}' for n in ("NaN", "-Infinity", "1e999")]
DAMAGED = {
    "nothing": Damage(SOUND),
    "a last line that is cut off": Damage({"r.jsonl": lines(SOUND)[:-9]}, {"json.invalid": 1}),
    "lines that are no JSON object": Damage(among('{"prompt": "q', "[1]", "7", "nonsense"), {"json.invalid": 4}),
    "a key twice in a record": Damage(among('{"prompt": "q", "rating": 1, "rating": 5}'), {"json.duplicate_key": 1}),
    "a value nested without end": Damage(among('{"prompt": ' + "[" * 100_000), {"json.invalid": 1}),
    "a byte order mark": Damage({"r.jsonl": b"\xef\xbb\xbf" + lines(SOUND)}),
    "lines that end as on Windows": Damage({"r.jsonl": lines(SOUND).replace(b"\n", b"\r\n")}),
    "bytes that are not UTF-8": Damage(among(lines([answer()])[:-1].replace(b"one", b"\xff\xfe")), {"json.invalid": 1}),
    "half of a surrogate pair": Damage(among(*SURROGATES), {"text.surrogate": 2}),
    "NUL characters": Damage(among(answer(completion="a\0b"), answer(prompt="a\0b")), {"text.nul": 2}),
    "a rating that is text": Damage(among(answer(rating="4"), answer(rating="good")), {"column.type": 2}),
    "a rating that is a list, an object, a flag": Damage(
        among(answer(rating=[4]), answer(rating={"v": 4}), answer(rating=True)), {"column.type": 3}
    ),
    # Nothing says which half is the damaged one: the type of most cells stands, of as many the texts.
    "a column that is text from the middle on": Damage(
        [*SOUND[:HALF], *(row | {"rating": str(row["rating"])} for row in SOUND[HALF:])], {"column.type": HALF}
    ),
    "an answer, a prompt that is no text": Damage(
        among(answer(completion=7), answer(completion=["x"]), answer(prompt=7)), {"column.type": 3}
    ),
    "a rating that is no finite number": Damage(among(*NUMBERS), {"value.not_finite": 3}),
    "a rating of 400 digits": Damage(among(answer(rating=10**400)), {"column.type": 1}),
    "no rating": Damage(among(answer(rating=None), answer(rating=...)), {"rating.missing": 2}),
    "ratings off the scale": Damage(among(answer(rating=0), answer(rating=85)), {"rating.out_of_scale": 2}),
    "a prompt without a text": Damage(among(answer(prompt=""), answer(prompt=" \n\u00a0")), {"prompt.empty": 2}),
    "no prompt": Damage(among(answer(prompt=None), answer(prompt=...)), {"prompt.missing": 2}),
    "no answer": Damage(among(answer(completion=None), answer(completion=...)), {"completion.missing": 2}),
    "an answer of no characters, which is one": Damage(among(answer(completion=""))),
    "every record twice": Damage([*SOUND, *SOUND], merged=len(SOUND)),
    "an answer of ten megabytes": Damage(among(answer(completion="long " * 2_000_000))),
    "a conversation of 50,001 turns": Damage(talks(*["user", "assistant"] * 25_000, "user")),
    "roles that nobody knows": Damage([*TALK, *talks("tool", "user"), *talks("User")], {"prompt.role": 4}),
    "a prompt that ends with the assistant": Damage([*TALK, *talks("user", "assistant")], {"prompt.last_turn": 2}),
    "several system turns, which are legal": Damage(talks("system", "user", "system", "user")),
    "votes of one annotator that contradict each other": Damage(
        [vote("A", "B", 1), vote("A", "B", 0), vote("A", "C", 1)], merged=1, spec=VOTES
    ),
    "a pair, and the same pair the other way round": Damage(
        [vote("A", "B", 1), vote("B", "A", 1), vote("A", "C", 1)], merged=1, spec=VOTES
    ),
    "a pair of one answer with itself": Damage(
        [vote("A", "A", 1), vote("A", "B", 1)], {"pair.identical": 1}, spec=VOTES
    ),
    "votes off the scale": Damage(
        [vote("A", "B", 2), vote("B", "A", -1), vote("A", "C", 1)], {"preference.out_of_range": 2}, spec=VOTES
    ),
    "votes that the map does not have": Damage(
        [vote("A", "B", "A"), vote("A", "C", "tie"), vote("A", "D", "Tie"), vote("A", "E", None)],
        {"value.unmapped": 1, "verdict.missing": 1},
        spec=MAPPED,
    ),
    "cells of a CSV that are no ratings": Damage(
        {"r.csv": sheet("question 0?,one,good", "question 0?,two,", "question 0?,three,nan", "question 0?,four,50")},
        {"rating.not_a_number": 1, "rating.missing": 1, "value.not_finite": 1, "rating.out_of_scale": 1},
        spec=ANY,
    ),
    "files without a record among others": Damage(
        {"a.jsonl": b"", "b.jsonl": b"\n \n", "c.json": b"[]", "r.jsonl": lines(SOUND)}, spec=ANY
    ),
    "a second file whose ratings are texts": Damage(
        {"a.parquet": parquet(SOUND), "b.parquet": parquet([answer(rating="3"), answer(rating="?", completion="y")])},
        {"rating.not_a_number": 1},
        spec=ANY,
    ),
    "a file among others of which no record is whole": Damage(
        {"a.jsonl": b'{"prompt": \n}', "r.jsonl": lines(SOUND)}, {"json.invalid": 2}
    ),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_every_record_is_published_or_refused_by_its_code(damage, project, capfd):
    lay(project, damage.files)
    project.spec(damage.spec)
    assert project.build() == 0, capfd.readouterr().err
    found = fate(project)
    assert Counter(found.refused.values()) == damage.refused
    merged = [count["merged"] for count in project.snapshot.manifest["accounting"] if count["step"] == "rate"]
    assert sum(merged[0].values()) == damage.merged


MORE = [{"prompt": f"more {k}?", "completion": os.urandom(9).hex(), "rating": 1} for k in range(3000)]
STOPS = {
    "a gzip file that is cut off": (
        {"r.jsonl.gz": gzip.compress(lines(SOUND * 20))[:-30]},
        r"raw/r.jsonl.gz: the gzip file is damaged after line \d+: .*; fetch it again",
    ),
    "a gzip file that is cut off far behind what a first look sees": (
        {"r.jsonl.gz": gzip.compress(lines([*SOUND, *MORE]))[:-2000]},
        r"raw/r.jsonl.gz: the gzip file is damaged after line \d{3,}: .*; fetch it again",
    ),
    "a gzip file that is none": ({"r.jsonl.gz": lines(SOUND)}, r"raw/r.jsonl.gz: the gzip file is damaged: Not a gz"),
    "a gzip file with something behind it": (
        {"r.jsonl.gz": gzip.compress(lines(SOUND)) + b"junk"},
        r"raw/r.jsonl.gz: the gzip file is damaged after line 16",
    ),
    "UTF-16": ({"r.jsonl": lines(SOUND).decode().encode("utf-16")}, r"raw/r.jsonl: is UTF-16.*`iconv"),
    "lines that end as on an old Macintosh": (
        {"r.jsonl": lines(SOUND).replace(b"\n", b"\r")},
        r"demo.yaml:6: sources.a: .*no record of it is a JSON object",
    ),
    "an array that is cut off": ({"r.json": json.dumps(SOUND).encode()[:-30]}, r"raw/r.json: not valid JSON"),
    "two kinds of line ends in a CSV": (
        {"r.csv": b"prompt,completion,rating\r\nq,one,3\r\nq,two,4\nq,three,5\n"},
        r"raw/r.csv: line 3 ends in LF, the lines before it in CR LF: write all alike",
    ),
    "a short line of a CSV whose cells hold line ends": (
        {"r.csv": sheet('q,"two\nlines",3', "q,alone")},
        r"raw/r.csv: .*Line: 19; .*q,alone; .*: 3 Found: 2",
    ),
    "a short line of a CSV": ({"r.csv": sheet("q,alone")}, r"raw/r.csv: .*Line: 18; .*q,alone; .*: 3 Found: 2"),
    "a long line of a CSV": ({"r.csv": sheet("q,one,3,4")}, r"raw/r.csv: .*Line: 18; .*q,one,3,4; .*: 3 Found: 4"),
    "a quote of a CSV that is never closed": ({"r.csv": sheet('q,"one,3')}, r"raw/r.csv: .*Line: 18; .*unterminated"),
    "a column of a CSV twice": (
        {"r.csv": sheet(header="prompt,completion,prompt")},
        r"raw/r.csv: line 1 must name each column once; it is 'prompt,completion,prompt'",
    ),
    "a CSV that is not UTF-8": ({"r.csv": sheet("q,\udcff,3")}, r"raw/r.csv: .*Line: 18; .*not utf-8"),
    "a CSV without a line": ({"r.csv": b""}, r"raw/r.csv is empty: line 1 must name the columns"),
    "a Parquet file that is cut off": ({"r.parquet": parquet(SOUND)[:-10]}, r"raw/r.parquet: not a whole Parquet file"),
    "a second Parquet file of other columns": (
        {"a.parquet": parquet(SOUND), "b.parquet": parquet([{"question": "q", "answer": "x"}])},
        r"a: b.parquet: has no prompt; .*its columns are question, answer",
    ),
    "nothing but an empty file": ({"r.jsonl": b""}, r"demo.yaml:6: sources.a: .*no record of it is a JSON object"),
    "no file": ({}, r"no file at raw/\*"),
    "a folder in place of the file, empty": ({"r.jsonl/": b""}, r"no file at raw/\*"),
    "ratings from 0 to 100 on a scale from 1 to 5": (
        {"r.jsonl": lines(row | {"rating": 20 * row["rating"]} for row in SOUND)},
        r"nothing was published:\n.*no row is left; they went to: rating.out_of_scale 16",
    ),
    "a file of a kind that nobody knows": ({"r.txt": lines(SOUND)}, r"raw/r.txt: the name does not say.*`format:`"),
}


@pytest.mark.parametrize(("files", "message"), STOPS.values(), ids=STOPS)
def test_what_cannot_be_read_to_its_end_stops_the_build_with_its_place(files, message, project, capfd):
    lay(project, {name: content for name, content in files.items() if not name.endswith("/")})
    for name in files:
        if name.endswith("/"):
            (project.folder / "raw" / name).mkdir()
    project.spec(ANY)
    assert project.build() == 1
    said = capfd.readouterr().err
    assert re.search(message, said), said
    assert project.versions == project.left_over == []


def test_a_folder_in_place_of_a_file_is_read_as_the_files_in_it(project):
    project.raw([]).unlink()
    (project.folder / "raw" / "r.jsonl").mkdir()
    (project.folder / "raw" / "r.jsonl" / "part.jsonl").write_bytes(lines(SOUND))
    assert project.build() == 0
    assert project.snapshot.manifest["accounting"][0]["out"] == len(SOUND)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(project, capfd):
    (project.folder / "raw" / "r.jsonl").chmod(0)
    assert project.build() == 1
    assert "raw/r.jsonl" in capfd.readouterr().err


def test_prompts_that_only_look_different_are_on_the_same_side(project):
    asked = [f"{words}{k}?" for k in range(20) for words in ("What is ", "WHAT  is ", "what is\n", "\uff37hat is ")]
    lay(project, [answer(prompt=prompt, completion=c, rating=r) for prompt in asked for c, r in (("a", 1), ("b", 2))])
    assert project.build() == 0
    rows = fate(project).rows.with_columns(number=pl.col("prompt").list.first().struct["content"].str.extract(r"(\d+)"))
    sides = rows.group_by("number").agg(pl.len(), pl.col("split").n_unique())
    assert sides.select("len", "split").unique().rows() == [(4, 1)]
    assert rows["split"].n_unique() == 2


def test_votes_that_contradict_each_other_are_a_tie(project):
    lay(project, [vote("A", "B", 1), vote("A", "B", 0), vote("A", "C", 1)])
    project.spec(VOTES)
    assert project.build() == 0
    found = {
        frozenset(row[:2]): row[2:]
        for row in fate(project).rows.select("chosen", "rejected", "preference", "votes").rows()
    }
    assert found == {frozenset("AB"): (0.5, 2), frozenset("AC"): (1.0, 1)}


def test_a_map_that_is_the_wrong_way_round_cannot_be_seen(project):
    """Nothing in the data says which way is up: only a look at the rows (`show`) does."""
    lay(project, [vote("good", "bad", "A")])
    project.spec(MAPPED.replace("A: 1, B: 0", "A: 0, B: 1"))
    assert project.build() == 0
    assert fate(project).rows["chosen"].to_list() == ["bad"]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet"])
def test_a_raw_file_that_changes_while_it_is_read_leaves_nothing_under_its_name(name, project, monkeypatch, capfd):
    write = {
        "r.jsonl": lines,
        "r.json": lambda rows: json.dumps(rows).encode(),
        "r.csv": lambda rows: sheet() if rows is SOUND else sheet("question 0?,late,5"),
        "r.parquet": parquet,
    }[name]
    lay(project, {name: write(SOUND)})
    spec, _ = read(project.spec(ANY))
    workspace = engine.Workspace(project.folder / ".rlhf")
    plan = engine.plan

    def changed_after(*given: Any, **more: Any) -> Any:
        planned = plan(*given, **more)
        (project.folder / "raw" / name).write_bytes(write([*SOUND, answer(completion="late")]))
        return planned

    with monkeypatch.context() as patch:
        patch.setattr(engine, "plan", changed_after)
        with pytest.raises(ValueError, match=rf"a: .*{name} changed while it was read: run the same command again"):
            engine.build(spec, workspace)
    assert project.versions == project.left_over == []
    assert list((workspace.root / "steps").glob("*")) == []
    (project.folder / "raw" / name).write_bytes(write(SOUND))  # as it was: nothing of the other file is in its place
    engine.build(spec, workspace)
    assert "late" not in project.snapshot.scan().collect()["chosen"]
    assert len(fate(project).published) == len(SOUND)


def test_a_raw_file_that_vanishes_before_it_is_read_is_named(project, monkeypatch, capfd):
    plan = engine.plan

    def gone_after(*given: Any, **more: Any) -> Any:
        planned = plan(*given, **more)
        (project.folder / "raw" / "r.jsonl").unlink()
        return planned

    monkeypatch.setattr(engine, "plan", gone_after)
    assert project.build() == 1
    assert "raw/r.jsonl" in capfd.readouterr().err
    assert project.versions == project.left_over == []
