"""AlpacaEval's annotations (Li et al. 2023, github.com/tatsu-lab/alpaca_eval): a judge's verdict on two answers.

What `preference` means differs from file to file of one repository, so the options say it and nothing is guessed.
"""

import polars as pl

from rlhf_data.sources.observations import Read, reasons

TABLES = {
    "raw": {
        **dict.fromkeys(("instruction", "output_1", "output_2", "generator_1", "generator_2"), pl.String()),
        "dataset": pl.String(),
        "annotator": pl.String(),
        "preference": pl.Float64(),
    }
}


def read(raw: pl.DataFrame, *, verdict: str, tie: float | None = None) -> Read:
    """One comparison a record, of output_1 (the baseline's) with output_2 (the evaluated model's).

    Args:
        raw: record; instruction, output_1, output_2, generator_1, generator_2, dataset, annotator (String);
            preference (Float64).
        verdict: "code": 1 = output_1 is better, 2 = output_2 is better;
            "probability": 1 + the probability that output_2 is better.
        tie: the code of a tie (0, 1.5); None if there is none.

    Returns:
        rows: comparisons; a null preference is a missing verdict;
        rejects: `preference.out_of_range` for any other code.

    Raises:
        ValueError: verdict is neither of the two, or a tie code is given with probabilities.
    """
    if verdict not in ("code", "probability"):
        raise ValueError(f"verdict is {verdict!r}: it must be code or probability")
    if verdict == "probability" and tie is not None:
        raise ValueError("tie is the code of a tie; probabilities need none: 1.5 is one half")
    preference = pl.col("preference")
    if verdict == "probability":
        value, known = 2.0 - preference, preference.is_null() | preference.is_between(1.0, 2.0)
        allowed = "between 1 and 2"
    else:
        codes = {1.0: 1.0, 2.0: 0.0} | ({} if tie is None else {float(tie): 0.5})
        value = preference.replace_strict(codes, default=None, return_dtype=pl.Float64)
        known = preference.is_null() | preference.is_in(list(codes))
        allowed = "one of " + ", ".join(f"{code:g}" for code in codes)
    rows = raw.filter(known).select(
        "record",
        "annotator",
        prompt="instruction",
        completion="output_1",
        other="output_2",
        kind=pl.lit("comparison"),
        value=value,
        model="generator_1",
        other_model="generator_2",
        category="dataset",
    )
    shown = pl.format("{} is not {}", "preference", pl.lit(allowed))
    return Read(rows, rejects=reasons(raw.filter(~known), "preference.out_of_range", shown))
