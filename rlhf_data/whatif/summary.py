"""Each rule's weights in a few figures."""

import polars as pl

from rlhf_data.whatif.weigh import Weighed, columns_of


def summary(made: Weighed) -> dict[str, dict[str, dict[str, float]]]:
    """Label → column → mean, least, median, largest, and the shares of zeros and negatives."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    trained = made.weights.filter(pl.col("weight") > 0)
    for one in made.asked:
        names = columns_of(one, made.table, alone=len(made.asked) == 1)
        found[one.label] = {
            name.rpartition(".")[2] if len(made.asked) > 1 else name: _figures(trained, name) for name in names
        }
    return found


def in_words(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The same as a table for a terminal."""
    width = max([len(label) for label in found] + [4])
    head = f"{'rule':<{width}} {'':<10}" + "".join(f"{name:>11}" for name in ("mean", "least", "median", "largest"))
    lines = [f"{head}{'zero':>8}{'negative':>10}"]
    for label, columns in found.items():
        for name, figures in columns.items():
            values = "".join(f"{figures[key]:>11.4g}" for key in ("mean", "least", "median", "largest"))
            lines.append(f"{label:<{width}} {name:<10}{values}{figures['zero']:>8.1%}{figures['negative']:>10.1%}")
            label = ""
    return lines


def _figures(rows: pl.DataFrame, name: str) -> dict[str, float]:
    w = pl.col(name)
    return rows.select(
        mean=w.mean(),
        least=w.min(),
        median=w.median(),
        largest=w.max(),
        zero=(w == 0).mean(),
        negative=(w < 0).mean(),
    ).row(0, named=True)
