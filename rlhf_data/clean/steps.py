"""The cleaning operations of a spec: text folders in, text folders out, each completion that is left out by its reason.

Texts are looked at chunk by chunk, and those of a prompt once however many answers it has. Where a prompt is to be left
out, its completions are.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from xxhash import xxh3_128

from rlhf_data import ids, tables, texts
from rlhf_data.accounting import Count
from rlhf_data.clean import contaminated, duplicates, language, near, pii
from rlhf_data.clean.collect import collect
from rlhf_data.files import whole_file, whole_folder
from rlhf_data.quarantine import Refusal, refusals

Finder = Callable[[pl.Series], pl.DataFrame]  # texts → what `pii.find` gives

_LEFT = {"completion_row": pl.UInt32, "reason": pl.String}
_AT_ONCE = 200_000  # completions whose texts are masked together
SIDES = ("prompt", "completion")
# What is wrong with some texts of a side: the side, the texts, their rows → a reason for each, null where nothing is.
Judge = Callable[[str, pl.Series, pl.Series], pl.Series]


def dedup(
    inputs: dict[str, Path],
    out: Path,
    *,
    keys: Sequence[str],
    threshold: float | None = None,
    prefer: str | None = None,
    step: str = "clean",
) -> list[Count]:
    """Of texts that are the same, keep one.

    Args:
        inputs: one text folder.
        out: gets another.
        keys: what must be the same: prompt, completion, or both; or pair: the prompt and two compared completions, in
            either order.
        threshold: the estimated Jaccard similarity from which texts are the same; None: they must be, but for case,
            white space and Unicode form. Each key is looked at by itself: two short answers to one long prompt are
            not near because it is.
        prefer: "highest_rating" keeps what stands highest among the ratings of its source (of a prompt its best
            answer counts, of a pair the better one); otherwise, and among equals, the first by id stays.
        step: the name it is accounted under.
    """
    (folder,) = inputs.values()
    completions, judgments = texts.read(folder, "completions"), texts.read(folder, "judgments")
    reason = f"{'nearly ' * (threshold is not None)}the same {' and '.join(keys)}"
    heard = judgments if prefer == "highest_rating" else judgments.clear()
    rows = completions.select("completion_row", "prompt_row").join(
        duplicates.standings(heard), on="completion_row", how="left", maintain_order="left"
    )
    if list(keys) == ["pair"]:
        return _dedup_pairs(folder, out, rows, threshold, step, reason)
    if list(keys) == ["prompt"]:
        best = rows.group_by("prompt_row").agg(pl.col("standing").max()).sort("prompt_row")
        group = texts.looked_up(best["prompt_row"], _groups(folder, "prompt", threshold), "group")
        stands = duplicates.representatives(group, best["prompt_row"], best["standing"])
        lost = best["prompt_row"].filter(stands != pl.int_range(best.height, dtype=pl.UInt32, eager=True))
        left = rows.filter(pl.col("prompt_row").is_in(lost.implode()))
    else:
        sides = (texts.looked_up(rows[f"{side}_row"], _groups(folder, side, threshold), "group") for side in keys)
        stands = duplicates.representatives(duplicates.joined_keys(*sides), rows["completion_row"], rows["standing"])
        left = rows.filter(stands != pl.int_range(rows.height, dtype=pl.UInt32, eager=True))
    return _leave_out(folder, out, left.select("completion_row", reason=pl.lit(reason)), step, "merged")


def _dedup_pairs(
    folder: Path, out: Path, rows: pl.DataFrame, threshold: float | None, step: str, reason: str
) -> list[Count]:
    """Keep one of the compared pairs that are the same, and the completions that are still judged."""
    completions, judgments = texts.read(folder, "completions"), texts.read(folder, "judgments")
    prompts, answers = (_groups(folder, side, threshold) for side in SIDES)
    sides = {
        "a": pl.min_horizontal("completion_row", "other_row"),
        "b": pl.max_horizontal("completion_row", "other_row"),
    }
    compared = judgments.drop_nulls("other_row").select("judgment_row", "prompt_row", **sides)
    pairs = compared.select("a", "b", "prompt_row").unique().sort("a", "b")
    a, b = (texts.looked_up(pairs[side], answers, "group") for side in "ab")
    standings = [texts.looked_up(pairs[side], rows.select("completion_row", "standing"), "standing") for side in "ab"]
    pairs = pairs.with_columns(
        group=duplicates.pair_keys(texts.looked_up(pairs["prompt_row"], prompts, "group"), a, b),
        standing=pl.select(pl.max_horizontal(*standings)).to_series(),
    ).with_row_index("pair")
    stands = duplicates.representatives(pairs["group"], pairs["pair"], pairs["standing"])
    lost = compared.join(pairs.filter(stands != pairs["pair"]), on=["a", "b"], how="semi")
    heard = judgments.join(lost, on="judgment_row", how="anti", maintain_order="left")
    named = pl.concat([heard["completion_row"], heard["other_row"].drop_nulls()]).unique()
    kept = completions.filter(pl.col("completion_row").is_in(named.implode()))
    chunks, held = texts.chunks_of(folder), texts.read(folder, "prompts")
    texts.write(out, chunks, prompts=held, completions=kept, judgments=heard)
    return [
        _count(
            step, "completions", completions.height, {f"only in {reason}": completions.height - kept.height}, "merged"
        ),
        _count(step, "judgments", judgments.height, {reason: judgments.height - heard.height}, "merged"),
    ]


def decontaminate(
    inputs: dict[str, Path],
    out: Path,
    *,
    files: Sequence[str],
    ngram: int = contaminated.NGRAM,
    of: str = "both",
    step: str = "clean",
) -> list[Count]:
    """Leave out completions that share a run of words with an evaluation file, or whose prompts do.

    Args:
        inputs: one text folder.
        out: gets another.
        files: paths of evaluation files; a text in several is counted under the first.
        ngram: words in a run; a prompt of fewer words counts where it is, as a whole, a text of a file.
        of: prompt, completion or both.
        step: the name it is accounted under.

    Raises:
        ValueError: a file that cannot be read, or in which there is nothing to look for.
    """
    (folder,) = inputs.values()
    index = contaminated.index([Path(file) for file in files], ngram)
    if empty := [file for k, file in enumerate(files) if k not in index.file_of]:
        raise ValueError(f"{step}: against: no words are in {', '.join(empty)}; leave it out, or give another file")

    def judge(side: str, held: pl.Series, rows: pl.Series) -> pl.Series:
        hits = contaminated.hits(held, index, whole=side == "prompt")
        return _reasons(held.len(), hits["row"], f"{side} in " + hits["file"])

    return _leave_out(folder, out, _judged(folder, of, judge), step, "filtered")


def keep_languages(
    inputs: dict[str, Path],
    out: Path,
    *,
    keep: Sequence[str],
    min_confidence: float = 0.0,
    of: str = "prompt",
    step: str = "clean",
) -> list[Count]:
    """Keep completions that are, or whose prompts are, in one of some languages.

    Args:
        inputs: one text folder.
        out: gets another.
        keep: codes of languages.
        min_confidence: of the model in the language, from 0 to 1.
        of: prompt, completion or both.
        step: the name it is accounted under.
    """
    (folder,) = inputs.values()

    def judge(side: str, held: pl.Series, rows: pl.Series) -> pl.Series:
        return f"{side}: " + language.kept(language.languages(held), keep, min_confidence)["reason"]

    return _leave_out(folder, out, _judged(folder, of, judge), step, "filtered")


def mark_personal_data(
    inputs: dict[str, Path],
    out: Path,
    *,
    kinds: Sequence[str] | None = None,
    presidio: str | None = None,
    language: str = "en",
    refuse: bool = False,
    of: str = "both",
    step: str = "clean",
) -> list[Count]:
    """Say where personal data stand, and send what holds them to quarantine if that is asked for.

    Args:
        inputs: one text folder.
        out: gets another, with marks.parquet (side, row, kind, start, end; of a prompt with all turns joined by blank
            lines) and, where rows are refused, quarantine.parquet.
        kinds: of `pii.KINDS`, or of Presidio's entities; None: all.
        presidio: the spaCy model of Presidio, which then looks in place of our patterns.
        language: of the texts, for Presidio.
        refuse: whether completions that hold personal data, or whose prompts do, are refused, by the first kind in
            them; otherwise all stay.
        of: prompt, completion or both.
        step: the name it is accounted under.
    """
    (folder,) = inputs.values()
    marks, find = [tables.empty("marks")], _finder(kinds, presidio, language)

    def judge(side: str, held: pl.Series, rows: pl.Series) -> pl.Series:
        found = find(held)
        marks.append(
            found.select(pl.lit(side).alias("side"), rows.gather(found["row"]).alias("row"), "kind", "start", "end")
        )
        return _reasons(held.len(), found["row"], "text." + found["kind"])

    left = _judged(folder, of, judge)
    found = pl.concat(marks).sort("side", "row", "start")
    tables.write(found, out / "marks.parquet", "marks")
    told = [Count(step, f"{kind} in texts", count, count) for kind, count in pii.counts(found).items()]
    if not refuse:
        return [*_leave_out(folder, out, left.clear(), step, "filtered"), *told]
    judgments = texts.read(folder, "judgments")
    columns = ["prompt_row", "completion_row", "other_row", "kind", "value", "source", "file", "record"]
    lost = judgments.join(_reasons_of(judgments, left), on="judgment_row", maintain_order="left")
    refused = [
        Refusal(str(code), rows.select(columns), "holds personal data")
        for (code,), rows in lost.group_by("reason", maintain_order=True)
    ]
    tables.write(refusals(refused, step, folder), out / "quarantine.parquet", "quarantine")
    return [*_leave_out(folder, out, left, step, "quarantined"), *told]


def mask_personal_data(
    inputs: dict[str, Path],
    out: Path,
    *,
    chunks: Path,
    version: str = "",
    kinds: Sequence[str] | None = None,
    presidio: str | None = None,
    language: str = "en",
    of: str = "both",
    step: str = "clean",
) -> list[Count]:
    """Put the kind of personal data in their place: [EMAIL].

    Ids are those of the masked texts, so texts that differed in nothing else become one, and a split by root may put
    them elsewhere. A comparison of two answers that became one is left out.

    Args:
        inputs: one text folder.
        out: gets another, into new chunks.
        chunks: the folder of all chunks.
        version: of the code that masks; part of the chunks' names.
        kinds: of `pii.KINDS`, or of Presidio's entities; None: all.
        presidio: the spaCy model of Presidio, which then looks in place of our patterns.
        language: of the texts, for Presidio.
        of: prompt, completion or both.
        step: the name it is accounted under.
    """
    (folder,) = inputs.values()
    completions, judgments = texts.read(folder, "completions"), texts.read(folder, "judgments")
    found, made = Counter[str](), dict[str, list[texts.Chunk]]()
    find = _finder(kinds, presidio, language)
    for here in _whole_prompts(completions):
        prompts = texts.prompt_texts(folder, here["prompt_row"])
        answers = texts.completion_texts(folder, here["completion_row"])
        if of in ("prompt", "both"):
            prompts = prompts.with_columns(_masked_turns(prompts["prompt"], find, found))
        if of in ("completion", "both"):
            answers = answers.with_columns(_masked(answers["completion"], find, found))
        prompts = prompts.with_columns(ids.prompt_ids(prompts["prompt"]), ids.split_keys(prompts["prompt"]))
        rows = here.join(answers, on="completion_row").join(prompts.select("prompt_row", "prompt_id"), on="prompt_row")
        rows = rows.with_columns(ids.completion_ids(rows["prompt_id"], rows["completion"]))
        heard = judgments.join(here.select("completion_row"), on="completion_row", how="semi", maintain_order="left")
        for (source,), part in heard.group_by("source", maintain_order=True):
            chunk = texts.Chunk(_write_chunk(chunks, version, prompts, rows, part), str(source), 0)
            made.setdefault(chunk.source, []).append(chunk)
    if not made:  # nobody has judged anything
        return _leave_out(folder, out, pl.DataFrame(schema=_LEFT), step, "filtered")
    in_order = dict.fromkeys(chunk.source for chunk in texts.chunks_of(folder))
    texts.write_chunks(out, [chunk for source in in_order for chunk in made.get(source, [])])
    collect({"text": out}, out)
    left = texts.read(out, "completions").height, texts.read(out, "judgments").height
    same = {"the same once masked": completions.height - left[0]}
    lost = {"of two answers the same once masked": judgments.height - left[1]}
    return [
        _count(step, "completions", completions.height, same, "merged"),
        _count(step, "judgments", judgments.height, lost, "filtered"),
        *(_count(step, f"{kind} in texts", n, {"masked": n}, "filtered") for kind, n in sorted(found.items())),
    ]


def _whole_prompts(completions: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Completions in batches, all of a prompt in the same one."""
    ordered = completions.sort("prompt_row", "completion_row")
    start = 0
    while start < ordered.height:
        last = ordered["prompt_row"][min(start + _AT_ONCE, ordered.height) - 1]
        end = int(ordered["prompt_row"].search_sorted(last, side="right"))
        yield ordered.slice(start, end - start)
        start = end


def _finder(kinds: Sequence[str] | None, presidio: str | None, language: str) -> Finder:
    """What looks for personal data: our patterns, or Presidio with a spaCy model."""
    if presidio is None:
        return partial(pii.find, kinds=kinds)
    return partial(pii.find_with_presidio, kinds=kinds, language=language, model=presidio)


def _masked(held: pl.Series, find: Finder, found: Counter[str]) -> pl.Series:
    """Texts masked; what was found is added to `found`."""
    spans = find(held)
    found.update(pii.counts(spans))
    return pii.mask(held, spans)


def _masked_turns(prompts: pl.Series, find: Finder, found: Counter[str]) -> pl.Series:
    turns = prompts.alias("prompt").to_frame().with_row_index("row").explode("prompt").unnest("prompt")
    turns = turns.with_columns(_masked(turns["content"], find, found))
    messages = turns.select("row", prompt=pl.struct("role", "content"))
    return messages.group_by("row", maintain_order=True).agg("prompt")["prompt"]


def _write_chunk(chunks: Path, version: str, prompts: pl.DataFrame, rows: pl.DataFrame, heard: pl.DataFrame) -> str:
    """The folder of a chunk of masked texts: what the judgments of one source speak of.

    Args:
        chunks: the folder of all chunks.
        version: part of the chunk's name.
        prompts: prompt_row, prompt_id, prompt, split_key: masked.
        rows: completions of theirs: completion_row, completion_id, prompt_id, completion, category, model: masked.
        heard: the judgments.
    """
    named = pl.concat([heard["completion_row"], heard["other_row"].drop_nulls()]).unique()
    rows = rows.filter(pl.col("completion_row").is_in(named.implode()))
    asked = prompts.unique("prompt_id", keep="first", maintain_order=True)
    asked = asked.join(rows, on="prompt_id", how="semi", maintain_order="left").drop("prompt_row")
    held = rows.unique("completion_id", keep="first", maintain_order=True).drop("prompt_row", "completion_row")
    held = held.join(asked.select("prompt_id").with_row_index("prompt_row"), on="prompt_id", maintain_order="left")
    places = held.select("completion_id").with_row_index("place")
    place = rows.select("completion_row", "completion_id").join(places, on="completion_id").sort("completion_row")
    place = place.select("completion_row", "place")
    observed = heard.with_columns(
        heard.select(completion_row=side)
        .join(place, on="completion_row", how="left", maintain_order="left")["place"]
        .alias(side)
        for side in ("completion_row", "other_row")
    )
    observed = observed.filter(pl.col("other_row").is_null() | (pl.col("other_row") != pl.col("completion_row")))
    parts = {
        "prompts": asked,
        "completions": held.with_columns(pl.col("category", "model").cast(pl.String)),
        "observed": observed.with_columns(pl.col(pl.Categorical).cast(pl.String)),
        "refused": tables.empty("refused"),
    }
    parts = {name: part.select(list(tables.columns(name))) for name, part in parts.items()}
    hasher = xxh3_128(f"masked:{version}".encode())
    for name, part in parts.items():
        hasher.update(part.drop("prompt" if name == "prompts" else [], strict=False).write_ipc(None).getvalue())
    folder = chunks / hasher.hexdigest()
    if not texts.whole(folder):
        shutil.rmtree(folder, ignore_errors=True)  # what is left of a damaged one
        with whole_folder(folder) as new:
            for name, part in parts.items():
                tables.write(part, new / f"{name}.parquet", name)
            texts.finish(new, {"records": 0, "counts": []})
    return str(folder)


def cluster_prompts(inputs: dict[str, Path], out: Path, *, threshold: float) -> list[Count]:
    """The split key that near-duplicate conversation roots share → clusters.parquet: prompt_row, split_key.

    A root that is near no other keeps its own key, so that it stands where a split by root puts it.

    Args:
        inputs: one text folder.
        out: gets the table.
        threshold: the estimated Jaccard similarity from which two roots are near.
    """
    (folder,) = inputs.values()
    roots = [pl.DataFrame(schema={"prompt_row": pl.UInt32, "split_key": pl.String, "root": pl.String})]
    for batch in texts.prompts_by_chunk(folder):
        turns = pl.col("prompt").list
        users = turns.eval(pl.element().filter(pl.element().struct["role"] == "user")).list
        root = pl.coalesce(users.first(), turns.first()).struct["content"]
        roots.append(batch.select("prompt_row", "split_key", root=root))
    held = pl.concat(roots).sort("prompt_row")
    once = held.unique("split_key", keep="first", maintain_order=True)
    once = once.with_columns(cluster=near.prompt_clusters(once["split_key"], once["root"], threshold))
    keys = held.select("prompt_row", "split_key").join(once.select("split_key", "cluster"), on="split_key")
    keys = keys.select("prompt_row", split_key="cluster").sort("prompt_row")
    tables.write(keys, out / "clusters.parquet", "clusters")
    clusters = keys["split_key"].n_unique()
    return [_count("clusters", "conversation roots", once.height, {"near another": once.height - clusters}, "merged")]


def _groups(folder: Path, side: str, threshold: float | None) -> pl.DataFrame:
    """prompt_row or completion_row, and `group`: what texts of this side that are the same, or near, have in common."""
    row = f"{side}_row"
    index = texts.read(folder, f"{side}s", [row, "chunk", "place"]).sort("chunk", row)
    made = np.empty((0 if threshold is None else index.height, near.PLACES), dtype=np.uint32)
    keys, done = [pl.Series("key", [], dtype=pl.String)], 0
    for number, chunk in enumerate(texts.chunks_of(folder)):
        place = index.filter(pl.col("chunk") == number)["place"]
        if threshold is None and place.len():
            keys.append(duplicates.text_keys(_texts(chunk, side).gather(place)))
        elif place.len():
            made[done : done + place.len()] = _signatures(chunk, side)[place.to_numpy()]
            done += place.len()
    groups = pl.concat(keys) if threshold is None else near.clusters(index[row], made, threshold).cast(pl.String)
    return index.select(row).with_columns(group=groups).sort(row)


def _signatures(chunk: texts.Chunk, side: str) -> near.Signatures:
    """The signatures of all texts of a chunk; they are computed once, and lie in its folder."""
    path = Path(chunk.folder) / f"{side}s.{near.method()}.npy"
    height = texts.read_chunk(chunk, f"{side}s", [f"{side}_id"]).height
    if path.is_file():
        try:
            known = np.load(path, mmap_mode="r")
        except (ValueError, EOFError):  # damaged: made again
            known = None
        if known is not None and known.shape == (height, near.PLACES):
            return known
    made = near.signatures(_texts(chunk, side))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, made)
    return made


def _texts(chunk: texts.Chunk, side: str) -> pl.Series:
    held = texts.read_chunk(chunk, f"{side}s", [side])[side]
    return held if side == "completion" else joined(held)


def joined(prompts: pl.Series) -> pl.Series:
    """The contents of all turns of each prompt, joined by blank lines."""
    contents = pl.col("prompt").list.eval(pl.element().struct["content"])
    return prompts.alias("prompt").to_frame().select(contents.list.join("\n\n")).to_series()


def _judged(folder: Path, of: str, judge: Judge) -> pl.DataFrame:
    """completion_row, reason of the completions with which something is wrong; what its prompt's is comes first."""
    completions = texts.read(folder, "completions", ["completion_row", "prompt_row"])
    left = [pl.DataFrame(schema=_LEFT)]
    if of in ("prompt", "both"):
        for batch in texts.prompts_by_chunk(folder):
            here = batch.join(completions, on="prompt_row", how="semi", maintain_order="left")
            reasons = here.select("prompt_row", reason=judge("prompt", joined(here["prompt"]), here["prompt_row"]))
            left.append(completions.join(reasons, on="prompt_row").select("completion_row", "reason"))
    if of in ("completion", "both"):
        for batch in texts.completions_by_chunk(folder, prompts=False):
            reason = judge("completion", batch["completion"], batch["completion_row"])
            left.append(batch.select("completion_row", reason=reason))
    found = pl.concat(left).drop_nulls("reason")
    return found.unique("completion_row", keep="first", maintain_order=True).sort("completion_row")


def _reasons(height: int, rows: pl.Series, reasons: pl.Series) -> pl.Series:
    """A reason for each of so many rows: the first that is given, null where none is."""
    given = pl.DataFrame({"row": rows, "reason": reasons}).unique("row", keep="first", maintain_order=True)
    every = pl.DataFrame({"row": pl.int_range(height, dtype=pl.UInt32, eager=True)})
    return every.join(given, on="row", how="left", maintain_order="left")["reason"]


def _reasons_of(judgments: pl.DataFrame, left: pl.DataFrame) -> pl.DataFrame:
    """judgment_row, reason of the judgments that speak of a completion that is left out."""
    first = judgments.select("judgment_row", "completion_row").join(left, on="completion_row")
    other = judgments.select("judgment_row", completion_row="other_row").join(left, on="completion_row")
    found = pl.concat([first.select("judgment_row", "reason"), other.select("judgment_row", "reason")])
    return found.unique("judgment_row", keep="first", maintain_order=True)


def _leave_out(folder: Path, out: Path, left: pl.DataFrame, step: str, fate: str) -> list[Count]:
    """Write a text folder without some completions and without what was said of them.

    Args:
        folder: a text folder.
        out: gets another.
        left: completion_row, reason.
        step: the name it is accounted under.
        fate: merged, filtered or quarantined.
    """
    completions, judgments = texts.read(folder, "completions"), texts.read(folder, "judgments")
    kept = completions.join(left, on="completion_row", how="anti", maintain_order="left")
    reasons = _reasons_of(judgments, left)
    heard = judgments.join(reasons, on="judgment_row", how="anti", maintain_order="left")
    held = texts.read(folder, "prompts")
    texts.write(out, texts.chunks_of(folder), prompts=held, completions=kept, judgments=heard)
    return [
        _count(step, "completions", completions.height, Counter(left["reason"]), fate),
        # A judgment of a duplicate is not part of another one.
        _count(step, "judgments", judgments.height, Counter(reasons["reason"]), fate.replace("merged", "filtered")),
    ]


def _count(step: str, unit: str, rows_in: int, reasons: Mapping[str, int], fate: str) -> Count:
    lost = {reason: count for reason, count in sorted(reasons.items()) if count}
    fates: dict[str, Any] = {fate: lost}
    return Count(step, unit, rows_in, rows_in - sum(lost.values()), **fates)
