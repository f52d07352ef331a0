"""What each rule makes of the small world: `python benchmarks/rules_in_the_world.py [--rules dpo,ppo] [--quick]`.

The world (see `rlhf_data.world`) is made, its reference is trained by pipelines/world/sft.yaml on all answers, good and
bad, and from it each rule of "Unifying RLHF Objectives" trains one policy, on the snapshots of pipelines/world/dpo.yaml
and kto.yaml, with reference scores from one store; C-RLFT also with its class in the prompt, and the rules of the last
lines on what the reward model of pipelines/world_paths/reward.yaml says of answers whose ratings are not read. Held-out
reward is that of the world's verifier over four sampled answers to each held-out question, beside the reference's on
the same questions, with 95 % bootstrap intervals; of the reward model itself, its accuracy on held-out pairs. Ends with
one line of JSON. Settings are the published forms' defaults but for what `RULES` says.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PIPELINES = ROOT / "pipelines"
# Rewards as advantages: how far each annotator's rating is from that annotator's mean, in standard deviations.
ADVANTAGE = {"rate": {"by": "rating", "normalize": "zscore"}, "shape": {"to": "unpaired"}}
GOOD_ONLY = {"weigh": {"weight": {"label": {False: 0}}}}


class Case(NamedTuple):
    """A rule with its parameters, on a pipeline's snapshot, and what differs from that pipeline.

    Attributes:
        rule: of `train`.
        parameters: of the rule.
        pipeline: under pipelines/.
        sections: of the spec, in the place of the pipeline's own.
        training: of `train`, in the place of one epoch at 2e-4.
        after: the case that must have run before, where one is.
        note: for the JSON.
    """

    rule: str
    parameters: dict[str, Any]
    pipeline: str = "world/kto"
    sections: dict[str, Any] = {}  # noqa: RUF012
    training: dict[str, Any] = {}  # noqa: RUF012
    after: str | None = None
    note: str = ""


RELABELLED = "world_paths/relabelled"
RULES: dict[str, Case] = {
    "SFT on good answers": Case("sft", {}, sections=GOOD_ONLY, note="answers of mean rating 3.5 or more"),
    "C-RLFT": Case("c_rlft", {}, note="weights 1 and 0.1, nothing in the prompt tells the class"),
    "C-RLFT, class in prompt": Case(
        "c_rlft",
        {"other_weight": 0.5},
        "world_paths/classes",
        training={
            "epochs": 2,
            "learning_rate": 1e-3,
            "max_length": 64,
            "condition": {"on": "label", "text": {True: "good : ", False: "bad : "}},
        },
        note="weights 1 and 0.5, each under its class; asked for the good class",
    ),
    "VPG": Case("vpg", {}, sections=ADVANTAGE),
    "PPO": Case("ppo", {}, sections=ADVANTAGE),
    "APA": Case("apa", {}, sections=ADVANTAGE),
    "KTO": Case("kto", {"beta": 0.3, "desirable_weight": 2.5}),
    "Unlikelihood": Case("unlikelihood", {}, "world/dpo"),
    "DPO": Case("dpo", {"beta": 0.3}, "world/dpo"),
    "RRHF": Case("rrhf", {}, "world/dpo"),
    "SLiC": Case("slic", {}, "world/dpo"),
    "RM": Case(
        "rm_margin",
        {"scale": 2.0, "centre": 0.01},
        "world_paths/reward",
        training={"epochs": 2, "learning_rate": 1e-3, "batch_size": 64, "max_length": 64},
        note="accuracy on held-out pairs; what it is worth to a policy stands in the lines after it",
    ),
    "RM, then KTO": Case("kto", {"beta": 0.3}, RELABELLED, after="RM"),
    "RM, then VPG": Case("vpg", {}, RELABELLED, after="RM", note="the model's score is the advantage"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rules", help=f"some of: {', '.join(RULES)}; all by default")
    parser.add_argument("--folder", type=Path, help="of the world and its workspace; what is finished there stays")
    parser.add_argument("--prompts", type=int, default=1600, help="questions of the world")
    parser.add_argument("--quick", action="store_true", help="200 questions: shows that all run, not how well")
    asked = parser.parse_args()
    asked.prompts = 200 if asked.quick else asked.prompts
    names = [name.strip() for name in asked.rules.split(",")] if asked.rules else list(RULES)
    if unknown := [name for name in names if name not in RULES]:
        parser.error(f"no {', '.join(unknown)} here; known: {', '.join(RULES)}")
    with tempfile.TemporaryDirectory() as name:
        results = run(asked.folder or Path(name), names, asked.prompts)
    print(json.dumps({"prompts": asked.prompts, "rules": results}))


def run(folder: Path, names: list[str], prompts: int) -> dict[str, dict[str, Any]]:
    """The world, its reference and one policy a rule; a line of the table as each is judged."""
    from rlhf_data import world

    world.generate(folder, prompts=prompts)
    os.environ["WORLD"] = str(folder)
    reference = spec_file(folder, "world/sft", {})
    seconds = judged(reference, folder, evaluated=False)["seconds"]
    print(f"the reference, on all answers: {seconds:.0f} s\n", flush=True)
    print(f"{'rule':<24}{'reward before':>15}{'after':>8}{'difference':>12}{'95 % interval':>20}{'train s':>9}{'s':>6}")
    results: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(one for asked in names for one in (RULES[asked].after, asked) if one):
        case = RULES[name]
        train = {
            "rule": case.rule,
            **case.parameters,
            "model": {"run": "world-sft"},
            "epochs": 1,
            "batch_size": 32 if case.pipeline == "world/dpo" else 64,
            "learning_rate": 2e-4,
            **case.training,
        }
        sections = dict(case.sections)
        if case.after:
            sections["rate"] = {"by": "reward_model", "reward_model": {"run": own_name(case.after)}}
        file = spec_file(folder, case.pipeline, {"name": own_name(name), "train": train, **sections})
        results[name] = judged(file, folder) | {"settings": train, "note": case.note}
        print(line(name, results[name]), flush=True)
    return results


def own_name(case: str) -> str:
    """What the spec of a case is called."""
    return re.sub(r"[^a-z]+", "-", case.lower())


def spec_file(folder: Path, pipeline: str, sections: dict[str, Any]) -> Path:
    """A pipeline of the world with other sections, as a file beside the reference's."""
    from ruamel.yaml import YAML

    from rlhf_data.spec import Spec

    spec = YAML(typ="safe").load((PIPELINES / f"{pipeline}.yaml").read_text()) | sections
    spec["publish"] = {"to": f"{folder}/snapshots/{spec['name']}"}
    spec["expect"] = {"rows": [1, None]}  # a small world has fewer rows, and its damaged lines weigh more
    file = folder / "specs" / f"{spec['name']}.yaml"
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as out:
        YAML().dump({name: spec[name] for name in Spec.model_fields if name in spec}, out)
    return file


def judged(file: Path, folder: Path, *, evaluated: bool = True) -> dict[str, Any]:
    """Build, train and judge one spec."""
    from rlhf_data import api, engine
    from rlhf_data.plan import Workspace

    started = time.perf_counter()
    spec = api.read_spec(file, workspace=folder / ".rlhf")
    api.build(spec, workspace=folder / ".rlhf")
    trained = engine.train(spec, Workspace(folder / ".rlhf"), progress=False)
    manifest = json.loads((trained / "manifest.json").read_text())
    made = {"rows": manifest["rows"], "steps": manifest["steps"], "train_seconds": manifest["seconds"]}
    if evaluated:
        found = engine.evaluate(spec, Workspace(folder / ".rlhf"), trained, progress=False)
        assert found is not None
        (measure,) = [one for one in found["measures"] if one["name"] in ("verifier reward", "reward accuracy")]
        made |= {"measure": measure["name"], "reward": {one["group"] or "all": one for one in measure["lines"]}}
    return made | {"seconds": time.perf_counter() - started}


def line(name: str, result: dict[str, Any]) -> str:
    whole = result["reward"]["all"]
    seconds = f"{result['train_seconds']:>9.0f}{result['seconds']:>6.0f}"
    if whole["difference"] is None:  # a reward model had no head before: its accuracy, beside 0.5 of a coin
        after = whole["after"]
        interval = f"[{after['low']:.3f}, {after['high']:.3f}]"
        return f"{name:<24}{'accuracy':>15}{after['value']:>8.3f}{'':>12}{interval:>20}{seconds}"
    gained = whole["difference"]
    interval = f"[{gained['low']:+.3f}, {gained['high']:+.3f}]"
    return (
        f"{name:<24}{whole['before']['value']:>15.3f}{whole['after']['value']:>8.3f}{gained['value']:>+12.3f}"
        f"{interval:>20}{seconds}"
    )


if __name__ == "__main__":
    main()
