"""What tests of the data steps share: text folders by the real steps, and narrow tables of answers that have names.

An answer named "a" is completion row 0 and has the id "aaa…", "b" is row 1, and so on; prompt "p" is row 0, "q" row 1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from rlhf_data import ids, tables, texts
from rlhf_data.clean.collect import collect
from rlhf_data.sources.ingest import ingest

PROMPTS, ANSWERS = "pq", "abcdef"  # letters of hex digits: ids of answers are hashed as such
NOTES = {"source": "s", "file": "f", "prompt": "p"}


def identity(name: str) -> str:
    """The id of an answer or a prompt with a name."""
    return name * 32


def named(rows: pl.Series) -> list[str]:
    """The names of answers by their row numbers."""
    return [ANSWERS[row] for row in rows]


def index(
    folder: Path, *, of: Mapping[str, str] | None = None, category: str | None = None, judgments: Any = ()
) -> Path:
    """A text folder of all answers with names and without texts: ids, categories and lineage only.

    Args:
        folder: is made.
        of: the prompt of each answer that is not p's; of those that a test uses, p's stand before q's, as rows do.
        category: of all answers.
        judgments: as `judged` takes them.
    """
    prompt_rows = [PROMPTS.index((of or {}).get(name, "p")) for name in ANSWERS]
    prompts = pl.DataFrame({"prompt_id": [identity(name) for name in PROMPTS]}).with_row_index("prompt_row")
    answers = pl.DataFrame({"completion_id": [identity(name) for name in ANSWERS], "prompt_row": prompt_rows})
    nowhere = [pl.lit(0).alias("chunk"), pl.lit(0).alias("place")]
    folder.mkdir(exist_ok=True)
    texts.write(
        folder,
        [],
        prompts=prompts.with_columns(*nowhere, split_key="prompt_id"),
        completions=answers.with_row_index("completion_row").with_columns(
            *nowhere,
            bits=ids.bits(answers["completion_id"]),
            source=pl.lit("s"),
            category=pl.lit(category, dtype=pl.String),
        ),
        judgments=judged(*judgments),
    )
    return folder


def judged(*rows: Mapping[str, Any]) -> pl.DataFrame:
    """Judgments, each with `completion`, perhaps `other`, by their names; the records of a file are counted through."""
    if not rows:
        return tables.empty("judgments")
    found = []
    for number, given in enumerate(rows):
        row = {"other": None, "record": number, **NOTES, **given}
        numbers = {
            "prompt_row": PROMPTS.index(row.pop("prompt")),
            "completion_row": ANSWERS.index(row.pop("completion")),
            "other_row": None if (other := row.pop("other")) is None else ANSWERS.index(other),
        }
        found.append({"judgment_row": number, **numbers, **row})
    return tables.conform(pl.DataFrame(found, infer_schema_length=None), "judgments")


def rated(*rows: Mapping[str, Any]) -> pl.DataFrame:
    """Rated answers, each with `completion` by its name; the judgment behind each is its place."""
    if not rows:
        return tables.empty("rated")
    found = [
        {
            "prompt_row": PROMPTS.index(row.get("prompt", "p")),
            "completion_row": ANSWERS.index(row["completion"]),
            "judgment_rows": [number],
            "votes": 1,
            "source": "s",
            **{key: value for key, value in row.items() if key not in ("prompt", "completion")},
        }
        for number, row in enumerate(rows)
    ]
    return tables.conform(pl.DataFrame(found, infer_schema_length=None), "rated")


def compared(*rows: Mapping[str, Any], first: int = 0) -> pl.DataFrame:
    """Compared pairs, `chosen` and `rejected` by their names; the judgment behind each is its place after `first`."""
    if not rows:
        return tables.empty("compared")
    found = [
        {
            "prompt_row": PROMPTS.index(row.get("prompt", "p")),
            "chosen_row": ANSWERS.index(row["chosen"]),
            "rejected_row": ANSWERS.index(row["rejected"]),
            "preference": 1.0,
            "votes": 1,
            "source": "s",
            "judgment_rows": [number],
            **{key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")},
        }
        for number, row in enumerate(rows, start=first)
    ]
    return tables.conform(pl.DataFrame(found, infer_schema_length=None), "compared")


def read_sources(folder: Path, sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Path]:
    """What the step `read` gives of each source: records that have our names, a file for each kind of record.

    Args:
        folder: is made; the chunks lie in it.
        sources: the records of each source, such as {prompt, completion, rating}.
    """
    given = {}
    for source, records in sources.items():
        kinds: dict[tuple[str, ...], list[str]] = {}
        for record in records:
            kinds.setdefault(tuple(record), []).append(json.dumps(record))
        (out := folder / source).mkdir(parents=True, exist_ok=True)
        files = [out / f"{source}{k}.jsonl" for k in range(max(1, len(kinds)))]
        for path, lines in zip(files, kinds.values() or [[]], strict=True):
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        # An empty file has no columns that could have our names: it is told which ones are meant.
        columns = None if records else {"prompt": "prompt", "completion": "completion", "rating": "rating"}
        given_files = {"raw": [str(path) for path in files]}
        ingest(out, chunks=folder / "chunks", source=source, files=given_files, columns=columns)
        given[source] = out
    return given


def text_folder(folder: Path, sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A text folder of records of one or several sources, through the real steps `read` and `collect`."""
    given = read_sources(folder, sources)
    (out := folder / "collected").mkdir(exist_ok=True)
    collect(given, out)
    return out


def answers_of(text: Path) -> pl.DataFrame:
    """The completions of a text folder with their ids, rows, messages and texts, in the order of rows."""
    parts = list(texts.completions_by_chunk(text))
    return pl.concat(parts).sort("completion_row")
