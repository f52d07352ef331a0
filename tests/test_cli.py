"""Commands: help, exit codes, messages, JSON, and how little is loaded before it is needed."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from rlhf_data.cli import app, run_command
from tests.project import SPEC

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
HEAVY = ("torch", "transformers", "prefect", "pandas", "pandera", "polars", "duckdb", "datasets", "pyarrow")


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ran.stderr.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_parameter_has_help(command, capsys):
    assert run_command([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    assert GROUP.commands[command].help
    for parameter in GROUP.commands[command].params:
        name = max(parameter.opts, key=len)
        assert getattr(parameter, "help", None) or name in ("--json-schema",), f"{command} {name} has no help"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(arguments, capsys):
    assert run_command(arguments) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^\s+{command}\s", shown, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["build", "--help"]], ids=["all", "build"])
def test_help_loads_nothing_heavy(arguments):
    started = time.perf_counter()
    loaded = loaded_by(
        f"from rlhf_data.cli import run_command\nassert run_command({[*arguments] or ['--help']!r}) == 0"
    )
    print(f"--help took {time.perf_counter() - started:.2f} s, Python's start included")
    assert loaded.isdisjoint(HEAVY)


def test_the_library_and_its_rules_load_no_torch_and_no_prefect():
    assert loaded_by("import rlhf_data, rlhf_data.cli, rlhf_data.rules").isdisjoint(HEAVY)


def test_checking_and_planning_load_no_torch(built):
    code = "from rlhf_data.cli import run_command as run\nfor c in 'check', 'plan': assert run([c, 'demo.yaml']) == 0"
    assert loaded_by(code).isdisjoint({"torch", "transformers", "prefect", "pandas"})


def test_a_plan_exits_2_while_something_is_pending_and_0_when_nothing_is(project, capsys):
    assert run_command(["plan", "demo.yaml"]) == 2
    assert re.search(r"^  run    read:a +never run$", capsys.readouterr().out, re.MULTILINE)
    assert project.build() == 0
    capsys.readouterr()
    assert run_command(["plan", "demo.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["pending"] is False
    assert all(not step["runs"] for step in shown["specs"][0]["steps"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biuld", "demo.yaml"], "No such command 'biuld'"),
        (["build"], "Missing argument 'spec'"),
        (["build", "demo.yaml", "--limit", "0"], "greater than or equal to 1"),
        (["build", "demo.yaml", "--nope"], "No such option"),
        (["build", "demo.yaml", "--var", "WORLD"], "--var WORLD: write NAME=VALUE"),
        (["build", "nope.yaml"], "nope.yaml: no such file or folder"),
        (["show", "nope"], "no finished snapshot at nope"),
        (["quarantine", "nope"], "no finished snapshot at nope"),
        (["report", "nope"], "no finished snapshot at nope"),
        (["score", "demo.yaml"], "demo has no score section: add score: {model: …}"),
        (["train", "demo.yaml"], "demo has no train section"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_a_message_and_exit_1(arguments, message, project, capfd):
    assert run_command(arguments) == 1
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_bug_of_ours_is_not_dressed_up_as_the_users_mistake(project, monkeypatch):
    from rlhf_data import engine

    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr(engine, "build", broken)
    with pytest.raises(KeyError):
        run_command(["build", "demo.yaml"])


def test_a_build_that_was_interrupted_says_how_to_go_on(project, monkeypatch, capfd):
    from rlhf_data import engine

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "build", interrupted)
    assert run_command(["build", "demo.yaml"]) == 130
    assert "goes on from there" in capfd.readouterr().err


def test_build_prints_one_json_value_and_its_progress_beside_it(project, capfd):
    assert project.build("--json") == 0
    out, err = capfd.readouterr()
    (result,) = json.loads(out)
    assert result["spec"] == "demo"
    assert result["ran"][-1] == "publish"
    assert sum(result["rows"].values()) == 72
    assert "✓ publish" in err
    assert project.build("--json") == 0
    assert json.loads(capfd.readouterr().out)[0]["ran"] == []


def test_what_build_says_of_the_quarantine_is_what_is_in_it(built, capsys):
    assert built.build() == 0
    assert "2 in quarantine" in capsys.readouterr().out
    assert run_command(["quarantine", "snapshots/demo"]) == 0
    shown = capsys.readouterr().out
    assert "json.invalid" in shown
    assert "rating.out_of_scale" in shown
    assert shown.splitlines()[-1].split() == ["2", "in", "all"]
    assert run_command(["quarantine", "snapshots/demo", "--json", "--code", "json.invalid"]) == 0
    assert [row["code"] for row in json.loads(capsys.readouterr().out)] == ["json.invalid"]


def test_quarantine_of_no_such_code_says_that_nothing_was_refused(built, capsys):
    assert run_command(["quarantine", "snapshots/demo", "--code", "no.such"]) == 0
    assert capsys.readouterr().out == "nothing was refused as no.such\n"


def test_show_shows_the_accounting_and_rows(built, capsys):
    assert run_command(["show", "snapshots/demo", "--rows", "1", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert "shape" in shown
    assert "  chosen " in shown
    assert shown.count("pair_id") == 1
    assert "72 rows" in shown.splitlines()[1]
    assert "json.invalid 1, rating.out_of_scale 1" in shown
    assert "where the rows went" in shown
    assert run_command(["show", "snapshots/demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["manifest"]["name"] == "demo"
    assert len(found["rows"]) == 3
    assert run_command(["show", "snapshots/demo", "--split", "tset"]) == 1


def test_report_names_a_file_that_is_there(built, capsys):
    assert run_command(["report", "snapshots/demo"]) == 0
    assert "<html" in Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8").lower()


def test_rules_lists_every_rule_with_its_table_and_parameters(capsys):
    from rlhf_data import rules

    assert run_command(["rules", "--json"]) == 0
    listed = {rule["rule"]: rule for rule in json.loads(capsys.readouterr().out)}
    assert listed.keys() == rules.RULES.keys()
    assert listed["dpo"]["table"] == "paired"
    assert listed["dpo"]["parameters"] == {"beta": 0.1}
    assert run_command(["rules"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} +(un)?paired ", shown, re.MULTILINE) for name in rules.RULES)


def test_doctor_says_what_is_installed_and_what_the_workspace_holds(built, capsys):
    assert run_command(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["polars"]
    assert facts["workspace_bytes"]["steps"] > 0
    assert run_command(["doctor"]) == 0


def test_init_lays_out_the_recipes_and_leaves_files_that_are_there_alone(tmp_path, capsys):
    (tmp_path / "pipelines" / "world").mkdir(parents=True)
    (tmp_path / "pipelines" / "world" / "dpo.yaml").write_text("mine")
    assert run_command(["init", str(tmp_path)]) == 0
    assert "dpo.yaml" not in capsys.readouterr().out
    assert (tmp_path / "pipelines" / "world" / "dpo.yaml").read_text() == "mine"
    assert (tmp_path / "pipelines" / "world" / "sft.yaml").read_text().startswith("#")


def test_init_drafts_a_spec_that_checks(project, capfd):
    assert run_command(["init", "--from", "raw/r.jsonl"]) == 0
    assert run_command(["check", "pipelines/r.yaml"]) == 0, capfd.readouterr().err
    assert run_command(["init", "--from", "raw/r.jsonl"]) == 1
    assert "exists: remove it, or name another folder" in capfd.readouterr().err


def test_limit_is_a_quick_look(project, capfd):
    assert project.build("--limit", "4", "--json") == 0
    assert sum(json.loads(capfd.readouterr().out)[0]["rows"].values()) == 6  # four answers to one prompt


def test_set_and_var_change_the_spec_of_one_run(project, capfd):
    project.spec(SPEC.replace("snapshots/demo", '"${WHERE}/demo"'))
    assert project.build("--var", "WHERE=elsewhere", "--set", "shape.pairing=adjacent", "--json") == 0
    (result,) = json.loads(capfd.readouterr().out)
    assert result["snapshot"].startswith("elsewhere/demo/")
    assert sum(result["rows"].values()) == 12 * 3
