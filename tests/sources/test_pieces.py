"""A raw file is read in pieces: what comes out does not depend on where it is cut, and what was read stays read."""

import gzip
import json
import shutil

import polars as pl
import pytest

from rlhf_data import engine, files, tables, texts
from rlhf_data.plan import Workspace
from rlhf_data.sources import readers
from rlhf_data.sources.ingest import ingest
from rlhf_data.spec import read
from tests.project import SPEC, ratings

ODD = ["{broken", '{"prompt": "q", "completion": 1, "rating": 2}', "", '{"prompt": "", "completion": "x", "rating": 1}']
# Shared texts among far rows, damage in the middle, a broken last line without an end.
LINES = [json.dumps(row) for row in ratings(30)] + ODD + [json.dumps(row) for row in [*ratings(8), *ratings(2)]]
COLUMNS = {"prompt": "prompt", "completion": "completion", "rating": "rating", "category": "category"}


def write(path, lines=LINES, end="\n"):
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def ingested(folder, path, **given):
    """Chunks, the quarantine and the counts of a raw file."""
    (out := folder / "out").mkdir(parents=True, exist_ok=True)
    counts = ingest(out, chunks=folder / "chunks", source="s", files={"raw": [str(path)]}, columns=COLUMNS, **given)
    return texts.chunks_of(out), tables.read(out / "quarantine.parquet", "quarantine"), counts


@pytest.mark.parametrize(
    ("size", "name", "end"),
    [(400, "r.jsonl", "\n"), (1500, "r.jsonl", "\r\n"), (5000, "r.jsonl.gz", "\n"), (9000, "r.jsonl", "\n")],
)
def test_records_counts_and_refusals_are_those_of_the_file_wherever_it_is_cut(size, name, end, tmp_path, monkeypatch):
    path = write(tmp_path / name, end=end)
    _, whole, counted = ingested(tmp_path / "whole", path)
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    chunks, found, counts = ingested(tmp_path / "cut", path)
    assert counts == counted
    assert found.equals(whole)
    assert found["raw_ref"].to_list() == [[f"{name}#{k}"] for k in (120, 121, 122)]
    assert found["code"].to_list() == ["json.invalid", "column.type", "prompt.empty"]
    assert "line 121: " in found["detail"][0]
    if name == "r.jsonl":
        assert len(chunks) >= path.stat().st_size / (size + 200)
        starts = [chunk.start for chunk in chunks]
        assert starts == sorted(starts) and starts[0] == 0


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_pieces_are_whole_lines_that_make_up_the_file(size, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    for end in (b"\n", b""):
        path = tmp_path / "r.jsonl"
        path.write_bytes(b"\n".join([b'{"a": 1}', b"", b'{"a": "\xc3\xa9"}', b"x" * 30]) + end)
        blocks = list(readers._blocks(path))
        assert b"".join(block for _, block in blocks) == path.read_bytes()
        assert all(block.endswith(b"\n") for _, block in blocks[:-1])
        lines = [block.count(b"\n") for _, block in blocks]
        assert [line for line, _ in blocks] == [1 + sum(lines[:k]) for k in range(len(lines))]


def test_an_empty_file_is_one_empty_piece(tmp_path):
    (tmp_path / "r.jsonl").touch()
    chunks, refused, (records, observations) = ingested(tmp_path, tmp_path / "r.jsonl")
    assert (len(chunks), refused.height, records.rows_in, observations.rows_in) == (1, 0, 0, 0)


def published(project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((project.snapshot.path / "data").iterdir())}


@pytest.mark.parametrize("shape", ["to: paired, pairing: all", "to: unpaired"])
@pytest.mark.parametrize("size", [900, 3000])
def test_one_piece_or_many_publish_the_same_bytes(size, shape, project, monkeypatch):
    project.raw(LINES)
    project.spec(SPEC.replace("to: paired, pairing: all", shape))
    assert project.build() == 0
    whole, content = published(project), project.snapshot.manifest["content_hash"]
    quarantine = (project.snapshot.path / "quarantine" / "quarantine.parquet").read_bytes()
    spec, _ = read(project.folder / "demo.yaml")
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    built = engine.build(spec, Workspace(project.folder / "elsewhere"))
    assert len(list((project.folder / "elsewhere" / "chunks").glob("[!.]*"))) > 4
    assert project.snapshot.manifest["content_hash"] == content
    assert built.snapshot.name == project.snapshot.id and len(project.versions) == 1  # the same: not published again
    project.spec(SPEC.replace("to: paired, pairing: all", shape).replace("snapshots/demo", "snapshots/cut"))
    spec, _ = read(project.folder / "demo.yaml")
    cut = engine.build(spec, Workspace(project.folder / "elsewhere")).snapshot
    assert {path.name: path.read_bytes() for path in sorted((cut / "data").iterdir())} == whole
    assert (cut / "quarantine" / "quarantine.parquet").read_bytes() == quarantine


def made(folder) -> dict[str, int]:
    """The chunks that are there and when they were written."""
    return {path.name: (path / "_SUCCESS").stat().st_mtime_ns for path in (folder / "chunks").glob("[!.]*")}


def test_lines_that_are_added_re_read_only_the_last_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    path = write(tmp_path / "r.jsonl")
    before_chunks, *_ = ingested(tmp_path, path)
    before = made(tmp_path)
    write(path, [*LINES, *(json.dumps(row | {"prompt": "new?"}) for row in ratings(3))])
    chunks, _, (records, _) = ingested(tmp_path, path)
    after = made(tmp_path)
    assert records.rows_in == len([line for line in LINES if line]) + 12
    assert {name: after[name] for name in before} == before  # none was written anew
    assert chunks[: len(before_chunks) - 1] == before_chunks[:-1]
    assert 1 <= len(after.keys() - before.keys()) <= 2
    *_, (again, _) = ingested(tmp_path, path)
    assert (made(tmp_path), again) == (after, records)


def test_a_change_in_the_middle_re_reads_its_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_BYTES", 2000)
    path = write(tmp_path / "r.jsonl")
    ingested(tmp_path, path)
    before = made(tmp_path)
    write(path, [LINES[0].replace("answer 0", "answer 9"), *LINES[1:]])
    ingested(tmp_path, path)
    assert len(made(tmp_path).keys() - before.keys()) == 1


def test_another_way_of_reading_is_another_chunk(tmp_path):
    path = write(tmp_path / "r.jsonl")
    ingested(tmp_path, path)
    ingested(tmp_path, path, category="z")
    assert len(made(tmp_path)) == 2
    ingested(tmp_path, path, version="2")
    assert len(made(tmp_path)) == 3


def test_two_sources_of_one_file_share_its_chunks_and_are_counted_apart(tmp_path):
    path, counted = write(tmp_path / "r.jsonl"), []
    for source in ("s", "t"):
        (out := tmp_path / source).mkdir()
        files = {"raw": [str(path)]}
        counted.append(ingest(out, chunks=tmp_path / "chunks", source=source, files=files, columns=COLUMNS))
        assert [chunk.source for chunk in texts.chunks_of(out)] == [source]
        assert tables.read(out / "quarantine.parquet", "quarantine")["source"].unique().to_list() == [source]
    assert len(made(tmp_path)) == 1
    assert [[count.step for count in counts] for counts in counted] == [["read:s"] * 2, ["read:t"] * 2]
    assert [count.rows_in for count in counted[0]] == [count.rows_in for count in counted[1]]


def test_parquet_is_cut_by_rows(tmp_path, monkeypatch):
    frame = pl.DataFrame(ratings(10)).with_columns(completion=pl.when(pl.int_range(40) != 17).then("completion"))
    path = tmp_path / "r.parquet"
    frame.write_parquet(path)
    _, whole, counted = ingested(tmp_path / "whole", path)
    monkeypatch.setattr(readers, "PIECE_ROWS", 7)
    chunks, found, counts = ingested(tmp_path / "cut", path)
    assert ([chunk.start for chunk in chunks], counts) == ([0, 7, 14, 21, 28, 35], counted)
    assert found["raw_ref"].to_list() == [["r.parquet#17"]]
    assert found.equals(whole)


def test_a_column_that_a_whole_piece_lacks_is_null_there_and_one_that_no_piece_has_is_an_error(tmp_path, monkeypatch):
    bare = [{key: row[key] for key in ("prompt", "completion", "rating")} for row in ratings(4)]
    last = ratings(5)[-1:]
    path = write(tmp_path / "r.jsonl", [json.dumps(row) for row in [*bare, *last]])
    monkeypatch.setattr(readers, "PIECE_BYTES", 300)
    chunks, refused, (records, _) = ingested(tmp_path, path)
    assert (len(chunks) > 3, refused.height, records.out) == (True, 0, 17)
    held = pl.concat(texts.read_chunk(chunk, "completions", ["category"]) for chunk in chunks)
    assert held["category"].to_list() == [None] * 16 + [last[0]["category"]]
    with pytest.raises(ValueError, match=r"r\.jsonl: no column 'ratign', did you mean 'rating'"):
        ingest(
            tmp_path / "out",
            chunks=tmp_path / "chunks",
            source="s",
            files={"raw": [str(path)]},
            columns=COLUMNS | {"rating": "ratign"},
        )


def test_columns_that_have_our_names_are_those_of_the_whole_file(tmp_path, monkeypatch):
    # Rated only at its end, and broken in the middle: without the rest, the first pieces would be demonstrations.
    rows = [json.dumps({"prompt": f"p{k}", "completion": "x"}) for k in range(20)]
    rated = json.dumps({"prompt": "p", "completion": "rating:", "rating": 1})
    path = write(tmp_path / "r.jsonl", [*rows, *["{broken"] * 99, rated])
    found = []
    for size in (readers.PIECE_BYTES, 300):
        monkeypatch.setattr(readers, "PIECE_BYTES", size)
        (out := tmp_path / str(size)).mkdir()
        counts = ingest(out, chunks=out / "chunks", source="s", files={"raw": [str(path)]})
        found.append((counts, tables.read(out / "quarantine.parquet", "quarantine").to_dicts()))
    assert found[0] == found[1]
    assert found[0][0][0].quarantined == {"rating.missing": 20, "json.invalid": 99}


def test_a_query_sees_the_whole_file(tmp_path, monkeypatch):
    path = write(tmp_path / "r.jsonl", [json.dumps(row) for row in ratings(12)])
    query = "SELECT category AS prompt, min(completion) AS completion, count(*) AS rating FROM raw GROUP BY category"
    monkeypatch.setattr(readers, "PIECE_BYTES", 300)
    counts = ingest(tmp_path, chunks=tmp_path / "chunks", source="s", files={"raw": [str(path)]}, sql=query)
    (chunk,) = texts.chunks_of(tmp_path)
    assert texts.read_chunk(chunk, "observed")["value"].to_list() == [24.0, 24.0]
    assert counts[1].out == 2


DAMAGES = {
    "a flipped byte": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1, *path.read_bytes()[1:]])),
    "a short file": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "no file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("part", ("prompts", "completions", "observed", "refused"))
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_read_anew_or_named_and_never_published(damage, part, project, capfd):
    project.raw(LINES)
    assert project.build() == 0
    content = project.snapshot.manifest["content_hash"]
    (chunk,) = (project.folder / ".rlhf" / "chunks").glob("[!.]*")
    was = files.digest(chunk / f"{part}.parquet")
    DAMAGES[damage](chunk / f"{part}.parquet")
    shutil.rmtree(project.folder / "snapshots")
    built = project.build()  # `publish` alone would run, and read the texts again
    if damage != "a flipped byte":
        assert built == 0  # seen by the length: the raw file was read again
    elif part in ("prompts", "completions"):
        assert built == 1
        assert f"{part}.parquet is damaged: remove" in capfd.readouterr().err
        assert not project.versions
        shutil.rmtree(chunk)
        assert project.build() == 0
    else:  # nobody has to read it again
        assert built == 0
        shutil.rmtree(project.folder / ".rlhf" / "steps")
        assert project.build() == 1
        assert f"{part}.parquet is damaged: remove" in capfd.readouterr().err
        shutil.rmtree(chunk)
        assert project.build() == 0
    assert texts.whole(chunk) and files.digest(chunk / f"{part}.parquet") == was
    assert project.snapshot.manifest["content_hash"] == content
