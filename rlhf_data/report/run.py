"""One HTML page per training run: what was trained on what, what it gained, how it went, and what it says now."""

from typing import Any

from rlhf_data.report.curves import curves
from rlhf_data.report.display import duration, environment, figure, label, when
from rlhf_data.report.evaluation import measures

SAMPLES = 8
# The keys of a run's manifest that the headline reads, each by the first of its names that is there.
HEADLINE = {
    "name": ("name", "run"),
    "id": ("id", "run_id"),
    "rule": ("rule",),
    "model": ("model", "policy"),
    "snapshot": ("snapshot_id", "snapshot"),
    "steps": ("steps", "total_steps", "max_steps"),
    "seconds": ("wall_s", "wall_seconds", "seconds", "wall_time", "wall", "elapsed_s"),
    "created": ("created", "started", "finished"),
}
# Mappings within the manifest whose names say nothing that their keys do not.
PLAIN = ("hyperparameters", "parameters", "settings", "config", "train", "options")
LEFT_OUT = ("about", "last")  # the headline and the curves show them
# The keys of a sample, each by the first of its names that is there.
SAMPLE = {
    "prompt": ("prompt", "messages", "question"),
    "reference": ("reference", "before", "reference_answer", "ref", "reference_completion", "base"),
    "policy": ("policy", "after", "policy_answer", "completion", "policy_completion", "answer"),
    "reference_reward": ("reference_reward", "before_reward", "reward_before", "ref_reward"),
    "policy_reward": ("policy_reward", "after_reward", "reward_after", "reward"),
    "expected": ("expected", "solution", "target", "gold"),
    "category": ("category", "source"),
}


def run_page(
    manifest: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation: dict[str, Any] | None,
    samples: list[dict[str, Any]] | None,
) -> str:
    """The report of one training run as one HTML document that needs no other file.

    What is there is shown and what is not is left out: HEADLINE and SAMPLE here, `curves.FIRST` and the words of
    `evaluation` say under which names things are looked for. Every other number in the metrics becomes a curve, every
    other value in the manifest a line of the settings.

    Args:
        manifest: the run's manifest.
        metrics: one mapping per logged step: `step` and numbers by name.
        evaluation: estimates before and after, overall and by category.
        samples: generations: a prompt with the reference's and the policy's answer, and their rewards.

    Returns:
        The page. The same arguments give the same page.
    """
    head = {name: _first(manifest, keys) for name, keys in HEADLINE.items()}
    if head["steps"] is None and metrics:
        head["steps"] = metrics[-1].get("step", len(metrics))
    shown = [_sample(each) for each in (samples or [])[:SAMPLES]]
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            head={**head, **{name: _name(head[name]) for name in ("name", "rule", "model", "snapshot")}},
            about=manifest.get("about"),
            took=duration(head["seconds"]) if isinstance(head["seconds"], int | float) else None,
            made=when(head["created"]) if head["created"] else None,
            measures=measures(evaluation),
            curves=curves(metrics),
            settings=settings(manifest),
            samples=shown,
            samples_left=len(samples or []) - len(shown),
        )
    )


def settings(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Every value of the manifest by its path, long lists cut short."""
    return list(_flat({key: value for key, value in manifest.items() if key not in LEFT_OUT}, ""))[:120]


def _flat(node: Any, path: str) -> Any:
    if isinstance(node, dict):
        for key, below in node.items():
            yield from _flat(below, path if not path and key in PLAIN and isinstance(below, dict) else f"{path}.{key}")
    elif isinstance(node, list | tuple):
        words = ", ".join(label(each if isinstance(each, str) else figure(each)) for each in node[:6])
        if node:
            yield path.lstrip("."), words + (f" and {len(node) - 6} more" if len(node) > 6 else "")
    elif isinstance(node, bool):
        yield path.lstrip("."), "yes" if node else "no"
    elif node is not None:
        # A setting is shown as it was written, so that it can be copied: 5e-07, not 5.00e−7.
        yield path.lstrip("."), label(f"{node:,}" if isinstance(node, int) else node, 160)


def _name(value: Any) -> str | None:
    """The name in a value that may be a mapping that has one."""
    if isinstance(value, dict):
        value = next((value[k] for k in ("name", "id", "path", "model", "rule", "run") if k in value), None)
    if isinstance(value, str) and value.startswith(("/", "./", "../")):
        value = value.rstrip("/").rpartition("/")[2]
    return None if value is None else label(value, 120)


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    found = {name: _first(sample, keys) for name, keys in SAMPLE.items()}
    for side in ("reference", "policy"):
        if isinstance(found[side], dict):  # an answer with its reward
            inner = found[side]
            found[side] = _first(inner, ("completion", "text", "answer", "content"))
            found[f"{side}_reward"] = (
                _first(inner, ("reward", "score")) if "reward" in inner or "score" in inner else None
            )
        if isinstance(found[side], list):
            found[side] = "\n\n".join(map(str, found[side]))
    prompt = found["prompt"]
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] if prompt else []
    found["turns"] = [{"role": turn.get("role", ""), "content": turn.get("content", "")} for turn in turns[-4:]]
    return found


def _first(node: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((node[key] for key in keys if node.get(key) is not None), None)
