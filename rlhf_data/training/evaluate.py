"""Judging a policy beside the one it started from: on held-out preferences, and by a verifier on what it writes."""

import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from rlhf_data.scoring import models
from rlhf_data.scoring.condition import for_inference
from rlhf_data.scoring.encode import Message, prompt_limit, refused_prompts
from rlhf_data.scoring.identity import told
from rlhf_data.scoring.logprobs import default_budget, layout_of
from rlhf_data.scoring.rewards import is_reward_model, layout_of_scores, load_reward_model
from rlhf_data.scoring.tokens import folder as tokens_folder
from rlhf_data.training.batches import manifest_of, read_rows, read_split
from rlhf_data.training.calibration import calibration_error, log_loss, reliability
from rlhf_data.training.gate import check_encoding, check_tokens
from rlhf_data.training.generate import open_writer, write
from rlhf_data.training.judges import check_judge, judged_by_both, open_judge
from rlhf_data.training.step import Policy, sequence_logps

Verifier = Callable[[list[Message], str], float]
_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")
_RESAMPLES = 2000
_SHOWN = 12  # samples kept for the report


class Margins(NamedTuple):
    """What a model thinks of pairs, each (n,).

    Attributes:
        ids: of the pairs that could be measured.
        margin: log π(chosen) − log π(rejected), nats; of a reward model, the difference of its scores.
        log_ratio_margin: the same minus the stored reference's; None where the snapshot is not scored.
        preference: the share of raters who chose the chosen one.
        groups: of each pair, for a line each.
        prompts: the prompt of each pair: pairs of one prompt do not speak for themselves.
        dropped: pairs that could not be measured, by code.
    """

    ids: list[str]
    margin: np.ndarray
    log_ratio_margin: np.ndarray | None
    preference: np.ndarray
    groups: list[str | None]
    prompts: list[str]
    dropped: dict[str, int]

    def only(self, ids: set[str]) -> "Margins":
        """The same of some pairs; a model with another tokenizer may have had to leave others out."""
        at = [i for i, name in enumerate(self.ids) if name in ids]
        return self._replace(
            ids=[self.ids[i] for i in at],
            margin=self.margin[at],
            log_ratio_margin=None if self.log_ratio_margin is None else self.log_ratio_margin[at],
            preference=self.preference[at],
            groups=[self.groups[i] for i in at] if self.groups else [],
            prompts=[self.prompts[i] for i in at],
        )


def compare(
    snapshot: Path,
    *,
    before: dict[str, Any],
    after: dict[str, Any],
    by: str | None = "category",
    split: str = "test",
    verifier: str | None = None,
    reward_model: dict[str, Any] | None = None,
    samples: int = 1,
    prompts: int | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    dtype: str = "auto",
    token_budget: int | None = None,
    seed: int = 0,
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure two models on the held-out rows of a snapshot.

    Args:
        snapshot: folder of a published snapshot.
        before: reference of the model that training started from.
        after: reference of the trained model.
        by: the column to group by, "category" or "source"; None for no groups.
        split: which rows are held out.
        verifier: "module:function" of (messages, answer) → reward.
        reward_model: reference of a trained reward model that judges the same answers. With neither, nothing is
            generated.
        samples: answers per prompt.
        prompts: at most so many prompts, the first by id.
        temperature: of the sampling; 0 takes the likeliest token.
        max_new_tokens: of an answer.
        template: see `encode`, and so are the lengths.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        token_budget: most tokens of a forward.
        seed: of sampling and of resampling.
        cache: folder for digests and dequantised models.
        progress: whether bars are shown.

    Returns:
        {"split", "by", "measures", "left_out", "samples", "calibration"}. `left_out` counts pairs and prompts that
        could not be encoded, by code, and as reward_model.CODE those that the reward model alone could not read. A
        measure is {"name", "about", "share", "lines"}, a line {"group" (None for all), "n", "before", "after",
        "difference"}, each of the last three {"value", "low", "high"} with a 95 % bootstrap interval, that of the
        difference over paired differences. `calibration` is empty but of a reward model: a list of {"group", "n",
        "bins"}, see `calibration.reliability`.

    Raises:
        ValueError: no such split or verifier, a judge for a reward model, which writes nothing, or a judge that is no
            reward model.
    """
    table = read_split(snapshot, split)
    tokens = {
        "template": template,
        "max_length": max_length,
        "max_prompt_length": prompt_limit(max_length, max_prompt_length),
    }
    scored = is_reward_model(after)
    if scored and (verifier is not None or reward_model is not None):
        raise ValueError("a reward model writes no answers to grade: leave verifier and reward_model out")
    rate = None if verifier is None else find_verifier(verifier)
    if reward_model is not None:
        check_judge(reward_model)
    numeric = {"dtype": dtype, "cache": cache}
    measures: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    shown: list[dict[str, Any]] = []
    calibration: list[dict[str, Any]] = []
    if "chosen" in table.column_names:
        manifest = manifest_of(snapshot)
        recipe = None if scored else manifest.get("score")
        options = {"by": by, "recipe": recipe, "token_budget": token_budget, **tokens, **numeric}

        def margins(model: dict[str, Any]) -> Margins:
            stored = tokens_folder(snapshot, manifest, split, model=model, cache=cache, **tokens) / split
            return pair_margins(model, table, stored=stored, **options)

        # What had no head before has no scores to compare with.
        if not scored and is_reward_model(before):
            raise ValueError("before is a reward model and after is not: scores and log-probs do not compare")
        first = margins(before) if not scored or is_reward_model(before) else None
        second = margins(after)
        if first is not None:
            both = set(first.ids) & set(second.ids)
            if not both:
                raise ValueError("the two models can read no pair in common: their tokenizers refuse different texts")
            first, second = first.only(both), second.only(both)
        if scored:
            measures += _reward_measures(first, second, seed)
            calibration = _calibration(second)
        elif first is not None:
            measures += _pair_measures(first, second, seed)
        left_out |= second.dropped
    if rate or reward_model is not None:
        asked, refused = _answerable(_distinct(table, by, prompts), after, template, tokens["max_prompt_length"], cache)
        left_out |= refused
        settings = {"n": samples, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        settings |= {"template": template, "max_prompt_length": tokens["max_prompt_length"], "progress": progress}
        texts = [row["prompt"] for row in asked]
        written = [answers(model, texts, **settings, **numeric) for model in (before, after)]
        if reward_model is not None:  # opened once both policies are gone: a device may hold one model only
            judge = open_judge(reward_model, dtype=dtype, token_budget=token_budget, cache=cache)
            one, other, kept, unread = judged_by_both(judge, texts, written[0], written[1])
            left_out |= {f"reward_model.{code}": n for code, n in unread.items()}
            if len(kept):
                read = [asked[k] for k in kept]
                measures += _answer_measures(one, other, read, by, "reward model", "the reward model", seed)
                kept_texts = [[side[k] for k in kept] for side in written]
                shown = _shown(read, kept_texts[0], kept_texts[1], one, other)
        if rate and verifier:
            one, other = (verified(rate, texts, side) for side in written)
            measures += _answer_measures(one, other, asked, by, "verifier", verifier, seed)
            shown = _shown(asked, written[0], written[1], one, other)
    found = {"split": split, "by": by, "measures": measures, "left_out": left_out}
    return found | {"samples": shown, "calibration": calibration}


def pair_margins(
    model: dict[str, Any],
    table: pa.Table,
    *,
    by: str | None,
    recipe: dict[str, Any] | None,
    template: str,
    max_length: int,
    max_prompt_length: int | None,
    dtype: str,
    token_budget: int | None,
    cache: Path,
    stored: Path | None = None,
) -> Margins:
    """A model's log-prob margins of held-out pairs, or a reward model's margins of scores.

    A model that was conditioned on classes is asked for its best one, and then compared with no stored reference.

    Args:
        model: its reference.
        table: rows of a paired snapshot.
        by: a column to group by.
        recipe: how the snapshot was scored; None where it was not.
        template: see `encode`, and so are the lengths.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        token_budget: most tokens of a forward.
        cache: folder for digests and dequantised models.
        stored: where the rows' token ids are kept; see `read_rows`.

    Raises:
        ValueError: the stored references are of other tokens.
    """
    encoding = {"template": template, "max_length": max_length, "max_prompt_length": max_prompt_length}
    if recipe is not None:
        check_encoding(recipe, encoding)
    scores, conditioned = is_reward_model(model), bool(told(model).get("condition"))
    filled = _REFERENCES if recipe is not None and not conditioned else ()
    if filled and not scores:
        check_tokens(table, recipe, model, encoding, cache)
    if conditioned:  # other tokens than those that are stored
        asked = for_inference(table["prompt"].to_pylist(), model)
        table, stored = table.set_column(table.column_names.index("prompt"), "prompt", pa.array(asked)), None
    load = load_reward_model if scores else models.load
    net, tokenizer = load(model, dtype=dtype, device="auto", max_length=max_length, cache=cache)
    rows = read_rows(
        table, tokenizer, kind="paired", filled=filled, soft=True, purpose="evaluation", stored=stored, **encoding
    )
    layout = layout_of_scores(net) if scores else layout_of(net)
    policy = Policy(net, layout, token_budget or default_budget(net), scores=scores)
    logps = sequence_logps(policy, rows.groups).cpu().numpy()
    if not np.isfinite(logps).all():
        raise ValueError(f"{model['path']} gives values that are no numbers (NaN or ∞): it is damaged")
    margin = logps[:, 0] - logps[:, 1]
    references = [np.asarray(rows.columns[name]) for name in filled]
    gained = margin - (references[0] - references[1]) if references else None
    preference = np.asarray(rows.columns["preference"], dtype=float)
    names = list(rows.columns[by]) if by else []
    return Margins(list(rows.ids), margin, gained, preference, names, list(rows.columns["prompt_id"]), rows.dropped)


def answers(
    model: dict[str, Any], prompts: Sequence[list[Message]], *, dtype: str, cache: Path, **sampling: Any
) -> list[list[str]]:
    """What a model writes to each prompt, (n, samples).

    Args:
        model: its reference.
        prompts: messages, one list a prompt.
        dtype: see `models.load`.
        cache: folder for digests and dequantised models.
        sampling: see `write`.
    """
    writer, tokenizer = open_writer(model, dtype=dtype, cache=cache)
    asked = for_inference(prompts, model)
    return [[one.text for one in written] for written in write(writer, tokenizer, asked, **sampling)]


def verified(rate: Verifier, prompts: Sequence[list[Message]], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """What a verifier thinks of answers, (n, samples).

    Raises:
        ValueError: a reward that is no finite number.
    """
    return np.asarray([rated(rate, prompt, written) for prompt, written in zip(prompts, texts, strict=True)])


def wins(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How often an answer of `after` is better than one of `before` to the same prompt, each with each, a tie one half.

    Args:
        before: rewards, (n, samples).
        after: rewards, (n, samples).

    Returns:
        (n,), in [0, 1].

    >>> wins(np.asarray([[0.0, 1.0]]), np.asarray([[1.0, 1.0]]))
    array([0.75])
    """
    gap = after[:, :, None] - before[:, None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(1, 2))


def find_verifier(name: str) -> Verifier:
    """The function that "module:function" names.

    Raises:
        ValueError: no such module or function.

    >>> find_verifier("math:fsum").__name__
    'fsum'
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no verifier {name}: name an importable function as module:function ({error})") from error
    if not callable(found):
        raise ValueError(f"the verifier {name} is no function")
    return cast("Verifier", found)


def bootstrap(values: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, float]:
    """A mean with its 95 % percentile interval over 2,000 resamples of the prompts, each with all its values.

    Args:
        values: (n,).
        prompts: of each value; values of one prompt move together.
        seed: of the resampling.
    """
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    sums, counts = np.bincount(cluster, weights=values), np.bincount(cluster)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(_RESAMPLES))
    means = [float(sums[drawn].sum() / counts[drawn].sum()) for drawn in draws]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _pair_measures(before: Margins, after: Margins, seed: int) -> list[dict[str, Any]]:
    about = "share of held-out pairs whose chosen answer the policy finds likelier; a tie counts one half"
    lines = _lines(_hits(before.margin), _hits(after.margin), after.groups, after.prompts, seed)
    measures = [{"name": "preference accuracy", "about": about, "share": True, "lines": lines}]
    if after.log_ratio_margin is not None:
        about = "share of held-out pairs whose chosen answer gained more on the reference than the rejected one"
        lines = _lines_after(_hits(after.log_ratio_margin), after.groups, after.prompts, seed)
        measures.append({"name": "implicit reward accuracy", "about": about, "share": True, "lines": lines})
    return measures


def _reward_measures(before: Margins | None, after: Margins, seed: int) -> list[dict[str, Any]]:
    """Accuracy, log loss and calibration error of a reward model, with those of the one it started from, if any."""
    sides = (after if before is None else before, after)
    kinds: list[tuple[str, str, bool, Callable[[Margins], np.ndarray]]] = [
        (
            "reward accuracy",
            "share of held-out pairs whose chosen answer the reward model scores higher; a tie counts one half",
            True,
            lambda side: _hits(side.margin),
        ),
        (
            "reward log loss",
            "nats a held-out pair, of the probability that the model gives what the raters chose; ln 2 knows nothing",
            False,
            lambda side: log_loss(side.margin, side.preference),
        ),
    ]
    measures = []
    for name, about, share, values in kinds:
        lines = _lines(values(sides[0]), values(sides[1]), after.groups, after.prompts, seed)
        measures.append({"name": name, "about": about, "share": share, "lines": lines})
    about = "how far the model's certainty is from the share of raters who agree, over ten bins"
    errors = [
        {"group": name, "n": int(here.sum())}
        | {
            when: calibration_error(
                side.margin[here], side.preference[here], [side.prompts[i] for i in here.nonzero()[0]], seed
            )
            for when, side in zip(("before", "after"), sides, strict=True)
        }
        | {"difference": None}
        for name, here in _members(after.groups, len(after.margin)).items()
    ]
    measures.append({"name": "calibration error", "about": about, "share": False, "lines": errors})
    if before is None:
        for measure in measures:
            measure["lines"] = [{**line, "before": None, "difference": None} for line in measure["lines"]]
    return measures


def _calibration(side: Margins) -> list[dict[str, Any]]:
    """The reliability table of all pairs, and of each group."""
    return [
        {"group": name, "n": int(here.sum()), "bins": reliability(side.margin[here], side.preference[here])}
        for name, here in _members(side.groups, len(side.margin)).items()
    ]


def _answer_measures(
    before: np.ndarray,
    after: np.ndarray,
    rows: Sequence[dict[str, Any]],
    by: str | None,
    kind: str,
    judge: str,
    seed: int,
) -> list[dict[str, Any]]:
    """What a judge says of two models' answers, (n, samples): their reward, and how often one beats the other."""
    groups, prompts = [row[by] for row in rows] if by else [], [row["prompt_id"] for row in rows]
    each = f"{after.shape[1]} answers to each held-out prompt"
    return [
        {
            "name": f"{kind} reward",
            "about": f"mean of {judge} over {each}",
            "share": False,
            "lines": _lines(before.mean(axis=1), after.mean(axis=1), groups, prompts, seed),
        },
        {
            "name": "win rate" if kind == "verifier" else f"win rate by {kind}",
            "about": f"share of {each} that {judge} finds better than the model's before; a tie counts one half",
            "share": True,
            "lines": _lines_after(wins(before, after), groups, prompts, seed),
        },
    ]


def _hits(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


def _lines(
    before: np.ndarray, after: np.ndarray, groups: Sequence[str | None], prompts: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    ids, members = np.asarray(prompts), _members(groups, len(after))
    return [_line(name, before[m], after[m], ids[m], seed) for name, m in members.items()]


def _members(groups: Sequence[str | None], n: int) -> dict[str | None, np.ndarray]:
    """Which of n rows belong to each group, those by name after None, all rows."""
    named = {name: np.asarray([g == name for g in groups]) for name in sorted({g for g in groups if g is not None})}
    return {None: np.ones(n, dtype=bool), **named}


def _lines_after(
    values: np.ndarray, groups: Sequence[str | None], prompts: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Lines of what has no figure before: the reference has gained nothing on itself."""
    return [{**line, "before": None, "difference": None} for line in _lines(values, values, groups, prompts, seed)]


def _line(group: str | None, before: np.ndarray, after: np.ndarray, prompts: Any, seed: int) -> dict[str, Any]:
    sides = {"before": before, "after": after, "difference": after - before}
    return {"group": group, "n": len(after)} | {
        name: bootstrap(values, prompts, seed) for name, values in sides.items()
    }


def _answerable(
    rows: list[dict[str, Any]], model: dict[str, Any], template: str, limit: int, cache: Path
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows whose prompts can be encoded, and how many cannot, by code."""
    tokenizer = models.load_tokenizer(model, cache=cache)
    asked = for_inference([row["prompt"] for row in rows], model)
    codes = refused_prompts(tokenizer, asked, template=template, max_prompt_length=limit)
    kept = [row for row, code in zip(rows, codes, strict=True) if code is None]
    if not kept:
        raise ValueError(f"none of the {len(rows)} held-out prompts can be encoded: {dict(Counter(codes))}")
    return kept, dict(Counter(code for code in codes if code))


def _distinct(table: pa.Table, by: str | None, most: int | None) -> list[dict[str, Any]]:
    """One row per prompt, by id."""
    columns = list(dict.fromkeys(("prompt_id", "prompt", "category", *([by] if by else []))))
    rows = {row["prompt_id"]: row for row in table.select(columns).to_pylist()}
    return [rows[key] for key in sorted(rows)][:most]


def _shown(
    rows: Sequence[dict[str, Any]],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    rewards_before: np.ndarray,
    rewards_after: np.ndarray,
) -> list[dict[str, Any]]:
    """The first answers to the first prompts, for people to read."""
    return [
        {
            "prompt": row["prompt"],
            "category": row["category"],
            "before": before[k][0],
            "after": after[k][0],
            "before_reward": float(rewards_before[k, 0]),
            "after_reward": float(rewards_after[k, 0]),
        }
        for k, row in enumerate(rows[:_SHOWN])
    ]


def rated(rate: Verifier, prompt: list[Message], texts: Sequence[str]) -> list[float]:
    """What a verifier thinks of answers to one prompt.

    Raises:
        ValueError: a reward that is no finite number.
    """
    rewards = [float(rate(prompt, text)) for text in texts]
    if not all(map(math.isfinite, rewards)):
        raise ValueError(f"the verifier gave {rewards} for the prompt {str(prompt)[:200]}: a reward must be finite")
    return rewards
