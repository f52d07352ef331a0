import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from rlhf_data import sources
from rlhf_data.plan import Workspace
from rlhf_data.sources.places import find_files
from rlhf_data.sources.samples import FORMS, make
from rlhf_data.spec import SpecError, check
from rlhf_data.spec.read import read

RECIPES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_the_data_it_names_within_what_it_expects(recipe, raw, tmp_path, run):
    if recipe.stem == "ultrafeedback":
        raw = tmp_path
        make("ultrafeedback", tmp_path / "ultrafeedback" / "sample.jsonl", 100)
    spec, _ = read(recipe, variables={"RAW": str(raw), "MODEL": str(tmp_path)})
    assert spec.about
    for source in spec.sources.values():
        assert source.license
        files = {table: list(map(str, paths)) for table, paths in find_files(source.path).items()}
        reading = {"adapter": source.adapter, "columns": source.columns, "sql": source.sql, "options": source.options}
        found = run(files, **reading, category=source.category)
        refused = sum(found.observations.quarantined.values())
        # A source may refuse more than the whole recipe does: AlpacaEval's ties are all in one file.
        assert refused <= 2 * (spec.expect.quarantine_rate or 0) * found.observations.rows_in
        assert found.judgments.height


def test_there_is_a_recipe_or_a_sample_for_every_adapter():
    used = {line.split()[-1] for path in RECIPES for line in path.read_text().splitlines() if "adapter:" in line}
    assert used | set(FORMS) == set(sources.ADAPTERS)


def test_every_real_set_has_a_recipe(raw):
    named = {name for path in RECIPES for name in re.findall(r"\$\{RAW\}/(\w+)/", path.read_text())}
    assert named - {"ultrafeedback"} == {path.name for path in raw.iterdir() if path.is_dir()} - {"ultrafeedback_shape"}


@pytest.mark.parametrize(("column", "refused"), [("worker", False), ("api_id", True)])
def test_columns_are_kept_of_an_adapters_first_table_whatever_the_order_of_its_files(column, refused, raw, tmp_path):
    text = (RECIPES[0].parent / "llmfao.yaml").read_text()
    votes = next(line for line in text.splitlines(keepends=True) if "votes: ${RAW}" in line)
    turned = text.replace(votes, "").replace(
        "    adapter: llmfao\n", f"{votes}    adapter: llmfao\n    keep_columns: [{column}]\n"
    )
    (tmp_path / "kept.yaml").write_text(turned)
    file = {tmp_path / "kept.yaml": read(tmp_path / "kept.yaml", variables={"RAW": str(raw)})}
    with pytest.raises(SpecError, match="no column 'api_id'") if refused else nullcontext():
        check(file, Workspace(tmp_path / ".rlhf"))
