"""How long the data side takes: `python benchmarks/data.py [--quick] [--only NAME …]`.

Pairs by reference, pairs with their texts, answers out of pairs, validation, and a whole build, beside pandas, DuckDB,
polars with texts, `datasets.map` and TRL's helper on the same rows in the same run. Every run is a process of its own,
in interleaved rounds, which did the same with a few rows before the clock starts: what is imported on the way is
nobody's work. Then medians, and all rounds as one line of JSON.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ANSWERS = 4  # of each prompt
FEW = 250  # prompts that every process handles first
MARGIN = 1.0
SPEC = """version: 1
name: bench
sources:
  raw: {{path: {raw}}}
{clean}rate: {{by: rating, scale: [1, 10]}}
split: {{test: 0.02}}
shape: {{to: paired, pairing: {pairing}{margin}}}
weigh: {{weight: {{row: margin, clip: 3.0, normalize: mean_one}}}}
publish: {{to: snapshots/bench}}
"""
NEAR = "clean:\n  - {op: dedup, keys: [prompt], near: 0.9}\n"

# ------------------------------------------------------------------------------------------------ the rows


def texts(rng: Any, n: int, low: int, high: int) -> list[str]:
    """`n` texts of made-up words, of so many characters."""
    words = ["".join(rng.choice(list("etaoinshrdlu"), size)) for size in rng.integers(2, 9, 5000)]
    blob = " ".join(rng.choice(words, 400_000))
    starts, sizes = rng.integers(0, len(blob) - high, n), rng.integers(low, high, n)
    return [blob[a : a + size] for a, size in zip(starts.tolist(), sizes.tolist(), strict=True)]


def make_rows(folder: Path, prompts: int) -> Path:
    """A Parquet file of rated answers with their texts, four of a prompt one after the other."""
    import numpy as np
    import polars as pl

    file = folder / f"rows-{prompts}.parquet"
    if not file.is_file():
        rng = np.random.default_rng(prompts)
        number = np.repeat(np.arange(prompts), ANSWERS)
        asked = texts(rng, prompts, 100, 200)
        pl.DataFrame(
            {
                "prompt_id": number,
                "prompt": [f"{k} {asked[k]}" for k in number],
                "completion": texts(rng, prompts * ANSWERS, 230, 430),
                "rating": rng.integers(1, 11, prompts * ANSWERS).astype(float),
            }
        ).write_parquet(file, compression="zstd", compression_level=3)
    return file


def make_jsonl(folder: Path, prompts: int, more: int) -> Path:
    """The same as JSON lines in four files, one answer a line; and `more` prompts in a fifth."""
    import numpy as np

    out = folder / f"raw-{prompts}"
    if not (out / "done").is_file():
        out.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(1)
        for part in range(5):
            n = more if part == 4 else prompts // 4
            asked, answered = texts(rng, n, 100, 200), texts(rng, n * ANSWERS, 230, 430)
            with (out / ("later.jsonl.off" if part == 4 else f"{part}.jsonl")).open("w") as file:
                for k in range(n * ANSWERS):
                    rating = int(rng.integers(1, 11))
                    row = {"prompt": f"{part}.{k // 4} {asked[k // 4]}", "completion": answered[k], "rating": rating}
                    file.write(json.dumps(row) + "\n")
        (out / "done").touch()
    return out


def make_rated(folder: Path, prompts: int) -> Path:
    """Answers rated by reference, as the steps before `shape` leave them: the same numbers, no texts."""
    import numpy as np
    import polars as pl

    from rlhf_data import tables

    out = folder / f"rated-{prompts}"
    if (out / "done").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    rng, n = np.random.default_rng(prompts), prompts * ANSWERS
    row, prompt = np.arange(n, dtype=np.uint32), np.repeat(np.arange(prompts, dtype=np.uint32), ANSWERS)
    bits = rng.integers(0, 1 << 63, n, dtype=np.uint64)
    reward = rng.integers(1, 11, n).astype(float)
    rated = {"prompt_row": prompt, "completion_row": row, "source": ["raw"] * n, "rating": reward, "reward": reward}
    rated |= {"votes": np.ones(n, np.int64), "judgment_rows": pl.Series(row).reshape((n, 1)).arr.to_list()}
    tables.write(pl.DataFrame(rated), out / "rated.parquet", "rated")
    tables.write(tables.empty("compared"), out / "compared.parquet", "compared")
    splits = {"prompt_row": np.arange(prompts, dtype=np.uint32), "split": ["train"] * prompts}
    tables.write(pl.DataFrame(splits), out / "splits.parquet", "splits")
    index = {"completion_row": row, "completion_id": pl.select(pl.lit("0" * 32).repeat_by(n).explode()).to_series()}
    index |= {"bits": bits, "prompt_row": prompt, "source": ["raw"] * n, "category": [None] * n, "model": [None] * n}
    index |= {"chunk": np.zeros(n, np.uint32), "place": row}
    frame = tables.conform(pl.DataFrame(index), "completion_index")
    tables.write(frame, out / "completions.parquet", "completion_index")
    (out / "chunks.json").write_text("[]")
    (out / "done").touch()
    return out


# ------------------------------------------------------------------------------------------------ pairs


def ours_by_reference(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """Read rated answers, pair them, write two row numbers and the margin: what the peers do with texts."""
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rlhf_data.ahead import ahead
    from rlhf_data.shape.pairing import propose
    from rlhf_data.tables import read

    rated, out = make_rated(folder, prompts), folder / "out.parquet"
    columns = ["prompt_row", "completion_row", "source", "reward"]

    def pair() -> int:
        answers = read(rated / "rated.parquet", "rated", columns)
        answers = answers.with_columns(read(rated / "completions.parquet", "completion_index", ["bits"])["bits"])
        row = answers["completion_row"].to_numpy()

        def narrow(block: pl.DataFrame) -> pa.Table:
            margin, chosen, rejected = (block[c].to_numpy() for c in ("margin", "chosen_at", "rejected_at"))
            kept = np.flatnonzero(margin >= MARGIN)
            rows = {f"{side}_row": row.take(at.take(kept)) for side, at in (("chosen", chosen), ("rejected", rejected))}
            return pa.table({**rows, "margin": margin.take(kept)})

        blocks = ahead(map(narrow, propose(answers, strategy, 0)))
        first = next(blocks)
        rows = dict.fromkeys(("chosen_row", "rejected_row"), "DELTA_BINARY_PACKED")  # as `tables.write_stream` does
        how: dict[str, Any] = {"use_dictionary": ["margin"], "column_encoding": rows}
        with pq.ParquetWriter(out, first.schema, compression="zstd", compression_level=1, **how) as writer:
            for block in blocks:
                writer.write_table(block)
        return pq.read_metadata(out).num_rows

    return pair


def ours_step(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """The step `shape` itself: the above with ties, splits, accounting and the contract, part by part."""
    from rlhf_data.shape.paired import to_paired

    rated, out = make_rated(folder, prompts), folder / "shape"
    out.mkdir(exist_ok=True)
    inputs = {"rate": rated, "split": rated, "text": rated}
    return lambda: to_paired(inputs, out, pairing=strategy, min_margin=MARGIN)[0].out


def polars_with_text(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    import polars as pl

    file, out = make_rows(folder, prompts), folder / "out.parquet"

    def pair() -> int:
        rows = pl.scan_parquet(file)
        if strategy == "best_vs_worst":
            best = pl.col("rating").arg_max()
            pairs = rows.group_by("prompt_id").agg(
                pl.col("prompt").first(),
                chosen=pl.col("completion").get(best),
                rejected=pl.col("completion").get(pl.col("rating").arg_min()),
                margin=pl.col("rating").max() - pl.col("rating").min(),
            )
        else:
            numbered = rows.with_row_index("row")
            other = numbered.select("prompt_id", "row", rejected="completion", low="rating")
            pairs = numbered.join(other, on="prompt_id").filter(pl.col("row") != pl.col("row_right"))
            pairs = pairs.select(
                "prompt_id", "prompt", chosen="completion", rejected="rejected", margin=pl.col("rating") - pl.col("low")
            )
        pairs.filter(pl.col("margin") >= MARGIN).sink_parquet(out, compression="zstd", compression_level=3)
        return pl.scan_parquet(out).select(pl.len()).collect().item()

    return pair


def duckdb_with_text(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    import duckdb
    import pyarrow.parquet as pq

    file, out = make_rows(folder, prompts), folder / "out.parquet"
    if strategy == "best_vs_worst":
        select = f"""SELECT prompt_id, first(prompt) AS prompt, arg_max(completion, rating) AS chosen,
            arg_min(completion, rating) AS rejected, max(rating) - min(rating) AS margin
            FROM '{file}' GROUP BY prompt_id HAVING margin >= {MARGIN}"""
    else:
        select = f"""SELECT a.prompt_id, a.prompt, a.completion AS chosen, b.completion AS rejected,
            a.rating - b.rating AS margin FROM '{file}' a JOIN '{file}' b USING (prompt_id)
            WHERE a.rating - b.rating >= {MARGIN}"""
    connection = duckdb.connect()

    def pair() -> int:
        connection.execute(f"COPY ({select}) TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)")
        return pq.read_metadata(out).num_rows

    return pair


def pandas_with_text(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    import pandas as pd  # type: ignore[import-untyped]

    file, out = make_rows(folder, prompts), folder / "out.parquet"

    def pair() -> int:
        rows = pd.read_parquet(file)
        if strategy == "best_vs_worst":
            ratings = rows.groupby("prompt_id")["rating"]
            best, worst = rows.loc[ratings.idxmax()], rows.loc[ratings.idxmin()]
            pairs = best[["prompt_id", "prompt"]].assign(
                chosen=best["completion"],
                rejected=worst["completion"].to_numpy(),
                margin=best["rating"].to_numpy() - worst["rating"].to_numpy(),
            )
        else:
            both = rows.merge(rows[["prompt_id", "completion", "rating"]], on="prompt_id", suffixes=("", "_low"))
            pairs = both.assign(margin=both["rating"] - both["rating_low"])
            pairs = pairs.rename(columns={"completion": "chosen", "completion_low": "rejected"})
        kept = pairs[pairs["margin"] >= MARGIN][["prompt_id", "prompt", "chosen", "rejected", "margin"]]
        kept.to_parquet(out, compression="zstd")  # type: ignore[union-attr]
        return len(kept)

    return pair


def datasets_map(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    import datasets

    file, out = make_rows(folder, prompts), folder / "out.parquet"
    datasets.disable_progress_bars()
    datasets.disable_caching()

    def paired(batch: dict[str, list]) -> dict[str, list]:
        made: dict[str, list] = {"prompt_id": [], "prompt": [], "chosen": [], "rejected": [], "margin": []}
        for start in range(0, len(batch["rating"]), ANSWERS):
            ratings, answers = batch["rating"][start : start + ANSWERS], batch["completion"][start : start + ANSWERS]
            order = sorted(range(len(ratings)), key=ratings.__getitem__)
            two = [(order[-1], order[0])] if strategy == "best_vs_worst" else [(a, b) for a in order for b in order]
            for high, low in two:
                if ratings[high] - ratings[low] >= MARGIN:
                    found = (batch["prompt_id"][start], batch["prompt"][start], answers[high], answers[low])
                    for key, value in zip(made, (*found, ratings[high] - ratings[low]), strict=True):
                        made[key].append(value)
        return made

    def pair() -> int:
        rows = datasets.Dataset.from_parquet(str(file), keep_in_memory=False, cache_dir=str(folder / "hf"))
        pairs = rows.map(paired, batched=True, batch_size=1000, remove_columns=rows.column_names)
        pairs.to_parquet(str(out))
        return len(pairs)

    return pair


# ------------------------------------------------------------------------------------------------ pairs to answers


def trl_unpair(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    import datasets
    from trl.data_utils import unpair_preference_dataset

    polars_with_text("best_vs_worst", folder, prompts)()
    file = folder / "pairs.parquet"
    shutil.copy(folder / "out.parquet", file)
    datasets.disable_progress_bars()
    datasets.disable_caching()

    def unpair() -> int:
        pairs = datasets.Dataset.from_parquet(str(file), cache_dir=str(folder / "hf"))
        pairs = pairs.select_columns(["prompt", "chosen", "rejected"])
        answers = unpair_preference_dataset(pairs)
        answers.to_parquet(str(folder / "answers.parquet"))
        return len(answers)

    return unpair


def ours_unpair(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """The step `shape` to unpaired, by reference, of as many compared pairs."""
    import polars as pl

    from rlhf_data import tables
    from rlhf_data.shape.pairing import propose, rows_of
    from rlhf_data.shape.unpaired import to_unpaired

    rated, given, out = make_rated(folder, prompts), folder / "given", folder / "unpaired"
    out.mkdir(exist_ok=True)
    given.mkdir(exist_ok=True)
    answers = tables.read(rated / "rated.parquet", "rated")
    index = tables.read(rated / "completions.parquet", "completion_index", ["bits"])
    made = pl.concat(propose(answers.with_columns(index["bits"]), "best_vs_worst", 0))
    pairs = rows_of(answers, made.filter(pl.col("margin") >= MARGIN))
    behind = pl.concat_list(pl.col("chosen_row"))
    compared = pairs.with_columns(preference=pl.lit(1.0), votes=pl.lit(1, pl.Int64), judgment_rows=behind)
    tables.write(compared.select(list(tables.columns("compared"))), given / "compared.parquet", "compared")
    tables.write(tables.empty("rated"), given / "rated.parquet", "rated")
    return lambda: to_unpaired({"rate": given, "split": rated, "text": rated}, out)[0].out


# ------------------------------------------------------------------------------------------------ publication


def ours_published(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """The steps `shape`, `weigh` and `publish` of a spec whose other steps have run: validated, carded, reported."""
    project = folder / f"published-{strategy}-{prompts}"
    _project(project, raw=make_rows(folder, prompts), pairing=strategy, margin=f", min_margin: {MARGIN / 9}")
    os.chdir(project)
    from rlhf_data import engine
    from rlhf_data.plan import Workspace, plan
    from rlhf_data.spec import read

    spec, _ = read(Path("spec.yaml"))
    if not (project / "snapshots").is_dir():
        engine.build(spec, Workspace(Path(".rlhf")))
    planned = plan(spec, Workspace(Path(".rlhf")))
    for step in planned:
        if step.step.name in ("shape", "weigh", "publish"):
            shutil.rmtree(Workspace(Path(".rlhf")).step(step.fingerprint), ignore_errors=True)
    shutil.rmtree(project / "snapshots")

    def publish() -> int:
        built = engine.build(spec, Workspace(Path(".rlhf")))
        return sum(json.loads((built.snapshot / "manifest.json").read_text())["rows"].values())

    return publish


def copy(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """A plain copy of a published snapshot's files, by polars: read all, write all, zstd-3."""
    import polars as pl

    files = _published_files(folder, strategy, prompts)

    def run() -> int:
        pl.scan_parquet(files).sink_parquet(folder / "copy.parquet", compression="zstd", compression_level=3)
        return pl.scan_parquet(folder / "copy.parquet").select(pl.len()).collect().item()

    return run


def export_text(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """prompt, chosen and rejected of a published snapshot, as another trainer reads them."""
    import polars as pl

    from rlhf_data.snapshot import Snapshot

    snapshot = Snapshot(_published_files(folder, strategy, prompts)[0].parents[1])

    def run() -> int:
        chosen = snapshot.scan().select("prompt", "chosen", "rejected", "weight")
        chosen.sink_parquet(folder / "export.parquet", compression="zstd", compression_level=3)
        return pl.scan_parquet(folder / "export.parquet").select(pl.len()).collect().item()

    return run


def read_only(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """Every row of published files, file by file, looked at by nobody."""
    from rlhf_data import tables

    files = _published_files(folder, strategy, prompts)
    return lambda: sum(tables.scan(file, "paired").collect().height for file in files)


def validate(strategy: str, folder: Path, prompts: int) -> Callable[[], int]:
    """The same against the contract, as `publish` does with what it wrote."""
    from rlhf_data import tables

    files = _published_files(folder, strategy, prompts)
    read = lambda file: tables.scan(file, "paired").collect()  # noqa: E731
    return lambda: sum(tables.validate(read(file), "paired", unique=False).height for file in files)


def _project(folder: Path, *, raw: Path, pairing: str, margin: str = "", clean: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(SPEC.format(raw=raw, pairing=pairing, margin=margin, clean=clean))


def _published_files(folder: Path, strategy: str, prompts: int) -> list[Path]:
    project = folder / f"published-{strategy}-{prompts}"
    if not list(project.glob("snapshots/bench/*/_SUCCESS")):
        ours_published(strategy, folder, prompts)()
    return sorted(project.glob("snapshots/bench/2*/data/*.parquet"))


# ------------------------------------------------------------------------------------------------ running


CASES: dict[str, dict[str, Callable[[str, Path, int], Callable[[], int]]]] = {
    "pairs": {
        "by reference": ours_by_reference,
        "by reference, the whole step": ours_step,
        "polars, texts copied": polars_with_text,
        "DuckDB, texts copied": duckdb_with_text,
        "pandas, texts copied": pandas_with_text,
        "datasets.map": datasets_map,
    },
    "published": {
        "shape, weigh and publish": ours_published,
        "polars, texts copied": polars_with_text,
        "DuckDB, texts copied": duckdb_with_text,
    },
    "unpair": {"by reference, the whole step": ours_unpair, "TRL's unpair_preference_dataset": trl_unpair},
    "export": {"export of the texts": export_text, "a plain copy": copy},
    "validation": {"validated file by file": validate, "read file by file": read_only},
}
STRATEGIES = {
    "pairs": ("best_vs_worst", "all"),
    "published": ("best_vs_worst", "all"),
    "unpair": ("best_vs_worst",),
    "export": ("best_vs_worst",),
    "validation": ("best_vs_worst",),
}


def one(group: str, name: str, strategy: str, folder: Path, prompts: int) -> None:
    """Run one case in this process; its seconds, the peak of its memory, and its rows."""
    CASES[group][name](strategy, folder, FEW)()
    run = CASES[group][name](strategy, folder, prompts)
    started, cpu = time.perf_counter(), time.process_time()
    rows = run()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak, "rows": rows}))


def ask(group: str, name: str, strategy: str, folder: Path, prompts: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--case", group, name, strategy, str(prompts), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{group}: {name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def commands(folder: Path, prompts: int, *, near: bool) -> dict[str, dict[str, float]]:
    """A build from JSON lines, from nothing; plan with nothing to do; a build with 1 % more prompts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # or its peak would be that of every command after it
        raw = apart.submit(make_jsonl, folder, prompts, prompts // 100).result()
    project = folder / ("near" if near else "build")
    shutil.rmtree(project, ignore_errors=True)
    later = raw / "later.jsonl"
    later.unlink(missing_ok=True)
    _project(project, raw=raw / "*.jsonl", pairing="best_vs_random", clean=NEAR if near else "")
    found = {"build": _command(project, "build", "spec.yaml"), "plan": _command(project, "plan", "spec.yaml")}
    shutil.copy(raw / "later.jsonl.off", later)
    try:
        found["build with 1 % more"] = _command(project, "build", "spec.yaml")
    finally:
        later.unlink()
    found["diff"] = _command(project, "diff", "bench@previous", "bench")
    return found


def _command(project: Path, *arguments: str) -> dict[str, float]:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(Path(sys.executable).with_name("rlhf-data")), *arguments]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, used = os.wait4(process.pid, 0)[1:]
    said = process.stderr.read() if process.stderr else ""
    seconds = time.perf_counter() - started
    del before
    if "✗" in said or "error" in said.lower():
        raise SystemExit(said[-2000:])
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows, one round")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "memory", "build"], help="only these parts")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rlhf-data-bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs=4, metavar=("GROUP", "NAME", "STRATEGY", "PROMPTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.case:
        group, name, strategy, prompts = arguments.case
        one(group, name, strategy, arguments.folder.absolute(), int(prompts))
        return
    prompts = 12_500 if arguments.quick else 250_000
    rounds = 1 if arguments.quick else arguments.rounds
    wanted = arguments.only or [*CASES, "memory", "build"]
    figures: dict[str, Any] = {"answers": prompts * ANSWERS, "rounds": {}}
    for group in (group for group in CASES if group in wanted):
        for strategy in STRATEGIES[group]:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES[group]}
            for k in range(rounds + 1):  # the first warms the files up and is not counted
                for name in list(found) if k % 2 else list(reversed(found)):
                    figure = ask(group, name, strategy, arguments.folder, prompts)
                    if k:
                        found[name].append(figure)
            figures["rounds"][f"{group}, {strategy}"] = found
            show(f"{group}, {strategy}, {prompts * ANSWERS:,} answers", found)
    if "memory" in wanted:
        most = prompts if arguments.quick else 5 * prompts
        for name, group in (("by reference, the whole step", "pairs"), ("validated file by file", "validation")):
            if group == "validation" and arguments.quick:
                continue
            strategy = "all" if group == "pairs" else "best_vs_worst"
            sizes = {}
            for n in (prompts, most):
                ask(group, name, strategy, arguments.folder, n)  # makes the files, which is not measured
                sizes[f"{n * ANSWERS:,} answers"] = [ask(group, name, strategy, arguments.folder, n)]
            figures["rounds"][f"memory, {group}"] = sizes
            show(f"memory: {name}", sizes)
    if "build" in wanted:
        for near in (False, True):
            n = 10_000 if arguments.quick else 1_000_000
            steps = {name: [figure] for name, figure in commands(arguments.folder, n, near=near).items()}
            title = f"from JSON lines, {n:,} prompts of 4 answers{', near-duplicate prompts removed' if near else ''}"
            figures["rounds"][title] = steps
            show(title, steps)
    print(json.dumps(figures))


def show(title: str, found: dict[str, list[dict[str, float]]]) -> None:
    """Medians as a table; ratios to the first line."""
    print(f"\n{title}\n{'':<34} {'s':>8} {'cpu s':>8} {'peak MiB':>9} {'rows':>10} {'× first':>8}")
    first = statistics.median(figure["seconds"] for figure in next(iter(found.values())))
    for name, all_rounds in found.items():
        middle = {key: statistics.median(figure[key] for figure in all_rounds) for key in all_rounds[0]}
        print(
            f"{name:<34} {middle['seconds']:>8.2f} {middle['cpu']:>8.2f} {middle['peak_mib']:>9.0f} "
            f"{middle.get('rows', 0):>10,.0f} {middle['seconds'] / first:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
