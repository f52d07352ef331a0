"""What a person sees on a terminal: results on stdout, progress and errors on stderr."""

import errno
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_data.accounting import Count
    from rlhf_data.plan import Planned

# What it means that something cannot be written.
FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left of the disk quota",
    errno.EFBIG: "a file is larger than this disk, or `ulimit -f`, allows",
}
# Which extra of the package brings a library.
EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "gguf": "train",
    "accelerate": "train",
    "prefect": "flows",
    "fastapi": "flows",
}


def show_step(planned: "Planned", seconds: float | None, counts: list["Count"]) -> None:
    if seconds is None:
        if sys.stderr.isatty():
            print(f"  … {planned.step.name}", end="\r", file=sys.stderr, flush=True)
        return
    said = "; ".join(f"{c.rows_in:,} {c.unit} → {c.out:,}" for c in counts)
    say(f"  ✓ {planned.step.name:<16} {'cached' if planned.cached else f'{seconds:.1f} s':>8}  {said}".rstrip())
    for note in (note for count in counts for note in count.notes):
        say(f"    {note}")


def score_status_in_words(told: dict[str, Any]) -> list[str]:
    """Lines of what `engine.score_status` says of a spec's references."""
    lines = []
    for one in told["references"]:
        model = one["model"]["path"] + "".join(
            f" + {one['model'][k]}" for k in ("gguf_file", "adapter") if k in one["model"]
        )
        missing = f"{one['missing']:,} missing ({one['tokens']['missing']:,} tokens known, {one['new']:,} texts new)"
        stored = f"{one['stored']:,} of {one['completions']:,} completions stored ({one['tokens']['stored']:,} tokens)"
        refused = f", {one['refused']:,} refused" if one["refused"] else ""
        lines.append(f"{told['spec']}: {one['reference']} {model} {one['dtype']}: {stored}, {missing}{refused}")
    return lines


def print_results(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    for result in results:
        print(f"\n{result['spec']}")
        if "snapshot" in result:
            held = f"{rows_in_words(result['rows'])}; {result['quarantined']:,} in quarantine"
            print(f"  snapshot    {result['snapshot']}  ({held})")
            print(f"  report      {result['report']}")
        if "model" in result:
            print(f"  policy      {result['model']}")
        if "run_report" in result:
            print(f"  run report  {result['run_report']}")
        if result.get("evaluation"):
            from rlhf_data.report.evaluation import text_lines

            for line in text_lines(result["evaluation"]):
                print(f"  {line}".rstrip())


def rows_in_words(rows: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in rows.items()) or "no rows"


def short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text[:160].split())
    return line + (" …" if len(text) > 160 else "")


def message(error: Exception) -> str:
    """An error as a sentence for the person at the terminal."""
    for number, told in FULL.items():
        # polars tells it in words only
        if (isinstance(error, OSError) and error.errno == number) or f"(os error {number})" in str(error):
            where = getattr(error, "filename", None) or "while writing"
            return f"{told} ({where}); nothing was published: make room, then run the same command again"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def missing_extra(error: ImportError) -> str:
    """What to install where a library is not there."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        return f"cannot import {error.name or error}: {error}"
    return f"this command needs {name}: pip install 'rlhf_data[{EXTRAS[name]}]'"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
