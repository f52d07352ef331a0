"""How long it takes to rate: `python benchmarks/rating.py [--quick]`.

Bradley–Terry over a million battles of 300 models (with and without covariates) and over the answers to 250,000
prompts, Elo over the same battles, and Dawid–Skene over votes. Battles are drawn with a fixed seed; medians, and all
rounds as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from rlhf_data.rate.annotators import FIRST, SECOND, TIE, dawid_skene
from rlhf_data.rate.bradley_terry import fit
from rlhf_data.rate.elo import elo


def cases(rows: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name, on so many battles or votes."""
    rng = np.random.default_rng(0)
    n, prompts = 300, rows // 4
    first = rng.integers(0, n, rows)
    second = (first + rng.integers(1, n, rows)) % n
    strength = rng.normal(size=n)
    won = (rng.random(rows) < 1.0 / (1.0 + np.exp(strength[second] - strength[first]))).astype(float)
    value = np.where(rng.random(rows) < 0.2, 0.5, won)
    covariates = np.stack([rng.uniform(-1.0, 1.0, rows), rng.choice([-1.0, 1.0], rows)], axis=1)
    prompt = np.repeat(np.arange(prompts), 4)
    one = rng.integers(0, 4, len(prompt))
    other = (one + rng.integers(1, 4, len(prompt))) % 4
    wrote = rng.integers(0, 100, 4 * prompts)
    pair, annotator = rng.integers(0, rows // 5, rows), rng.integers(0, 1000, rows)
    truth = rng.choice([SECOND, TIE, FIRST], rows // 5)
    vote = np.where(rng.random(rows) < 0.7, truth[pair], rng.integers(0, 3, rows))
    return {
        f"Bradley–Terry, {n} models": lambda: fit(first, second, value, n),
        f"Bradley–Terry, {n} models, Davidson's ties": lambda: fit(first, second, value, n, ties="davidson"),
        f"Bradley–Terry, {n} models, 2 covariates": lambda: fit(first, second, value, n, covariates=covariates),
        f"Bradley–Terry, {4 * prompts:,} answers of 100 models": lambda: fit(
            4 * prompt + one, 4 * prompt + other, won[: len(prompt)], 4 * prompts, level=wrote, sd=1.0
        ),
        f"Elo, {n} models": lambda: elo(first, second, value, n),
        "Dawid–Skene, 1,000 annotators": lambda: dawid_skene(pair, annotator, vote, rows // 5, 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the rows")
    quick = parser.parse_args().quick
    rows, rounds = (100_000, 1) if quick else (1_000_000, 3)
    timed = cases(rows)
    seconds: dict[str, list[float]] = {label: [] for label in timed}
    for _ in range(rounds):
        for label, run in timed.items():
            started = time.perf_counter()
            run()
            seconds[label].append(round(time.perf_counter() - started, 3))
    print(f"{f'{rows:,} battles or votes':<52}{'median s':>10}")
    for label, values in seconds.items():
        print(f"{label:<52}{statistics.median(values):>10.2f}")
    print(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
