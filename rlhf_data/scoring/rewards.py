"""Reward models: a scalar head on a stock body, read at a completion's last token, and what they say of completions.

The body runs as it does for log-probs: a prompt once with all its completions, packed without padding where the
architecture takes that. Unlike there, a completion's last token runs too, as the score is read there. Scores that have
been measured lie in a store of their own, by the ids of prompt and completion, the model's weights and the dtype.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions at import, so no type checker sees them)

import math
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from rlhf_data.scoring import identity, models, recipe
from rlhf_data.scoring.encode import encode, turn_end
from rlhf_data.scoring.forwards import forwards
from rlhf_data.scoring.logprobs import default_budget, hidden_states, layouts
from rlhf_data.scoring.memory import in_words, preflight
from rlhf_data.scoring.packs import Group, Layout, size
from rlhf_data.scoring.progress import bar, say
from rlhf_data.scoring.requests import request_ids
from rlhf_data.scoring.segments import Item, grouped, segments
from rlhf_data.scoring.shards import write_parquet
from rlhf_data.scoring.store import Index, RewardStore

# Part of the key of every reward: raise it whenever the same ids and weights give other scores.
NUMERICS = 1
_TOLERANCE = 1e-3  # of a score's size, in float32: packing changes the order of sums


def sequence_scores(model: PreTrainedModel, groups: Sequence[Group], layout: Layout) -> list[list[Tensor]]:
    """The score of every completion, a float32 scalar each, for each group one a completion.

    One forward; `plan` over `whole(groups)` makes groups that fit. Differentiable where gradients are enabled.
    """
    hidden, batch = hidden_states(model, whole(groups), layout)
    last = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
    head = head_of(model)
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden.device.type, enabled=False):  # the head is float32 whatever the body runs in
        scores = iter(functional.linear(hidden[last].float(), head.weight.float(), bias).squeeze(1).unbind())
    return [[next(scores) for _ in group.completions] for group in groups]


def whole(groups: Sequence[Group]) -> list[Group]:
    """The groups with a token after each completion: packs leave the last one out, and so run all that is scored.

    >>> whole([Group([1], [[2, 3]])])[0].completions
    [[2, 3, 0]]
    """
    return [Group(group.prompt, [[*completion, 0] for completion in group.completions]) for group in groups]


def layout_of_scores(model: PreTrainedModel) -> Layout:
    """How a reward model's batches are laid out: packed if that gives its own output for one sequence alone.

    Raises:
        ValueError: not even padded batches do, so it reads its score in a way that is not known here.
    """
    errors = {}
    for layout in layouts(model.config):
        errors[layout] = _deviation(model, layout)
        if errors[layout] < (_TOLERANCE if model.dtype == torch.float32 else 0.1):
            return layout
    worst = ", ".join(f"{layout} by {error:.3g}" for layout, error in errors.items())
    raise ValueError(
        f"{type(model).__name__}: scores from its hidden states differ from its own ({worst}): "
        "this model family is not supported"
    )


def is_reward_model(reference: dict[str, Any]) -> bool:
    """Whether a model has a scalar head, by its config alone.

    Raises:
        ValueError: no such model.
    """
    if reference.get("gguf_file"):
        return False
    folder = identity.find(identity.parts(reference)[0])
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is no model")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return _is_classifier(config) and config.num_labels == 1


def load_reward_model(
    reference: dict[str, Any],
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_length: int | None = None,
    head_seed: int | None = None,
    cache: Path,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a scalar head and its tokenizer, in eval mode.

    Its padding token is one that no completion ends with: the stock model reads its score at the last token that is no
    padding, so with the end token for padding it would read one too early.

    Args:
        reference: of a reward model, or, with `head_seed`, of any causal language model.
        dtype: see `models.load`.
        device: see `models.load`.
        max_length: see `models.load`.
        head_seed: of the head that a model without one gets: normal with variance 1/(width + 1), Stiennon et al.
            2020, arXiv:2009.01325; None refuses such a model.
        cache: a folder for digests and dequantised models.

    Raises:
        ValueError: see `models.load`; a classifier of several classes, or no head and no seed for one.
    """
    read = partial(_read, head_seed=head_seed, name=str(reference["path"]))
    model, tokenizer = models.load(reference, dtype=dtype, device=device, max_length=max_length, cache=cache, read=read)
    pad = _padding(tokenizer)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return model, tokenizer


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The matrix that makes a score of a hidden state.

    Raises:
        ValueError: the family keeps its head in another form.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
        raise ValueError(f"{type(model).__name__} has no scalar head named score: this model family is not supported")
    return head


def reward(
    requests: Path,
    out: Path,
    *,
    store: Path,
    model: dict[str, Any],
    template: str = "chat",
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    token_budget: int | None = None,
    shard_rows: int = 1024,
    cache: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Score every completion of `requests` with a reward model, reusing all that the store holds.

    Args:
        requests: Parquet with completion_id, prompt (list of {role, content}), completion; ids may repeat.
        out: Parquet to write: completion_id (distinct, in the order of first request), reward (float64), n_tokens,
            truncated, refused (a code of `encode`, and then no reward).
        store: folder of the score store.
        model: reference of a reward model {"path", "revision"?}.
        template: see `encode`.
        max_length: see `encode`.
        max_prompt_length: see `encode`.
        dtype: see `models.load`.
        device: see `models.load`.
        token_budget: most tokens in all forwards of a time; None takes `default_budget`.
        shard_rows: completions of a shard: a kill loses at most these.
        cache: folder for digests.
        progress: whether a bar on stderr counts completions.

    Returns:
        The recipe, for a manifest: model and its hash, dtype, template, lengths, device, versions, and `counts` of
        completions {requested, distinct, reused, scored, refused, truncated} and of the `tokens` run now.

    Raises:
        ValueError: a wrong argument or file, a model without a scalar head, or a score that is no number.
    """
    device = models.device_name(device)
    numeric = {"model_hash": identity.content_hash(model, cache), "dtype": models.dtype_name(dtype, device)}
    encoding = recipe.encoding(model, template, max_length, max_prompt_length, cache)
    lengths = {name: encoding[name] for name in ("max_length", "max_prompt_length")}
    scores = RewardStore(store, numeric | {"what": "reward", "code": NUMERICS})
    index = Index(store, encoding)
    asked = request_ids(requests)
    found = index.find(asked.unique())
    missing = found.filter(pc.and_(pc.is_null(found["refused"]), pc.is_null(scores.find(found["key"]))))
    ran = {"scored": 0, "tokens": 0}
    if missing.num_rows:
        net, tokenizer = load_reward_model(
            model, dtype=numeric["dtype"], device=device, max_length=max_length, cache=cache
        )
        budget, layout = token_budget or default_budget(net), layout_of_scores(net)
        say(in_words(preflight(net, budget)), shown=progress)
        encode_texts = partial(encode, tokenizer, template=template, **lengths)
        with bar("reward", "completions", total=missing.num_rows, shown=progress) as shown:
            for index_rows, items in segments(requests, missing, encode_texts):
                index.add(index_rows)
                part = _score_new(net, items, scores, layout, budget, shard_rows, shown)
                ran = {name: ran[name] + part[name] for name in ran}
    found = index.find(asked.unique())
    columns = {name: found[name] for name in ("completion_id", "n_tokens", "truncated", "refused")}
    table = pa.table(columns | {"reward": scores.find(found["key"])})
    write_parquet(table, out)
    refused = table.num_rows - table["refused"].null_count
    return {
        "model": model,
        **numeric,
        "tokenizer_hash": encoding["tokenizer_hash"],
        "template": template,
        **lengths,
        "device": device,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "counts": {
            "requested": len(asked),
            "distinct": table.num_rows,
            "reused": table.num_rows - refused - ran["scored"],
            "refused": refused,
            "truncated": pc.sum(table["truncated"]).as_py() or 0,
            **ran,
        },
    }


def score_groups(
    model: PreTrainedModel, groups: Sequence[Group], layout: Layout, token_budget: int
) -> Iterator[tuple[list[int], list[list[float]], int]]:
    """(which groups, the scores of each, tokens run) of each forward, longest groups first, without gradients."""
    run = whole(groups)

    def measure(picked: list[int]) -> list[list[float]]:
        return [[float(one) for one in row] for row in sequence_scores(model, [groups[i] for i in picked], layout)]

    for picked, scores in forwards(model, run, layout, token_budget, measure):
        yield picked, scores, sum(size(run[i], layout) for i in picked)


def _score_new(
    model: PreTrainedModel,
    items: Sequence[Item],
    scores: RewardStore,
    layout: Layout,
    token_budget: int,
    shard_rows: int,
    shown: tqdm,
) -> dict[str, int]:
    """Score the items that the store lacks; counts of them and of tokens."""
    known = scores.find(pa.array([item.key for item in items], pa.string())).is_valid().to_pylist()
    new = list({item.key: item for item, seen in zip(items, known, strict=True) if not seen}.values())
    shown.update(len(items) - len(new))
    groups = grouped(new, token_budget, lambda group: size(whole([group])[0], layout))
    ready: dict[str, float] = {}
    tokens = 0
    for picked, values, ran in score_groups(model, [group for group, _ in groups], layout, token_budget):
        for i, row in zip(picked, values, strict=True):
            ready |= dict(zip(groups[i][1], row, strict=True))
        tokens += ran
        shown.update(sum(map(len, values)))
        if len(ready) >= shard_rows:
            scores.add(ready)
            ready = {}
    scores.add(ready)
    return {"scored": len(new), "tokens": tokens}


def _read(folder: Path, *, head_seed: int | None, name: str, **options: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    trained = _is_classifier(config)
    if trained and config.num_labels != 1:
        raise ValueError(f"it tells {config.num_labels} classes apart, and a reward model gives one number")
    if not trained and head_seed is None:
        raise ValueError("it is no reward model: train one with `rule: rm`, and name its run")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no {config.model_type} with a head for scores: start from a model of another family, "
            "such as llama, qwen or mistral"
        )
    shown = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options)
    finally:
        logging.set_verbosity(shown)
    head = head_of(model)
    if not trained:
        assert head_seed is not None
        with torch.no_grad():
            drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(head_seed))
            head.weight.copy_(drawn / math.sqrt(head.in_features + 1))
            if head.bias is not None:
                head.bias.zero_()
    return model


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A special token that no completion ends with; None where there is none, and then a stock batch is one row."""
    named = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    added = (i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special)
    ends = (tokenizer.eos_token_id, turn_end(tokenizer))
    return next((i for i in (*named, *added) if isinstance(i, int) and i not in ends), None)


def _deviation(model: PreTrainedModel, layout: Layout) -> float:
    """The largest difference between our scores of a few tokens and the model's own, as a share of their size."""
    top = min(model.config.get_text_config().vocab_size, 97)
    pad = model.config.get_text_config().pad_token_id
    tokens = [i for i in range(1, top) if i != pad]
    prompts = [[tokens[i * 7 % len(tokens)] for i in range(1, n)] for n in (3, 6)]
    answers = [[tokens[i] for i in at] for at in ((5, 3), (2, 7, 1), (4,))]
    groups = [Group(prompt, answers) for prompt in prompts]
    worst, largest = 0.0, 1e-6
    with torch.no_grad():
        try:
            ours = sequence_scores(model, groups, layout)
        except (TypeError, ValueError, RuntimeError):
            if layout == "padded":
                raise
            return float("inf")  # its layers do not hand `spans` down to the attention
        for group, scores in zip(groups, ours, strict=True):
            for completion, mine in zip(group.completions, scores, strict=True):
                ids = torch.tensor([[*group.prompt, *completion]], device=model.device)
                theirs = float(model(ids, use_cache=False).logits[0, 0])
                apart = abs(float(mine) - theirs)
                worst = max(worst, apart if math.isfinite(apart) else math.inf)
                largest = max(largest, abs(theirs))
    return worst / largest
