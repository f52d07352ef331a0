"""What gc removes and what it never does: laws over a workspace that was built, changed and built again."""

import json
import os
import time
from pathlib import Path

import pytest

from rlhf_data import engine, files
from rlhf_data.cli import run_command
from rlhf_data.inspect import garbage
from rlhf_data.inspect.places import versions
from rlhf_data.plan import Workspace, in_use
from rlhf_data.snapshot import set_latest
from tests.project import SPEC, ratings

WORK = Workspace(Path(".rlhf"))


def long_ago(days=2.0):
    """Make everything in the workspace and all versions as old as this."""
    then = time.time() - days * garbage.DAY
    for path in [*Path(".rlhf").rglob("*"), *Path("snapshots").rglob("*")]:
        os.utime(path, (then, then))


@pytest.fixture
def thrice(set_aside, monkeypatch):
    """Three versions of a snapshot, and the steps of all three, long ago."""

    def build(made):
        made.spec()
        for prompts in (12, 13, 14):
            made.raw(ratings(prompts))
            assert made.build() == 0

    with set_aside.copied("thrice", build, monkeypatch) as project:
        long_ago()
        assert len(project.versions) == 3
        yield project


def ids(project):
    """The versions there are, in the order in which they were published."""
    return [path.name for path in versions(project.folder / "snapshots" / "demo")]


def steps():
    return {path.name for path in Path(".rlhf/steps").iterdir()}


def removed(**given):
    return [(part["what"], Path(part["path"]).name) for part in garbage.collect(WORK, **given)]


def test_steps_of_earlier_builds_go_and_the_last_build_stays_cached(thrice):
    before = steps()
    gone = removed()
    assert {what for what, _ in gone} == {"step", "piece", "list of pieces"}
    assert {name for what, name in gone if what == "step"} == before - steps()
    assert len(list(Path(".rlhf/chunks").glob("[!.]*"))) == 1  # one piece of the one raw file
    assert len(steps()) == len(before) // 3
    assert len(ids(thrice)) == 3  # no retain: every version stays
    assert run_command(["plan", "demo.yaml"]) == 0
    assert removed() == []


def test_a_dry_run_names_the_same_and_removes_nothing(thrice):
    would = garbage.collect(WORK, dry=True)
    assert would
    assert garbage.collect(WORK) == would
    sizes = [part["bytes"] for part in would]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 0


def test_the_newest_versions_are_kept_as_the_spec_or_the_command_says(thrice):
    first, second, third = ids(thrice)
    assert ("snapshot", first) in removed(keep=2)
    assert ids(thrice) == [second, third]
    thrice.spec(SPEC.replace("publish: {to: snapshots/demo}", "publish: {to: snapshots/demo, retain: 1}"))
    assert thrice.build() == 0  # the same content: nothing is published
    assert ids(thrice) == [second, third]
    assert removed() == [("snapshot", second)]
    assert ids(thrice) == [third]
    assert thrice.snapshot.id == third


def test_the_latest_stays_even_where_it_is_not_the_newest(thrice):
    first, *_, newest = versions(Path("snapshots/demo"))
    set_latest(first)
    removed(keep=1)
    assert versions(Path("snapshots/demo")) == [first, newest]


def test_of_two_specs_in_one_folder_each_keeps_its_own_latest(thrice):
    first, second, third = ids(thrice)
    last = Path(".rlhf/last")
    facts = json.loads((last / "demo.json").read_text())
    facts["publish"] |= {"retain": 1, "fingerprint": "others"}
    (last / "other.json").write_text(json.dumps(facts))
    pointer = WORK.step("others") / "snapshot.json"
    files.write_text(pointer, json.dumps({"path": str(thrice.folder / "snapshots" / "demo" / first)}))
    assert [part for part in removed() if part[0] == "snapshot"] == []  # demo retains all
    (last / "demo.json").write_text((last / "demo.json").read_text().replace('"retain": null', '"retain": 1'))
    assert [part for part in removed() if part[0] == "snapshot"] == [("snapshot", second)]
    assert ids(thrice) == [first, third]


def test_a_version_of_the_last_hour_stays_whatever_is_retained(thrice):
    first, _, third = ids(thrice)
    os.utime(Path("snapshots/demo") / first)
    removed(keep=1)
    assert ids(thrice) == [first, third]


def test_what_a_run_was_trained_on_and_what_another_snapshot_was_made_from_stay(thrice):
    first, second, third = ids(thrice)
    run = Path(".rlhf/runs/demo/0123")
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"snapshot": first}))
    lock = Path("snapshots/demo") / third / "spec.lock.yaml"
    lock.write_text(lock.read_text() + f"# made from {second}\n")
    removed(keep=1)
    assert ids(thrice) == [first, second, third]
    lock.write_text("")
    removed(keep=1)
    assert ids(thrice) == [first, third]


def test_what_is_younger_stays(thrice):
    assert removed(older_than=3) == []
    first, second, third = ids(thrice)
    os.utime(Path("snapshots/demo") / first)
    assert [name for what, name in removed(older_than=1) if what == "snapshot"] == [second]
    assert ids(thrice) == [first, third]


def test_a_step_that_was_made_or_used_a_moment_ago_stays_with_what_it_was_made_from(thrice):
    old = next(path for path in Path(".rlhf/steps").iterdir() if _step(path) == "weigh" and path.name not in _last())
    os.utime(old / "_SUCCESS")
    kept = {old.name}
    ahead = [old]
    while ahead:
        inputs = json.loads((ahead.pop() / "step.json").read_text())["inputs"].values()
        kept |= set(inputs)
        ahead += [WORK.step(name) for name in inputs]
    removed()
    assert kept <= steps()


def _step(path):
    return json.loads((path / "step.json").read_text())["step"]


def _last():
    return {step["fingerprint"] for step in json.loads(Path(".rlhf/last/demo.json").read_text()).values()}


def test_a_step_that_is_used_again_is_young_again(thrice):
    assert thrice.build() == 0
    assert all(garbage._age(WORK.step(name)) < garbage.HOUR for name in _last())


def test_half_written_files_go_once_their_process_is_gone(project):
    assert project.build() == 0
    with files.whole_folder(Path(".rlhf/steps/mine")) as alive:
        ended = alive.with_name(alive.name.replace(f"-{os.getpid()}.", f"-{2**22 + 1}."))
        ended.mkdir()
        (ended / "part").write_text("x" * 100)
        other = Path("snapshots/demo/.x.0badcafe-7.12345678.tmp")  # another machine's
        other.mkdir()
        found = garbage.collect(WORK)
        assert [(part["what"], part["path"], part["bytes"]) for part in found] == [("temporary", str(ended), 100)]
        assert alive.is_dir()
        long_ago()
        os.utime(alive)
        assert removed() == [("temporary", other.name)]


def test_pieces_of_raw_files_stay_while_a_step_points_into_them(project):
    assert project.build() == 0
    for name in ("used", "unused"):
        (Path(".rlhf/chunks") / name).mkdir(parents=True)
    step = WORK.step(json.loads(Path(".rlhf/last/demo.json").read_text())["collect"]["fingerprint"])
    (step / "chunks.json").write_text(json.dumps([[str(Path(".rlhf/chunks/used")), "a", 0]]))
    long_ago()
    assert removed() == [("piece", "unused")]


def test_scores_go_only_where_they_are_asked_for_and_no_one_names_their_model(project):
    assert project.build() == 0
    for model in ("named", "forgotten"):
        folder = WORK.scores / f"recipe-{model}"
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps({"model_hash": model}))
    run = Path(".rlhf/runs/demo/0123")
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"snapshot": "x", "model_hash": "named"}))
    long_ago()
    assert removed() == []
    assert removed(scores=True) == [("scores", "recipe-forgotten")]
    assert [path.name for path in WORK.scores.iterdir()] == ["recipe-named"]


def test_gc_does_nothing_while_a_build_runs(thrice, capfd, monkeypatch):
    before = steps()
    run_step = engine.run_step

    def building(*given, **named):
        assert run_command(["gc"]) == 1
        return run_step(*given, **named)

    monkeypatch.setattr(engine, "run_step", building)
    assert thrice.build() == 0
    assert "a build is running in .rlhf: wait for it" in capfd.readouterr().err
    assert steps() == before
    with in_use(WORK), in_use(WORK):  # builds share it
        pass
    assert run_command(["gc"]) == 0


def test_the_command_prints_sizes(thrice, capfd):
    capfd.readouterr()
    assert run_command(["gc", "--keep", "1", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "the newest 1 of 3 stay" in said
    assert "would be removed" in said.splitlines()[-1]
    assert run_command(["gc", "--keep", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["removed"]
    assert run_command(["gc"]) == 0
    assert capfd.readouterr().out == "nothing is to be removed\n"
    assert run_command(["gc", "--keep", "1", "--older-than", "2"]) == 1
    assert "give one of them" in capfd.readouterr().err
    assert run_command(["gc", "--workspace", "nowhere"]) == 1
    assert not Path("nowhere").exists()


def test_token_ids_go_with_their_snapshot_and_no_sooner(thrice):
    first, second, third = ids(thrice)
    versions_folder = thrice.folder / "snapshots" / "demo"
    for name in (first, second, third, "removed-by-hand"):
        files.write_text(versions_folder / "tokens" / name / "encoding" / "train.json", "{}")
    for name in (third, "elsewhere-old", "elsewhere-new"):
        files.write_text(WORK.root / "tokens" / name / "encoding" / "train.json", "{}")
    long_ago()
    os.utime(WORK.root / "tokens" / "elsewhere-new" / "encoding")
    gone = [name for what, name in removed(keep=2) if what == "tokens"]
    assert sorted(gone) == sorted(["elsewhere-old", "removed-by-hand", first])
    left = {path.name for path in (versions_folder / "tokens").iterdir()}
    assert left == {second, third}
    assert ids(thrice) == [second, third]
    assert [part for part in removed(keep=2) if part[0] == "tokens"] == []


def test_samples_stay_while_a_kept_step_was_read_from_them(project):
    assert project.build() == 0
    last = json.loads(Path(".rlhf/last/demo.json").read_text())["read:a"]["fingerprint"]
    for name in ("of-a-round", "of-a-step-that-goes", "unfinished", "used-today"):
        files.write_text(WORK.samples / name / "part-00000.parquet", name)
    files.write_text(WORK.step(last) / "samples.json", json.dumps({"samples": "of-a-round"}))
    files.write_text(WORK.step("old") / "samples.json", json.dumps({"samples": "of-a-step-that-goes"}))
    long_ago()
    os.utime(WORK.samples / "used-today")
    would = [part for part in garbage.collect(WORK, dry=True) if part["what"] == "samples"]
    assert {Path(part["path"]).name for part in would} == {"of-a-step-that-goes", "unfinished"}
    assert sum(part["bytes"] for part in would) == len("of-a-step-that-goes" + "unfinished")
    assert len(list(WORK.samples.iterdir())) == 4  # it was dry
    assert {name for what, name in removed() if what == "samples"} == {"of-a-step-that-goes", "unfinished"}
    assert {path.name for path in WORK.samples.iterdir()} == {"of-a-round", "used-today"}


def test_claims_go_once_nobody_renews_them(project):
    assert project.build() == 0
    for job in ("killed", "scoring"):
        files.write_text(WORK.scores / "claims" / job / "000.claim", "1 2")
    long_ago(days=0.1)
    os.utime(WORK.scores / "claims" / "scoring" / "000.claim")
    assert [one for one in removed() if one[0] == "claims"] == [("claims", "killed")]
    assert [path.name for path in (WORK.scores / "claims").iterdir()] == ["scoring"]
