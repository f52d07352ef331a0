"""Another spec's snapshot, and what a policy writes, as sources."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from rlhf_data import plan as planning
from rlhf_data.cli import run_command
from rlhf_data.ids import content_id
from rlhf_data.inspect import garbage
from rlhf_data.plan import Workspace
from rlhf_data.sampled import draw
from rlhf_data.snapshot import Snapshot
from rlhf_data.spec import SpecError, check, read_all
from tests import tiny_model
from tests.project import SPEC, ratings

pytestmark = pytest.mark.usefixtures("one_thread")

AGAIN = """version: 1
name: again
sources:
  old: {snapshot: demo}
split: {test: 0.2}
shape: {to: paired, pairing: as_given}
publish: {to: snapshots/again}
"""
SELF = """version: 1
name: self
sources:
  self:
    generate:
      {policy: model, prompts: {snapshot: demo, rows: 3}, n: 2, max_new_tokens: 5, max_prompt_length: 64,
       unfinished: keep}
rate: {by: verifier, verifier: "tests.test_sampled:length"}
shape: {to: unpaired}
publish: {to: snapshots/self}
"""


def length(messages, completion):
    return float(len(completion))


def opened(project, name: str) -> Snapshot:
    return Snapshot(project.folder / "snapshots" / name)


@pytest.fixture
def demo(project):
    assert project.build() == 0
    project.spec(AGAIN, "again.yaml")
    return project


def test_a_paired_snapshot_comes_back_as_the_pairs_that_it_holds(demo):
    assert run_command(["build", "again.yaml"]) == 0
    columns = ["prompt_id", "chosen_id", "rejected_id", "preference", "split", "category"]
    before, after = (opened(demo, name).scan().select(columns).sort(columns).collect() for name in ("demo", "again"))
    assert before.equals(after)


def test_a_paired_snapshot_comes_back_as_its_rewards_where_that_is_asked(demo):
    rated = AGAIN.replace("{snapshot: demo}", "{snapshot: demo, options: {judgment: rating}}")
    demo.spec(rated.replace("as_given", "all"), "again.yaml")
    assert run_command(["build", "again.yaml"]) == 0
    columns = ["chosen_id", "rejected_id", "margin"]
    before, after = (opened(demo, name).scan().select(columns).sort(columns).collect() for name in ("demo", "again"))
    assert before["chosen_id"].equals(after["chosen_id"])
    assert after["margin"].to_list() == pytest.approx(before["margin"].to_list())


@pytest.mark.parametrize(("options", "column"), [("", "rating"), (", options: {value: reward}", "reward")])
def test_an_unpaired_snapshot_comes_back_as_its_ratings_or_rewards(project, options, column):
    project.spec(SPEC.replace("{to: paired, pairing: all}", "{to: unpaired}"))
    assert project.build() == 0
    spec = AGAIN.replace("demo}", f"demo{options}}}").replace("{to: paired, pairing: as_given}", "{to: unpaired}")
    project.spec(spec, "again.yaml")
    assert run_command(["build", "again.yaml"]) == 0
    before = opened(project, "demo").scan().sort("completion_id").collect()
    after = opened(project, "again").scan().sort("completion_id").collect()
    assert after["rating"].to_list() == before[column].to_list()
    assert after["completion_id"].equals(before["completion_id"])


def test_a_snapshot_is_pinned_in_the_lock_and_what_it_was_made_from_is_in_the_manifest(demo):
    assert run_command(["build", "again.yaml"]) == 0
    made = opened(demo, "again")
    assert f"snapshot: demo@{demo.snapshot.id}" in (made.path / "spec.lock.yaml").read_text()
    assert made.manifest["sources"]["old"]["snapshot"]["id"] == demo.snapshot.id
    demo.raw(ratings(prompts=13))
    assert demo.build() == 0
    assert run_command(["plan", "again.yaml"]) == 2
    pinned = (made.path / "spec.lock.yaml").read_text()
    demo.spec(pinned, "again.yaml")
    assert run_command(["build", "again.yaml"]) == 0
    assert opened(demo, "again").manifest["content_hash"] == made.manifest["content_hash"]


def test_a_row_is_explained_by_the_row_of_the_snapshot_that_it_was(demo, capsys):
    assert run_command(["build", "again.yaml"]) == 0
    pair = opened(demo, "again").scan().head(1).collect().to_dicts()[0]
    capsys.readouterr()
    assert run_command(["explain", pair["pair_id"], "again", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]  # of all comparisons that the two answers were in
    assert all(one["state"] == "as it was read" and demo.snapshot.id in one["path"] for one in records)
    own = next(one for one in records if one["raw_ref"] in pair["raw_ref"])
    assert (own["record"]["chosen"], own["record"]["rejected"]) == (pair["chosen"], pair["rejected"])


def test_specs_are_built_in_the_order_of_the_snapshots_they_read(project, capsys):
    specs = project.folder / "specs"
    specs.mkdir()
    (specs / "a.yaml").write_text(AGAIN)
    (specs / "b.yaml").write_text(SPEC)
    assert run_command(["plan", "specs", "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)["specs"]
    assert [(one["spec"], one["waits_for"]) for one in shown] == [("demo", []), ("again", ["demo"])]
    assert run_command(["build", "specs"]) == 0
    assert run_command(["plan", "specs"]) == 0


def wrong(project, text: str) -> str:
    file = project.spec(text, "again.yaml")
    with pytest.raises(SpecError) as error:
        check(read_all(file), Workspace(project.folder / ".rlhf"))
    return str(error.value)


def test_a_version_that_is_not_there_is_told_before_anything_runs(demo):
    told = wrong(demo, AGAIN.replace("snapshot: demo", "snapshot: demo@nope"))
    assert "again.yaml:4: sources.old.snapshot: 'nope' is the beginning of no one version" in told
    assert told.endswith(demo.snapshot.id)


def test_what_is_wrong_with_such_a_source_is_said_before_anything_runs(project):
    told = wrong(project, AGAIN.replace("snapshot: demo", "snapshot: demi"))
    assert "sources.old.snapshot: no spec named 'demi' here and no snapshot of it" in told
    told = wrong(project, AGAIN.replace("snapshot: demo", "snapshot: demo, adapter: kto"))
    assert "adapter says how a file is read, and a snapshot needs none" in told
    assert "again.yaml:4: sources.old.snapshot" in wrong(project, AGAIN.replace("snapshot: demo", "snapshot: a b"))
    assert "prompts: missing" in wrong(project, SELF.replace("prompts: {snapshot: demo, rows: 3}, ", ""))
    assert "no folder nowhere" in wrong(project, SELF.replace("policy: model", "policy: nowhere"))
    circle = AGAIN.replace("snapshot: demo", "snapshot: again")
    assert "start from each other's runs or snapshots in a circle" in wrong(project, circle)


@pytest.fixture
def written(demo):
    tiny_model.save(demo.folder / "model")
    demo.spec(SELF, "self.yaml")
    assert run_command(["build", "self.yaml"]) == 0
    return demo


def test_what_a_policy_writes_is_rated_and_published_like_any_other_source(written):
    made = opened(written, "self")
    rows = made.scan().collect()
    assert rows["prompt_id"].n_unique() == 3
    assert rows["votes"].sum() + made.manifest["quarantined"] == 6  # a text that was written twice has two votes
    assert set(rows["prompt_id"]) <= set(written.snapshot.scan("train").collect()["prompt_id"])
    assert rows["reward"].to_list() == [len(text) for text in rows["completion"]]
    assert set(rows["model"]) == {"model"} and set(rows["category"]) <= {"x", "y"}
    said = made.manifest["sources"]["self"]
    assert said["snapshot"]["id"] == written.snapshot.id and len(said["policy"]["model_hash"]) == 32


def test_the_samples_of_the_last_build_are_not_gc_s_to_remove(written):
    (folder,) = Path(".rlhf/samples").iterdir()
    for path in [*Path(".rlhf").rglob("*")]:
        os.utime(path, (0, 0))
    assert "samples" not in [part["what"] for part in garbage.collect(Workspace(Path(".rlhf")))]
    assert folder.is_dir()


def test_samples_are_not_written_again_until_model_prompts_or_settings_change(written):
    def pending() -> list[str]:
        ((spec, _),) = read_all(written.folder / "self.yaml").values()
        return [p.step.name for p in planning.plan(spec, Workspace(Path(".rlhf"))) if not p.cached]

    assert pending() == []
    tiny_model.save(written.folder / "elsewhere")
    written.spec(SELF.replace("policy: model", "policy: elsewhere"), "self.yaml")
    assert pending()[:1] == ["read:self"]  # whose name is another; the texts are in the store
    files = list(Path(".rlhf/samples").glob("*/samples.parquet"))
    assert run_command(["build", "self.yaml"]) == 0
    assert list(Path(".rlhf/samples").glob("*/samples.parquet")) == files
    written.spec(SELF.replace("n: 2", "n: 3"), "self.yaml")
    assert pending()[:1] == ["read:self"]


def test_draws_use_up_all_prompts_before_any_comes_again():
    prompts = pl.DataFrame({"prompt_id": sorted(content_id(str(k)) for k in range(10))})
    rounds = [draw(prompts, rows=4, skip=4 * k, seed=1)["prompt_id"].to_list() for k in range(5)]
    flat = [one for drawn in rounds for one in drawn]
    assert sorted(flat[:10]) == sorted(flat[10:]) == prompts["prompt_id"].to_list()
    assert draw(prompts, rows=4, skip=0, seed=2)["prompt_id"].to_list() != rounds[0]
    assert draw(prompts, rows=None, skip=0, seed=2).equals(prompts)
