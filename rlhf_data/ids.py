"""Identity: content ids and keyed hashes.

Ids are xxh3-128 of canonical bytes, written as 32 hex digits. They are the same on every machine and in every engine,
which no engine's own `hash()` promises.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_UINT64, _EXACT = 1 << 64, 1 << 53  # a Float64 holds 53 bits: with more, the largest hashes would round up to 1


def content_id(*parts: str) -> str:
    """The id of a tuple of strings; each part's length is hashed too, so ("ab", "c") differs from ("a", "bc").

    >>> content_id("ab", "c") == content_id("a", "bc")
    False
    """
    return xxh3_128_hexdigest("".join(f"{len(part.encode())}:{part}" for part in parts).encode())


def prompt_ids(prompts: pl.Series) -> pl.Series:
    """The ids of prompts given as List(Struct{role, content}); null stays null."""
    turn = pl.concat_str(
        pl.element().struct["role"],
        pl.lit(":"),
        pl.element().struct["content"].str.len_bytes(),
        pl.lit(":"),
        pl.element().struct["content"],
    )
    canonical = prompts.to_frame("prompt").select(pl.col("prompt").list.eval(turn).list.join(""))["prompt"]
    return _digests(canonical, "prompt_id")


def pair_ids(first: pl.Series, second: pl.Series, name: str) -> pl.Series:
    """Ids of rows of two strings of which the first is itself an id (fixed length), in order."""
    joined = pl.DataFrame({"first": first, "second": second}).select(pl.col("first") + ":" + pl.col("second"))
    return _digests(joined.to_series(), name)


def completion_ids(prompt_id: pl.Series, completion: pl.Series) -> pl.Series:
    """The ids of completions: prompt and text together, so one text under two prompts has two ids."""
    return pair_ids(prompt_id, completion, "completion_id")


def bits(ids: pl.Series) -> pl.Series:
    """The first 64 bits of content ids (32 hex digits each): what draws are mixed from."""
    return ids.str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)


def keyed_hash(ids: pl.Series, purpose: str, seed: int = 0) -> pl.Series:
    """A UInt64 per id that depends on nothing but (purpose, seed, id).

    Ranking by it samples rows in a way that neither the order of rows nor rows that arrive later can change.

    Args:
        ids: content ids, or their `bits`, which are mixed with the key (SplitMix64's finaliser).
        purpose: what it is drawn for; two purposes have nothing in common.
        seed: of the spec.
    """
    key = np.uint64(xxh3_64_intdigest(f"{purpose}:{seed}".encode()))
    mixed = (ids if ids.dtype == pl.UInt64 else bits(ids)).to_numpy() ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return pl.Series(ids.name, mixed, dtype=pl.UInt64)


def keyed_fraction(ids: pl.Series, purpose: str, seed: int = 0) -> pl.Series:
    """`keyed_hash` as Float64 in [0, 1): a threshold on it takes a share."""
    return (keyed_hash(ids, purpose, seed) // (_UINT64 // _EXACT)).cast(pl.Float64) / _EXACT


def split_keys(prompts: pl.Series) -> pl.Series:
    """The normalised root of each conversation: its first user turn, case-folded, NFKC, white space collapsed.

    Prompts with the same key must never stand on two sides of a split.
    """
    contents = prompts.to_frame("prompt").select(
        root=pl.coalesce(
            pl.col("prompt").list.eval(pl.element().filter(pl.element().struct["role"] == "user")).list.first(),
            pl.col("prompt").list.first(),
        ).struct["content"]
    )["root"]
    return pl.Series("split_key", [None if c is None else _normalised(c) for c in contents], dtype=pl.String)


def _normalised(text: str) -> str:
    return xxh3_128_hexdigest(" ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode())


def _digests(values: pl.Series | Sequence[str | None], name: str) -> pl.Series:
    texts: Any = values.cast(pl.Binary) if isinstance(values, pl.Series) else [v and v.encode() for v in values]
    return pl.Series(name, [None if v is None else xxh3_128_hexdigest(v) for v in texts], dtype=pl.String)
