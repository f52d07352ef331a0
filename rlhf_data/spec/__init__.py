"""The spec: a YAML file with fixed sections, read into frozen models, all its problems at once."""

from rlhf_data.spec.check import check
from rlhf_data.spec.problems import Problem, SpecError
from rlhf_data.spec.read import read, read_all
from rlhf_data.spec.sections import Spec, json_schema

__all__ = ["Problem", "Spec", "SpecError", "check", "json_schema", "read", "read_all"]
