"""Who imports whom: the module map of docs/design.md, read off the code."""

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlhf_data"
STEPS = ("sources", "clean", "rate", "shape", "weigh")
MODULES = sorted(PACKAGE.rglob("*.py"))

# What the modules of a part may import of ours, wherever in the file the import stands.
BASE = {"ids", "files", "tables", "texts", "accounting", "quarantine"}
ALLOWED: dict[str, set[str]] = {
    "ahead": set(),
    "ids": set(),
    "words": set(),
    "files": set(),
    "order": set(),
    "accounting": set(),
    "tables": {"ids", "files", "ahead"},
    "texts": {"files", "tables"},
    "quarantine": {"tables", "texts"},
    "sources": {*BASE, "sources", "words"},
    "clean": {*BASE, "clean"},
    "rate": {*BASE, "rate"},
    "shape": {*BASE, "shape"},
    "weigh": {*BASE, "weigh", "words"},
    "rules": {"rules", "words"},
    "scoring": {"files", "scoring", "rules"},  # files needs nothing but xxhash
    "training": {"files", "order", "training", "scoring", "rules"},
    "world": {"world", "ids"},
    "report": {*BASE, "report", "rules"},
    "reference": {*BASE, "shape"},
    "sampled": {*BASE, "sources"},
    "beside": {*BASE, "snapshot", "sampled", "training"},
    "rounds": {*BASE, "snapshot", "spec"},
    "expectations": {"accounting"},
    "snapshot": {*BASE, "report", "expectations"},
    "spec": {*BASE, "words", "spec", "rules", "scoring", "sources", "clean", "weigh"},
    "terminal": {"report"},
    "installation": {"terminal"},
    "scaffold": {*BASE, "sources"},
    "whatif": {*BASE, "order", "whatif", "snapshot", "rules", "scoring", "report"},
    "plan": {*BASE, "snapshot", "spec", "sources", "rules", "scoring"},
    "inspect": {*BASE, "inspect", "report", "snapshot", "plan", "spec", "sources", "shape", "scoring"},
}
# Third-party packages that a part runs without.
BARE = {"polars", "pandera", "prefect", "duckdb", "datasets", "pydantic"}
FORBIDDEN = {
    "rules": {*BARE, "torch", "numpy", "transformers"},  # of torch only names for type checkers
    "scoring": BARE,
    "training": BARE,
    "ids": {"torch", "pandera", "duckdb"},
    "sources": {"torch", "transformers"},
    "clean": {"torch", "transformers", "duckdb"},
    "rate": {"torch", "transformers", "duckdb"},
    "shape": {"torch", "transformers", "duckdb"},
    "weigh": {"torch", "transformers", "duckdb"},
    "whatif": {"transformers", "duckdb"},
}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, at_module_level: bool = False) -> set[str]:
    """Modules that a file imports when it runs; what only type checkers see is left out."""
    found: set[str] = set()

    def visit(nodes) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and at_module_level:
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.add(str(node.module))
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            visit(ast.iter_child_nodes(node))

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def ours(path: Path) -> set[str]:
    """The parts of our package that a file imports."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("rlhf_data.")}
    return {name for name in parts if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


BOUND = [path for path in MODULES if part(path) in ALLOWED]


@pytest.mark.parametrize("path", BOUND, ids=ids(BOUND))
def test_a_module_imports_only_what_stands_above_it(path):
    assert ours(path) <= ALLOWED[part(path)]


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_a_module_runs_without_what_its_part_runs_without(path):
    third_party = {name.partition(".")[0] for name in imports(path)}
    assert third_party.isdisjoint({"prefect", "flows", "pandas"})
    assert third_party.isdisjoint(FORBIDDEN.get(part(path), set()))


def test_every_part_has_its_place():
    placed = ALLOWED.keys() | {"__init__", "api", "engine", "commands", "cli"}  # the last four may import everything
    assert {part(path) for path in MODULES} == placed


def test_the_steps_do_not_know_each_other():
    for path in MODULES:
        if part(path) in STEPS:
            assert ours(path) & set(STEPS) <= {part(path)}


def test_only_tables_reads_the_contracts_and_only_readers_of_raw_files_read_parquet_without_one():
    readers = {part(path) for path in MODULES if "pandera" in {name.partition(".")[0] for name in imports(path)}}
    assert readers == {"tables"}


def test_the_command_line_loads_typer_and_the_standard_library_only():
    files = [PACKAGE / "cli.py", PACKAGE / "terminal.py", *(PACKAGE / "commands").glob("*.py")]
    loaded = set().union(*(imports(file, at_module_level=True) for file in files))
    known = {"errno", "json", "sys", "pathlib", "typing", "typer", "rlhf_data"}
    assert {name.partition(".")[0] for name in loaded} <= known
    assert {name.split(".")[1] for name in loaded if name.startswith("rlhf_data.")} <= {"commands", "terminal"}
    assert ours(PACKAGE / "terminal.py") <= {"report"}  # and that inside a function


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def test_every_public_function_of_the_rules_says_what_it_does():
    silent = [
        f"{p.name}:{f.name}" for p in (PACKAGE / "rules").glob("*.py") for f in functions(p) if not ast.get_docstring(f)
    ]
    assert silent == []


def test_every_rule_carries_its_formula_and_its_source():
    from rlhf_data.rules import RULES

    for name, rule in RULES.items():
        assert re.search(r"w(_chosen|₊|_rejected|₋)?\s*=", rule.__doc__), f"{name} has no formula"
        assert "Source:" in rule.__doc__, f"{name} has no source"


def test_no_flow_has_the_name_of_a_dependency():
    # Prefect puts the flow's folder on sys.path: flows/polars.py would replace polars.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", requirement)[0].replace("-", "_").lower() for requirement in wanted}
    flows = {path.stem for path in (ROOT / "flows").iterdir()}
    assert flows.isdisjoint(names | {"rlhf_data", "yaml", "ruamel", "json", "typing"})


def test_nothing_imports_the_flows():
    for path in [*MODULES, *(ROOT / "flows").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        assert "flows" not in {name.partition(".")[0] for name in imports(path)}
