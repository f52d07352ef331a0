"""How long a person waits for small commands: `python benchmarks/startup.py [--quick]`.

Each command is a process of its own, run in turn with a bare `python -c pass`; medians, and all rounds as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RATINGS = '{"question": "2+2?", "answer": "%d", "rating": %d}\n'
SPEC = """version: 1
name: startup
sources:
  ratings: {{path: {folder}/ratings.jsonl, columns: {{prompt: question, completion: answer, rating: rating}}}}
shape: {{to: paired}}
publish: {{to: {folder}/snapshots}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    rounds = 3 if parser.parse_args().quick else 9
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ratings.jsonl").write_text("".join(RATINGS % (k, k) for k in range(4)))
        (folder / "spec.yaml").write_text(SPEC.format(folder=folder))
        cli = [sys.executable, "-m", "rlhf_data.cli"]
        spec = [str(folder / "spec.yaml"), "--workspace", str(folder / "work")]
        subprocess.run([*cli, "build", *spec], check=True, capture_output=True, cwd=ROOT)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import rlhf_data": [sys.executable, "-c", "import rlhf_data"],
            "rlhf-data --help": [*cli, "--help"],
            "rlhf-data check SPEC": [*cli, "check", *spec],
            "rlhf-data plan SPEC": [*cli, "plan", *spec],
            "rlhf-data build SPEC (nothing to do)": [*cli, "build", *spec],
        }
        seconds: dict[str, list[float]] = {label: [] for label in commands}
        for _ in range(rounds):
            for label, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
                seconds[label].append(round(time.perf_counter() - started, 3))
    bare = statistics.median(seconds["python -c pass"])
    print(f"{'command':<40}{'median s':>10}{'× bare python':>16}")
    for label, values in seconds.items():
        print(f"{label:<40}{statistics.median(values):>10.3f}{statistics.median(values) / bare:>16.1f}")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
