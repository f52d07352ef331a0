"""What runs again, and why: exactly what a change touches and what comes after it."""

import os
import shutil

import pytest

from rlhf_data import plan as planning
from rlhf_data.plan import Workspace, plan
from rlhf_data.spec import read
from tests.project import SPEC, Project, ratings

ALL = ["read:a", "collect", "clean:1", "rate", "split", "shape", "weigh", "publish"]
CLEANED = SPEC.replace("rate:", "clean:\n  - {op: filter, where: length(completion) > 1}\nrate:")


def pending(project, limit=None) -> dict[str, str]:
    """The steps that would run, and why."""
    spec, _ = read(project.folder / "demo.yaml")
    return {p.step.name: p.why for p in plan(spec, Workspace(project.folder / ".rlhf"), limit=limit) if not p.cached}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = Project(folder)
        made.raw(ratings())
        made.spec(CLEANED)
        assert made.build() == 0
    return made


@pytest.fixture
def built(once, monkeypatch):
    """A project that has been built once for all tests: they change its spec and raw files, and build nothing."""
    monkeypatch.chdir(once.folder)
    once.spec(CLEANED)
    once.raw(ratings())
    yield once
    (once.folder / "raw" / "s.jsonl").unlink(missing_ok=True)


def test_at_first_everything_runs(project):
    project.spec(CLEANED)
    assert pending(project) == dict.fromkeys(ALL, "never run")


def test_a_second_build_runs_nothing(built):
    assert pending(built) == {}


CHANGES = {
    "about": (("Rated answers", "Judged answers"), ["publish"], "about: "),
    "publish.to": (("snapshots/demo", "snapshots/other"), ["publish"], "to: "),
    "license": (("*.jsonl}", "*.jsonl, license: MIT}"), ["publish"], "sources: "),
    "expect": (("publish:", "expect: {rows: [1, null]}\npublish:"), ["publish"], "expect: "),
    "weight": (("publish:", "weigh: {weight: {row: margin}}\npublish:"), ["weigh", "publish"], "row: null → "),
    "pairing": (("pairing: all", "pairing: adjacent"), ["shape", "weigh", "publish"], 'pairing: "all" → "adjacent"'),
    "seed": (("seed: 7", "seed: 8"), ["shape", "weigh", "publish"], "seed: 7 → 8"),
    "table": (("to: paired, pairing: all", "to: unpaired"), ["shape", "weigh", "publish"], "gap: null → 0.0"),
    "split": (("test: 0.2", "test: 0.5"), ["split", "shape", "weigh", "publish"], "test: 0.2 → 0.5"),
    "scale": (("[1, 5]", "[1, 10]"), ["rate", "shape", "weigh", "publish"], "scale: [1.0, 5.0] → [1.0, 10.0]"),
    "where": (("> 1", "> 2"), ["clean:1", "rate", "split", "shape", "weigh", "publish"], "where: "),
    "category": (("*.jsonl}", "*.jsonl, category: z}"), ALL, 'category: null → "z"'),
    "columns": (("*.jsonl}", "*.jsonl, columns: {prompt: prompt, completion: completion}}"), ALL, "columns: "),
}  # fmt: skip


@pytest.mark.parametrize(("change", "steps", "why"), CHANGES.values(), ids=CHANGES)
def test_a_change_runs_the_steps_it_touches_and_those_after_them(change, steps, why, built):
    assert CLEANED.count(change[0]) == 1
    built.spec(CLEANED.replace(*change))
    found = pending(built)
    assert list(found) == steps
    assert found[steps[0]].startswith(why)
    assert all(
        reason.startswith("after ") for step, reason in found.items() if step not in (steps[0], "publish", "weigh")
    )


@pytest.mark.parametrize("line", ["train: {rule: sft, model: m}\n", "schedule: {cron: '0 3 * * 1'}\n"])
def test_what_happens_after_publishing_runs_nothing_before_it(line, built):
    built.spec(CLEANED + line)
    assert pending(built) == {}


def test_a_raw_file_that_changed_is_read_again_and_named(built):
    built.raw(ratings(13))
    found = pending(built)
    assert list(found) == ALL
    assert found["read:a"] == "raw files changed: r.jsonl"


def test_a_raw_file_that_arrives_is_read_and_named(built):
    built.raw(ratings(2), "s.jsonl")
    assert pending(built)["read:a"] == "raw files changed: s.jsonl"


def test_a_raw_file_that_was_touched_is_not_read_again(built):
    os.utime(built.folder / "raw" / "r.jsonl", (1, 1))
    assert pending(built) == {}


def test_a_raw_folder_that_moved_with_the_same_files_is_not_read_again(built):
    shutil.copytree(built.folder / "raw", built.folder / "moved")
    built.spec(CLEANED.replace("raw/", "moved/"))
    assert pending(built) == {}


def test_a_quick_look_is_kept_apart_from_the_real_thing(project):
    assert project.build() == 0
    assert list(pending(project, limit=5)) == [step for step in ALL if step != "clean:1"]
    assert project.build("--limit", "5") == 0
    assert pending(project) == pending(project, limit=5) == {}
    assert len(project.versions) == 1
    assert (project.folder / "snapshots" / "demo-limit5" / "refs" / "latest").is_file()


def test_only_the_source_that_changed_is_read_again(project):
    two = SPEC.replace("  a: {path: raw/*.jsonl}", "  a: {path: raw/r.jsonl}\n  b: {path: raw/s.jsonl}")
    project.raw(ratings(2), "s.jsonl")
    project.spec(two)
    assert project.build() == 0
    project.raw(ratings(3), "s.jsonl")
    assert list(pending(project)) == ["read:b", "collect", "rate", "split", "shape", "weigh", "publish"]


def test_the_order_of_sources_decides_who_names_a_text_and_so_is_part_of_the_plan(project):
    sources = ["  a: {path: raw/r.jsonl, category: first}", "  b: {path: raw/r.jsonl, category: second}"]
    shuffled = [row | {"category": None} for row in ratings()]
    project.raw(shuffled)
    spec = SPEC.replace("  a: {path: raw/*.jsonl}", "\n".join(sources)).replace(
        "to: paired, pairing: all", "to: unpaired"
    )
    project.spec(spec)
    assert project.build() == 0
    project.spec(spec.replace("\n".join(sources), "\n".join(reversed(sources))))
    assert {"collect", "publish"} <= pending(project).keys()
    assert not {"read:a", "read:b"} & pending(project).keys()


def test_a_step_whose_code_changed_runs_again(built, monkeypatch):
    version = planning.code_version
    monkeypatch.setattr(planning, "code_version", lambda f: version(f) + "x" * f.endswith("to_paired"))
    found = pending(built)
    assert list(found) == ["shape", "weigh", "publish"]
    assert found["shape"] == "its code changed"


def test_a_verifier_that_changed_anywhere_in_its_package_rates_again(project, monkeypatch):
    monkeypatch.syspath_prepend(project.folder)
    inner = project.folder / "graders" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("from graders.impl import grade")
    (inner.parent / "impl.py").write_text("def grade(messages, answer): return float(answer.split()[1])")
    (inner / "__init__.py").touch()
    (inner / "deep.py").write_text("from graders.impl import grade")
    project.raw(ratings(2))
    project.spec(SPEC.replace("by: rating, scale: [1, 5]", "by: verifier, verifier: 'graders:grade'"))
    assert project.build() == 0
    deep = planning.function_version("graders.inner.deep:grade")
    assert pending(project) == {}
    (inner.parent / "impl.py").write_text("def grade(messages, answer): return 2.0")
    assert "rate" in pending(project)
    assert planning.function_version("graders.inner.deep:grade") != deep


def test_a_cache_that_was_emptied_runs_again_and_says_why(project):
    assert project.build() == 0
    shutil.rmtree(project.folder / ".rlhf" / "steps")
    assert pending(project)["read:a"] == "its result is not in the workspace"


def test_a_map_of_numbers_booleans_and_texts_can_be_planned(project):
    project.raw([{"q": "x", "a": "y", "verdict": "no"}, {"q": "x", "a": "z", "verdict": "tie"}])
    columns = (
        "{prompt: q, completion: a, label: {from: verdict, map: {1: true, no: false, tie: null, 2024-01-01: false}}}"
    )
    project.spec(
        SPEC.replace("raw/*.jsonl", f"raw/*.jsonl, columns: {columns}")
        .replace("rate: {by: rating, scale: [1, 5]}\n", "")
        .replace("to: paired, pairing: all", "to: unpaired")
    )
    assert project.build() == 0
    assert pending(project) == {}


def test_a_data_set_folder_that_changed_is_read_again(project):
    import polars as pl

    folder = project.folder / "set"
    folder.mkdir()
    pl.DataFrame({"prompt": ["x"], "completion": ["y"], "rating": [1]}).write_parquet(folder / "train.parquet")
    project.spec(SPEC.replace("{path: raw/*.jsonl}", "{hf: ./set}"))
    spec, _ = read(project.folder / "demo.yaml")
    workspace = Workspace(project.folder / ".rlhf")
    before = plan(spec, workspace)[0].fingerprint
    assert plan(spec, workspace)[0].fingerprint == before
    pl.DataFrame({"prompt": ["x"], "completion": ["z"], "rating": [1]}).write_parquet(folder / "train.parquet")
    assert plan(spec, workspace)[0].fingerprint != before
