"""prefect.yaml names flows, parameters and recipes that are there."""

import inspect
import re
import sys
from importlib.metadata import packages_distributions, requires

import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import ROOT

PROJECT = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
DEPLOYMENTS = {d["entrypoint"]: d for d in PROJECT["deployments"]}


def test_the_installed_fastapi_is_one_that_prefect_can_start_with(installed):
    # FastAPI 0.155 and later: Body() got an unexpected keyword argument 'min_items'.
    from prefect.testing.utilities import prefect_test_harness

    assert callable(prefect_test_harness)


def test_both_flows_are_deployed_and_the_build_has_a_schedule():
    assert DEPLOYMENTS.keys() == {"flows/build.py:build", "flows/train.py:train"}
    (schedule,) = DEPLOYMENTS["flows/build.py:build"]["schedules"]
    assert schedule.keys() >= {"cron", "timezone"}


@pytest.mark.parametrize("entrypoint", DEPLOYMENTS)
def test_the_parameters_of_a_deployment_are_those_of_its_flow(entrypoint, load):
    flow, given = load(entrypoint), DEPLOYMENTS[entrypoint]["parameters"]
    inspect.signature(flow.fn).bind(**given)
    assert flow.validate_parameters(given).items() >= given.items()
    assert list(flow.parameters.properties) == ["spec", "workspace", "limit", "variables"]
    assert flow.parameters.required == ["spec"]


@pytest.mark.parametrize("entrypoint", DEPLOYMENTS)
def test_a_deployment_builds_a_recipe_of_the_project(entrypoint):
    spec = ROOT / DEPLOYMENTS[entrypoint]["parameters"]["spec"]
    assert spec.is_relative_to(ROOT / "pipelines")
    assert spec.is_file() or [*spec.glob("*.yaml")]


def test_a_limit_below_one_record_is_refused(load):
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="limit"):
        load("flows/build.py:build").validate_parameters({"spec": "a.yaml", "limit": 0})


def test_no_file_of_flows_bears_a_dependencys_name():
    # Prefect puts the folder first on sys.path: flows/polars.py would replace polars.
    wanted = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requires("rlhf_data") or []}
    modules = {
        module
        for module, distributions in packages_distributions().items()
        if wanted & {name.lower().replace("_", "-") for name in distributions}
    }
    files = {file.stem for file in (ROOT / "flows").glob("*.py")}
    assert {"polars", "prefect"} <= modules
    assert not files & (modules | sys.stdlib_module_names)


def test_flows_is_not_a_package():
    assert not (ROOT / "flows" / "__init__.py").exists()
