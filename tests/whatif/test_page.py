"""docs/rules.md and `rlhf-data rules` say what the code says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_data import rules
from rlhf_data.cli import run_command
from rlhf_data.whatif import page
from tests.whatif import snapshots

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_page_is_what_the_command_writes():
    again = "write it again: python -m rlhf_data.whatif.page"
    assert (DOCS / "rules.md").read_text(encoding="utf-8") == page.page(), again
    made = page.pictures()
    assert {path.name for path in (DOCS / "rules").glob("*.svg")} == set(made), again
    for name, text in made.items():
        assert numbers((DOCS / "rules" / name).read_text(encoding="utf-8")) == pytest.approx(numbers(text), abs=0.11), (
            again
        )


def numbers(svg: str) -> list[float]:
    """Coordinates, which another machine's last digit may round to the next tenth."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", svg)]


def test_the_command_removes_pictures_of_rules_that_are_gone(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "gone.svg").touch()
    page.write(tmp_path)
    assert (tmp_path / "rules.md").read_text(encoding="utf-8") == page.page()
    assert not (tmp_path / "rules" / "gone.svg").exists()


@pytest.mark.parametrize("name", rules.RULES)
def test_each_rule_has_a_formula_its_inputs_its_range_and_its_source(name):
    one = page.about(name)
    assert any("=" in line for line in one.formula)
    assert all(one.needs.values()), f"a quantity of {name} is not told"
    assert all(parameter.about for parameter in one.parameters), f"a parameter of {name} is not told"
    assert one.source
    shown = page.in_terminal(one)
    assert all(word in shown for word in (*one.formula, *one.needs, one.source))


def test_every_link_of_the_page_leads_somewhere():
    text = page.page()
    heads = {re.sub(r"[^\w-]", "", head.lower()) for head in re.findall(r"^### (.*)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) == heads
    assert set(re.findall(r"\]\(rules/([^)]*)\)", text)) == set(page.pictures())


def test_one_rule_is_shown_in_full_and_a_name_that_is_none_is_refused(capsys):
    assert run_command(["rules", "ipo"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2310.12036" in shown
    assert "beta" in shown or "tau" in shown
    assert run_command(["rules", "dpo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["beta"]["default"] == 0.1
    assert run_command(["rules", "dpoo"]) == 1
    assert "did you mean 'dpo'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rules", "weights", "report"])
def test_rules_are_listed_and_weighed_without_torch(command, tmp_path):
    arguments = [command]
    if command != "rules":
        arguments += [str(snapshots.paired(tmp_path)), "--rules", "dpo,beta_dpo", "--out", str(tmp_path / "out")]
    script = (
        f"import sys\nfrom rlhf_data.cli import run_command as run\nassert run({arguments!r}) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
