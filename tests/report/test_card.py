import datasets
import pytest
from ruamel.yaml import YAML

from rlhf_data import tables
from rlhf_data.report import card


def front_matter(text: str) -> dict:
    _, head, body = text.split("---\n", 2)
    assert body.startswith("\n# ")
    return YAML(typ="safe").load(head)


def published(folder, rows, quarantine, manifest):
    (folder / "data").mkdir(parents=True)
    (folder / "quarantine").mkdir()
    for split in rows["split"].unique():
        part = rows.filter(rows["split"] == split)
        for k, half in enumerate(part.iter_slices(-(-part.height // 2))):
            tables.write(half, folder / "data" / f"{split}-{k:05}-of-00002.parquet", manifest["table"], published=True)
    tables.write(quarantine, folder / "quarantine" / "quarantine.parquet", "quarantine")
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")


@pytest.mark.parametrize("splits", [("train", "validation", "test"), ("train",)])
@pytest.mark.parametrize("table", ["paired", "unpaired"])
def test_datasets_loads_a_folder_with_the_card_split_by_split(table, splits, request, manifest, refused, tmp_path):
    rows = request.getfixturevalue(table)(400, splits=splits)
    published(tmp_path / "snapshot", rows, refused(9), manifest(rows))
    loaded = datasets.load_dataset(str(tmp_path / "snapshot"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == dict(rows["split"].value_counts().iter_rows())
    assert loaded["train"].column_names == list(tables.columns(table))


def test_a_split_without_rows_is_not_in_the_card(paired, manifest):
    rows = paired(30, splits=("train",))
    configs = front_matter(card(manifest(rows)))["configs"]
    assert [files["split"] for files in configs[0]["data_files"]] == ["train"]


def test_one_licence_of_all_sources_is_the_licence(paired, manifest):
    rows = paired(3)
    head = front_matter(card(manifest(rows, sources={"a": {"license": "MIT"}, "b": {"license": "mit"}})))
    assert head["license"] == "mit" and "source_licenses" not in head


@pytest.mark.parametrize("licences", [("MIT", "CC-BY-4.0"), ("MIT", None), ("our own",)])
def test_other_licences_are_listed(licences, paired, manifest):
    rows = paired(3)
    sources = {f"s{k}": {"license": licence} for k, licence in enumerate(licences)}
    head = front_matter(card(manifest(rows, sources=sources)))
    assert head["license"] == "other"
    assert [line["license"] for line in head["source_licenses"]] == [x or "not declared" for x in licences]


def test_every_column_is_described(paired, unpaired, manifest):
    for rows in (paired(3), unpaired(3)):
        text = card(manifest(rows))
        lines = [line for line in text.splitlines() if line.startswith("| `")]
        assert [line.split("`")[1] for line in lines] == rows.columns
        assert all(line.split("|")[4].strip() for line in lines)


def test_names_cannot_break_the_card(paired, manifest):
    evil = 'a: "b"\n---\n# | <script> \x00\x85🤖 {{ 1 }} `x`'
    over = {"name": evil, "about": evil, "sources": {evil: {"license": evil, "adapter": evil}}}
    text = card(manifest(paired(3), **over))
    head = front_matter(text)
    assert head["pretty_name"] == 'a: "b" --- # | <script> ␀\ufffd🤖 {{ 1 }} `x`'
    assert "<script>" not in text.split("---\n", 2)[2]


def test_the_same_manifest_gives_the_same_card(paired, manifest):
    rows = paired(9)
    assert card(manifest(rows)) == card(manifest(rows))
