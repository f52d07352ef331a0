"""What each rule makes of the small world: `python benchmarks/rules_in_the_world.py [--rules dpo,ppo] [--quick]`.

The world (see `rlhf_data.world`) is made, its reference is trained by pipelines/world/sft.yaml on all answers, good and
bad, and from it each rule of "Unifying RLHF Objectives" trains one policy, on the snapshots of pipelines/world/dpo.yaml
and kto.yaml, with reference scores from one store. Held-out reward is that of the world's verifier over four sampled
answers to each held-out question, beside the reference's on the same questions, with 95 % bootstrap intervals. Ends
with one line of JSON. Settings are the published forms' defaults but for what `RULES` says.
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

PIPELINES = ROOT / "pipelines" / "world"
# Rewards as advantages: how far each annotator's rating is from that annotator's mean, in standard deviations.
ADVANTAGE = {"rate": {"by": "rating", "normalize": "zscore"}, "shape": {"to": "unpaired"}}
GOOD_ONLY = {"weigh": {"weight": {"label": {False: 0}}}}


class Case(NamedTuple):
    """A rule with its parameters, on a pipeline's snapshot, and what differs from that pipeline."""

    rule: str
    parameters: dict[str, Any]
    pipeline: str = "kto"  # or dpo
    sections: dict[str, Any] = {}  # noqa: RUF012
    learning_rate: float = 2e-4
    note: str = ""


RULES: dict[str, Case] = {
    "SFT on good answers": Case("sft", {}, sections=GOOD_ONLY, note="answers of mean rating 3.5 or more"),
    "C-RLFT": Case("c_rlft", {}, note="weights 1 and 0.1, nothing in the prompt tells the class"),
    "VPG": Case("vpg", {}, sections=ADVANTAGE),
    "PPO": Case("ppo", {}, sections=ADVANTAGE),
    "APA": Case("apa", {}, sections=ADVANTAGE),
    "KTO": Case("kto", {"beta": 0.3, "desirable_weight": 2.5}),
    "Unlikelihood": Case("unlikelihood", {}, "dpo"),
    "DPO": Case("dpo", {"beta": 0.3}, "dpo"),
    "RRHF": Case("rrhf", {}, "dpo"),
    "SLiC": Case("slic", {}, "dpo"),
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
    reference = spec_file(folder, "sft", {})
    seconds = judged(reference, folder, evaluated=False)["seconds"]
    print(f"the reference, on all answers: {seconds:.0f} s\n", flush=True)
    print(f"{'rule':<22}{'reward before':>15}{'after':>8}{'difference':>12}{'95 % interval':>20}{'train s':>9}{'s':>6}")
    results = {}
    for name in names:
        case = RULES[name]
        train = {
            "rule": case.rule,
            **case.parameters,
            "model": {"run": "world-sft"},
            "epochs": 1,
            "batch_size": 32 if case.pipeline == "dpo" else 64,
            "learning_rate": case.learning_rate,
        }
        own = re.sub(r"[^a-z]+", "-", name.lower())
        file = spec_file(folder, case.pipeline, {"name": own, "train": train, **case.sections})
        results[name] = judged(file, folder) | {"settings": train, "note": case.note}
        print(line(name, results[name]), flush=True)
    return results


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
        (measure,) = [one for one in found["measures"] if one["name"] == "verifier reward"]
        made["reward"] = {one["group"] or "all": one for one in measure["lines"]}
    return made | {"seconds": time.perf_counter() - started}


def line(name: str, result: dict[str, Any]) -> str:
    whole = result["reward"]["all"]
    gained = whole["difference"]
    interval = f"[{gained['low']:+.3f}, {gained['high']:+.3f}]"
    return (
        f"{name:<22}{whole['before']['value']:>15.3f}{whole['after']['value']:>8.3f}{gained['value']:>+12.3f}"
        f"{interval:>20}{result['train_seconds']:>9.0f}{result['seconds']:>6.0f}"
    )


if __name__ == "__main__":
    main()
