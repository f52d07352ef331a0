"""Small, adversarial raw data, and how many cases of it a law is tried on.

Few prompts and few answers, so that texts repeat, tie and meet in several sources; texts that differ in nothing but
case, white space or Unicode form; answers that are empty; annotators who say it twice.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.laws.oracle import Observation

CASES = int(os.environ.get("RLHF_DATA_LAWS", "50"))
_patient = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
laws = settings(deadline=None, max_examples=CASES, suppress_health_check=_patient)
# Reading files takes a quarter of a second and a build a second or two, however little they hold: so each holds several
# worlds, which have no prompt in common, and every law is tried on CASES of them.
IN_FILES, IN_A_BUILD = 10, 25
laws_of_files = settings(laws, max_examples=max(1, CASES // IN_FILES))
few_builds = settings(laws, max_examples=max(2, CASES // IN_A_BUILD))

SOURCES = ("s", "t", "u")
PROMPTS = ("q", "Q", " q\n", "ｑ", "why?", "why ?", "é", "é", "质量 为何?", "0")
ANSWERS = ("", " ", "a", "A", "a ", "ａ", "ß", "ss", "b\r\n", "ﬁ", "😀", "null", "a long answer, with 7 words in it")
RATINGS = tuple(Fraction(n) for n in range(1, 6))
SHARES = tuple(Fraction(n, 4) for n in range(5))
prompt, answer = st.sampled_from(PROMPTS[:7]), st.sampled_from(ANSWERS)
KINDS = ("rating", "comparison", "label", "rank", "demonstration")
_VALUES = {
    "rating": st.sampled_from(RATINGS),
    "label": st.sampled_from((Fraction(0), Fraction(1))),
    "rank": st.integers(1, 4).map(Fraction),
    "comparison": st.sampled_from(SHARES),
    "demonstration": st.none(),
}


@st.composite
def _said(draw: st.DrawFn, kinds: Sequence[str], prompts: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    kind = draw(st.sampled_from(kinds))
    first = draw(st.sampled_from(answers))
    other = draw(st.sampled_from([text for text in answers if text != first])) if kind == "comparison" else None
    return {
        "source": draw(st.sampled_from(SOURCES)),
        "prompt": draw(st.sampled_from(prompts)),
        "completion": first,
        "other": other,
        "kind": kind,
        "value": draw(_VALUES[kind]),
        "annotator": draw(st.sampled_from((None, "x", "y"))),
        "category": draw(st.sampled_from((None, "c", "d"))),
    }


def _placed(said: Iterable[dict[str, Any]], sources: Sequence[str]) -> list[Observation]:
    """Observations with their file, one for each kind of a source, and their place in it, in the order of reading."""
    files: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in said:
        files[row["source"], row["kind"]].append(row)
    order = sorted(files, key=lambda key: (sources.index(key[0]), KINDS.index(key[1])))
    return [
        Observation(file=f"{source}-{kind}.jsonl", record=place, **row)
        for source, kind in order
        for place, row in enumerate(files[source, kind])
    ]


@st.composite
def observations(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS,
    *,
    fewest: int = 0,
    most: int = 16,
    damaged: bool = False,
) -> list[Observation]:
    """What some sources say; the sources' order is that of SOURCES. Where damaged, some of it is refused."""
    prompts = draw(st.lists(prompt, min_size=1, max_size=3, unique=True))
    answers = draw(st.lists(answer, min_size=2, max_size=4, unique=True))
    said = draw(st.lists(_said(kinds, prompts, answers), min_size=fewest, max_size=most))
    if damaged:
        for row in said:
            if (what := draw(st.integers(0, 9))) == 0:
                row["prompt"] = draw(st.sampled_from(("", " \n")))
            elif what == 1:
                row["completion"] += "\0"
            elif what == 2 and row["kind"] == "comparison":
                row["other"] = row["completion"]
            elif what == 3 and row["kind"] == "comparison":
                row["value"] = Fraction(3, 2)
    return _placed(said, SOURCES)


@st.composite
def worlds(draw: st.DrawFn, n: int, **how: Any) -> list[Observation]:
    """`observations` of several worlds in the same files: a world's prompts begin with its number."""
    found = [
        replace(one, prompt=f"{k} {one.prompt}" if one.prompt.strip() else one.prompt)
        for k in range(n)
        for one in draw(observations(**how))
    ]
    return replaced(sorted(found, key=lambda one: (SOURCES.index(one.source), KINDS.index(one.kind))))


def replaced(seen: Iterable[Observation]) -> list[Observation]:
    """The same observations, in their files in the order in which they stand here."""
    places: dict[str, int] = defaultdict(int)
    found = []
    for one in seen:
        found.append(replace(one, record=places[one.file]))
        places[one.file] += 1
    return found


def record(seen: Observation) -> dict[str, Any]:
    """An observation as a raw record with our names."""
    row: dict[str, Any] = {"prompt": seen.prompt, "completion": seen.completion}
    if seen.kind == "comparison":
        row |= {"other": seen.other, "preference": float(seen.value)}
    elif seen.kind == "label":
        row |= {"label": seen.value == 1}
    elif seen.kind != "demonstration":
        row |= {seen.kind: int(seen.value)}
    return row | {"annotator": seen.annotator, "category": seen.category}


def write(folder: Path, seen: Iterable[Observation]) -> dict[str, list[str]]:
    """Write observations into their files, each at its record's place; gives the files of each source, in order."""
    files: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for one in seen:
        files[one.source, one.file][one.record] = json.dumps(record(one), ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = defaultdict(list)
    for (source, name), lines in sorted(files.items(), key=lambda item: SOURCES.index(item[0][0])):
        text = "".join(f"{lines[place]}\n" for place in sorted(lines))
        (folder / name).write_text(text, encoding="utf-8")
        found[source].append(str(folder / name))
    return found
