"""Prefect's run: build, train, evaluate. Deployed by its path, flows/train.py:train; nothing imports it."""

import errno
import json
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.flows import load_flow_from_entrypoint
from prefect.tasks import Task
from pydantic import Field

from rlhf_data import engine
from rlhf_data.plan import Workspace, limited
from rlhf_data.report.evaluation import Estimate, measures
from rlhf_data.spec import check, read, read_all

# The same as in build.py, which this file cannot import: `flows` is not a package.
LASTING = (errno.ENOENT, errno.EACCES, errno.ENOSPC)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may pass by itself: the machine's, not the data's or the spec's."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and error.errno not in LASTING


retried = task(
    retries=2, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE, persist_result=False
)
