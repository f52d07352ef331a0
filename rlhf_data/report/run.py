"""One HTML page per training run: what was trained on what, what it gained, how it went, and what it says now."""

from typing import Any

from rlhf_data import rules
from rlhf_data.report.curves import curves
from rlhf_data.report.display import duration, environment, figure, label, model_name
from rlhf_data.report.evaluation import measures
from rlhf_data.report.reliability import picture

SAMPLES = 8
# Mappings within the manifest whose names say nothing that their keys do not.
PLAIN = ("hyperparameters", "parameters", "settings", "config", "train", "options")
LEFT_OUT = ("about", "last", "rounds")  # the headline, the curves and a table of their own show them
SHOWN = ("loss", "accuracy", "log_ratio_margin", "reward", "log_ratio", "kl_k3", "w_chosen", "w", "w_ess", "w_zero")
BLENDED = 6  # curves of a further table
GROUPS = ("by_source", "by_category")
LATELY = 10  # a group's figures are means over its last tenth of steps, at least one


def run_page(
    manifest: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation: dict[str, Any] | None,
    samples: list[dict[str, Any]] | None,
) -> str:
    """The report of one training run as one HTML document that needs no other file.

    What is there is shown and what is not is left out. Every number in the metrics becomes a curve, every value in the
    manifest a line of the settings.

    Args:
        manifest: the run's manifest; name, rule, model, snapshot, steps and seconds make the headline.
        metrics: one mapping per logged step: `step` and numbers by name.
        evaluation: what `training.compare` gives.
        samples: prompt (messages), category, before, after (texts), before_reward, after_reward.

    Returns:
        The page. The same arguments give the same page.
    """
    head = {name: manifest.get(name) for name in ("name", "rule", "model", "snapshot", "steps", "seconds")}
    head["rule"] = rules.label(head["rule"]) if isinstance(head["rule"], dict) else head["rule"]
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            head={**head, "model": model_name(head["model"]) if head["model"] else None},
            about=manifest.get("about"),
            took=duration(head["seconds"]) if isinstance(head["seconds"], int | float) else None,
            measures=measures(evaluation),
            reliability=picture(evaluation),
            curves=curves(metrics),
            blended=blended(metrics),
            groups=groups(metrics),
            rounds=manifest.get("rounds") or [],
            settings=settings(manifest),
            samples=(samples or [])[:SAMPLES],
            samples_left=max(0, len(samples or []) - SAMPLES),
        )
    )


def blended(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of each further table of a blend: dicts of `name`, `coefficient` and `curves`, of the usual ones."""
    lines = [line for line in metrics if line.get("blend")]
    found = []
    for name in sorted({name for line in lines for name in line["blend"]}):
        own = [{"step": line.get("step"), **line["blend"][name]} for line in lines if name in line["blend"]]
        told = [{key: value for key, value in line.items() if key != "coefficient"} for line in own]
        found.append({"name": name, "coefficient": own[-1].get("coefficient"), "curves": curves(told)[:BLENDED]})
    return found


def groups(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics by source and by category as tables: figures over the last tenth of the steps, weighed by rows.

    Returns:
        dicts of `title`, `columns`, and `lines`: the name, the rows of all steps, and a figure a column (None where it
        is not said).
    """
    found = []
    for by in GROUPS:
        lines = [line[by] for line in metrics if isinstance(line.get(by), dict)]
        if not lines:
            continue
        names = sorted({name for line in lines for name in line})
        late = lines[-max(1, len(lines) // LATELY) :]
        columns = [name for name in SHOWN if any(name in part for line in late for part in line.values())]
        rows = {name: sum(line[name].get("rows", 0) for line in lines if name in line) for name in names}
        table = [(name, rows[name], [_late_mean(late, name, column) for column in columns]) for name in names[:40]]
        found.append({"title": by.removeprefix("by_"), "columns": columns, "lines": table})
    return found


def _late_mean(lines: list[dict[str, Any]], name: str, column: str) -> float | None:
    parts = [line[name] for line in lines if column in line.get(name, {})]
    n = sum(part.get("rows", 1) for part in parts)
    return sum(part[column] * part.get("rows", 1) for part in parts) / n if n else None


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
