"""The sections of a spec as frozen models: what may stand where, and what each word means by default.

What a later release will do is refused by name, "not supported yet", so that no spec is half obeyed.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rlhf_data.scoring import MEASURES
from rlhf_data.spec.problems import did_you_mean

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


def _refuse(message: str) -> PydanticCustomError:
    # The message may hold braces, which pydantic would take for a template.
    return PydanticCustomError("spec", "{message}", {"message": message})


def one_of(*known: str, later: tuple[str, ...] = ()) -> Callable[[str], str]:
    """A validator for a word that must be one of `known`; the words of `later` are refused by name."""

    def validate(word: str) -> str:
        if word in later:
            raise _refuse(f"{word!r} is not supported yet; use one of {', '.join(known)}")
        if word not in known:
            raise _refuse(f"unknown {word!r}; {did_you_mean(word, known)}")
        return word

    return validate


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _path(value: Any) -> Any:
    texts = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    flat = [t for text in texts for t in (text if isinstance(text, list) else [text])]
    if not flat or not all(isinstance(text, str) for text in flat):
        raise _refuse("must be a path or a glob, a list of them, or a mapping of table names to them")
    return value


def _model(value: Any) -> Any:
    """A model reference as a mapping: {path, gguf_file?, revision?, adapter?} or {run}."""
    if isinstance(value, str):
        return {"path": value}
    if not isinstance(value, dict) or ("path" in value) == ("run" in value):
        raise _refuse("must be a folder or a hub id, {path: FOLDER, gguf_file: FILE}, or {run: NAME}")
    known = ("run",) if "run" in value else ("path", "gguf_file", "revision", "adapter")
    for key, text in value.items():
        if key not in known:
            raise _refuse(f"unknown key {key!r}; {did_you_mean(str(key), known)}")
        if not isinstance(text, str):
            raise _refuse(f"{key} must be text, not {text!r}")
    return value


def _rule(value: Any) -> Any:
    """A name or a mapping; what it holds is checked with the rules at hand."""
    if not isinstance(value, str | dict):
        raise _refuse("must be a rule's name, module:function, formulas, or a sum; see docs/rules.md")
    return value


PathLike = Annotated[Any, AfterValidator(_path)]
ModelReference = Annotated[Any, AfterValidator(_model)]


def _snapshot(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(@[A-Za-z0-9-]+)?", value):
        raise _refuse(f"{value!r} does not name a snapshot; write the name of a spec, or NAME@VERSION")
    return value


SnapshotName = Annotated[str, AfterValidator(_snapshot)]


class Prompts(Section):
    """The prompts of a snapshot, each once."""

    snapshot: SnapshotName = Field(description="a spec's name, perhaps with @VERSION")
    split: Annotated[str, AfterValidator(one_of("train", "validation", "test"))] = "train"
    rows: Count | None = Field(default=None, description="so many prompts, drawn by keyed hash; all by default")
    skip: Annotated[int, Field(ge=0)] = Field(0, description="how many of those drawn are passed over")


class Sampling(Section):
    """How a policy writes answers."""

    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    max_new_tokens: Count = 256
    unfinished: Annotated[str, AfterValidator(one_of("keep", "drop"))] = Field(
        "drop", description="answers that were cut off at max_new_tokens; kept ones are taken for whole"
    )


class Generate(Sampling):
    """A policy's own samples as a source: answers that `rate` judges."""

    policy: ModelReference
    prompts: Prompts
    n: Count = Field(4, description="answers to each prompt")
    template: str = Field("chat", description="chat, plain, or the path of a .jinja file")
    max_prompt_length: Count = Field(768, description="tokens; a longer prompt loses its oldest ones")
    dtype: Annotated[str, AfterValidator(one_of("auto", "float32", "bfloat16"))] = "auto"


class Source(Section):
    """One raw data set: where it is, and how its records become observations."""

    path: PathLike = None
    hf: str | None = Field(default=None, description="a hub id or a local data set folder, as ID[@REVISION][:SPLIT]")
    snapshot: SnapshotName | None = Field(default=None, description="another spec's output, as NAME or NAME@VERSION")
    generate: Generate | None = None
    adapter: str | None = Field(default=None, description="a named adapter")
    options: dict[str, Any] = Field(default_factory=dict, description="the adapter's own options")
    columns: dict[str, Any] | None = Field(default=None, description="what the raw columns mean")
    sql: str | None = Field(default=None, description="DuckDB SQL over the raw table, named raw")
    format: Annotated[str, AfterValidator(one_of("jsonl", "json", "csv", "tsv", "parquet", "xlsx"))] | None = None
    license: str | None = None
    category: str | None = Field(default=None, description="the category of every row that has none")
    keep_columns: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="raw columns that the published rows have too, as kept_NAME"
    )

    @model_validator(mode="after")
    def _one_place_one_reading(self) -> "Source":
        places = [k for k in ("path", "hf", "snapshot", "generate") if getattr(self, k) is not None]
        if len(places) != 1:
            raise _refuse(
                f"needs exactly one of path, hf, snapshot and generate; it has {' and '.join(places) or 'none'}"
            )
        readings = [k for k in ("adapter", "columns", "sql") if getattr(self, k) is not None]
        ours = [k for k in ("adapter", "columns", "sql", "format") if getattr(self, k) is not None]
        if places[0] in ("snapshot", "generate") and ours:
            raise _refuse(f"{ours[0]} says how a file is read, and a {places[0]} needs none; leave it out")
        if self.generate is not None and self.keep_columns:
            raise _refuse("keep_columns names columns of raw records, and generate has none; leave it out")
        if self.generate is not None and self.options:
            raise _refuse("options are an adapter's; what generate takes stands in generate")
        if len(readings) > 1:
            raise _refuse(f"may have one of adapter, columns, sql; it has {' and '.join(readings)}")
        return self


# What each operation must say, and what it may.
OPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "filter": (("where",), ()),
    "dedup": (("keys",), ("near", "prefer")),
    "decontaminate": (("against",), ("ngram", "of")),
    "language": (("keep",), ("min_confidence", "of")),
    "pii": (("do",), ("kinds", "of", "presidio", "language")),
}
DEDUP_KEYS = (["prompt"], ["completion"], ["completion", "prompt"], ["pair"])
Near = Annotated[float, Field(gt=0.0, le=1.0, description="estimated Jaccard similarity of sets of 5 characters")]
Texts = Annotated[list[str], Field(min_length=1)]


class Clean(Section):
    """One cleaning operation."""

    op: Annotated[str, AfterValidator(one_of(*OPS))]
    where: str | None = Field(
        None, description="a condition in polars' SQL; completions for which it is not true are left out"
    )
    keys: Texts | None = Field(None, description="what must be the same: prompt, completion, both, or pair")
    near: Near | None = None
    prefer: Annotated[str, AfterValidator(one_of("highest_rating"))] | None = None
    against: PathLike = None
    ngram: Count = 13
    keep: Texts | None = Field(None, description="codes of languages, such as en")
    min_confidence: Share = 0.0
    do: Annotated[str, AfterValidator(one_of("mark", "mask", "quarantine"))] | None = None
    kinds: Texts | None = None
    presidio: str | None = Field(None, description="an installed spaCy model: Presidio looks in place of our patterns")
    language: str = Field("en", description="of the texts, for Presidio")
    of: Annotated[str, AfterValidator(one_of("prompt", "completion", "both"))] | None = None

    @model_validator(mode="after")
    def _keys_of_the_operation(self) -> "Clean":
        must, may = OPS[self.op]
        for key in sorted(self.model_fields_set - {"op", *must, *may}):
            raise _refuse(f"op {self.op} has no key {key!r}; it has {', '.join((*must, *may))}")
        for key in must:
            if getattr(self, key) is None:
                raise _refuse(f"op {self.op} needs {key}")
        if "language" in self.model_fields_set and self.presidio is None:
            raise _refuse("language is Presidio's; say presidio: and a spaCy model, or leave language out")
        if self.keys is not None and sorted(self.keys) not in DEDUP_KEYS:
            raise _refuse("keys must be [prompt], [completion], [prompt, completion] or [pair]")
        return self


def _function(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise _refuse(f"{value!r} does not name a function; write module:function")
    return value


def _class(value: Any) -> Any:
    """YAML's true and false name the classes of labels."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def _classes(value: Any) -> Any:
    return {_class(name): text for name, text in value.items()} if isinstance(value, dict) else value


class Prior(Section):
    """Standard deviations of the Gaussian priors of Bradley–Terry, in nats."""

    strength: Annotated[Positive, Field(description="of models about 0")] = 2.0
    answer: Annotated[Positive, Field(description="of answers about their model")] = 1.0
    effect: Annotated[Positive, Field(description="of covariates, and of how often equals tie, about 0")] = 10.0


class Elo(Section):
    """How far a battle moves a rating."""

    k: Positive = 4.0
    base: Annotated[float, Field(gt=1.0)] = 10.0
    scale: Positive = 400.0
    start: float = 1000.0


def _missing(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _refuse("must be refuse, renormalize or a number")
    return one_of("refuse", "renormalize")(value) if isinstance(value, str) else float(value)


def _prior(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise _refuse(f"unknown {value!r}; write none, or {{strength: 2, answer: 1, effect: 10}}")
    return value


# How a reward model is asked: which one, and how text becomes tokens.
REWARD_WORDS = ("reward_model", "template", "max_length", "max_prompt_length", "dtype", "token_budget")
# Words that mean something to some ways of rating only.
RATE_WORDS = {
    "scale": (None, "rating", "aspects"),
    "normalize": (None, "rating", "aspects"),
    "per": (None, "rating", "aspects"),
    "missing": ("aspects",),
    "votes": (None, "votes"),
    "of": ("bradley_terry", "elo"),
    "ties": ("bradley_terry",),
    "covariates": ("bradley_terry",),
    "prior": ("bradley_terry",),
    "elo": ("elo",),
    **dict.fromkeys(REWARD_WORDS, ("reward_model",)),
}


RATES_TEXT = ("verifier", "reward_model")  # ways that need no judgment, only the answer


class Rate(Section):
    """How judgments become a rating, a reward or a preference."""

    by: (
        Annotated[
            str,
            AfterValidator(
                one_of(
                    "rating", "aspects", "votes", "rank", "label", "bradley_terry", "elo", "verifier",
                    "reward_model",
                )
            ),
        ]
        | None
    ) = None  # fmt: skip
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    aspects: Annotated[dict[str, Positive], Field(min_length=1)] | None = None
    missing: Annotated[Any, AfterValidator(_missing), Field(description="refuse, renormalize or a number")] = "refuse"
    normalize: Annotated[str, AfterValidator(one_of("zscore", "rank"))] | None = None
    per: Annotated[str, AfterValidator(one_of("annotator", "source"))] = "annotator"
    votes: Annotated[str, AfterValidator(one_of("mean", "majority", "dawid_skene"))] = "mean"
    of: Annotated[str, AfterValidator(one_of("answer", "model"))] = "answer"
    ties: Annotated[str, AfterValidator(one_of("half", "davidson"))] = "half"
    covariates: list[Annotated[str, AfterValidator(one_of("length", "position"))]] = Field(default_factory=list)
    prior: Annotated[Literal["none"] | Prior, BeforeValidator(_prior)] = Prior()
    elo: Elo = Elo()
    verifier: Annotated[str, AfterValidator(_function)] | None = None
    reward_model: ModelReference | None = None
    template: str | None = Field(default=None, description="as the reward model was trained by default")
    max_length: Count | None = None
    max_prompt_length: Count | None = None
    dtype: Annotated[str, AfterValidator(one_of("auto", "float32", "bfloat16"))] = "auto"
    token_budget: Count | None = Field(
        default=None, description="tokens of a forward pass; speed and memory, not numbers"
    )

    @model_validator(mode="after")
    def _agree(self) -> "Rate":
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise _refuse(f"scale goes from {self.scale[0]:g} to {self.scale[1]:g}; write [lowest, highest]")
        if (self.by == "aspects") != (self.aspects is not None):
            raise _refuse("by: aspects and aspects: {NAME: WEIGHT, …} belong together")
        if (self.by == "verifier") != (self.verifier is not None):
            raise _refuse("by: verifier and verifier: module:function belong together")
        if (self.by == "reward_model") != (self.reward_model is not None):
            raise _refuse("by: reward_model and reward_model: {run: NAME} belong together")
        if self.scale is not None and self.by not in RATE_WORDS["scale"]:
            raise _refuse(f"scale is of ratings, and rate is by {self.by}; leave one of them out")
        if "votes" in self.model_fields_set and self.by not in RATE_WORDS["votes"]:
            raise _refuse(f"votes says how comparisons add up, and rate is by {self.by}; leave one of them out")
        for word, ways in RATE_WORDS.items():
            if word in self.model_fields_set and getattr(self, word) is not None and self.by not in ways:
                known = " or ".join(f"by: {way}" for way in ways if way)
                raise _refuse(f"{word} means something {known} only, and rate is by {self.by}; leave one of them out")
        if "per" in self.model_fields_set and self.normalize is None:
            raise _refuse("per says for whom ratings are normalized; add normalize: zscore or rank")
        if self.normalize is not None and isinstance(self.missing, float):
            raise _refuse("a number for missing is in the source's units; with normalize, write refuse or renormalize")
        if self.scale is not None and isinstance(self.missing, float):
            low, high = self.scale
            if not low <= self.missing <= high:
                raise _refuse(f"missing is {self.missing:g}, outside the scale; write one from {low:g} to {high:g}")
        if len(set(self.covariates)) < len(self.covariates):
            raise _refuse("covariates names one of them twice")
        return self


class Split(Section):
    """Held-out shares, by conversation root or by cluster of near-duplicate roots."""

    test: Share = 0.0
    validation: Share = 0.0
    by: Annotated[str, AfterValidator(one_of("root", "prompt_cluster"))] = "root"
    near: Near = 0.8

    @model_validator(mode="after")
    def _leave_something(self) -> "Split":
        if "near" in self.model_fields_set and self.by != "prompt_cluster":
            raise _refuse("near says which prompts are a cluster; say by: prompt_cluster, or leave near out")
        if self.test + self.validation >= 1.0:
            raise _refuse(
                f"test and validation take {self.test + self.validation:g} of the rows; nothing is left to train on"
            )
        return self


PAIRED_ONLY = ("pairing", "min_margin", "max_pairs_per_prompt")
UNPAIRED_ONLY = ("label", "threshold", "gap", "balance")


class Shape(Section):
    """Which table comes out, and by which strategy."""

    to: Annotated[str, AfterValidator(one_of("paired", "unpaired"))]
    pairing: Annotated[
        str, AfterValidator(one_of("as_given", "best_vs_worst", "best_vs_random", "all", "adjacent"))
    ] = "best_vs_worst"
    min_margin: Annotated[float, Field(ge=0.0)] = 0.0
    max_pairs_per_prompt: Count | None = Field(
        default=None, description="at most so many of a prompt, drawn by keyed hash"
    )
    ties: Annotated[str, AfterValidator(one_of("drop", "soft"))] = "drop"
    label: Annotated[str, AfterValidator(one_of("source", "threshold", "prompt_mean"))] = "source"
    threshold: float = 0.0
    gap: Annotated[float, Field(ge=0.0)] = 0.0
    balance: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="share of desirable rows among the labelled ones of the train split"
    )

    @model_validator(mode="after")
    def _words_fit_the_table(self) -> "Shape":
        foreign = UNPAIRED_ONLY if self.to == "paired" else PAIRED_ONLY
        for key in foreign:
            if key in self.model_fields_set:
                raise _refuse(f"{key} has no meaning for a table that is {self.to}; leave it out")
        if self.pairing == "as_given" and self.min_margin:
            raise _refuse("min_margin needs rewards, and pairs that are as_given have none; leave one of them out")
        if self.label != "threshold" and "threshold" in self.model_fields_set:
            raise _refuse(f"threshold has no meaning where label is {self.label}; say label: threshold")
        if self.label == "threshold" and "threshold" not in self.model_fields_set:
            raise _refuse("label: threshold needs threshold, the reward from which on an answer is desirable")
        if self.label == "source" and self.gap:
            raise _refuse("gap has no meaning where label is source; say label: threshold or label: prompt_mean")
        return self


class Learnt(Section):
    """A table of weights learnt elsewhere, which multiply the others."""

    path: str
    key: Annotated[
        str, AfterValidator(one_of("pair_id", "completion_id", "prompt_id", "chosen_id", "source", "category"))
    ]
    column: str = "weight"
    missing: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="of a row without one; else it is refused"
    )


class Weight(Section):
    """Factors of the one `weight` that multiplies a row's loss."""

    source: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    category: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    label: dict[bool, Annotated[float, Field(ge=0.0)]] | None = None
    row: str | None = None  # an expression in polars' SQL over the table's columns, such as margin
    table: Learnt | None = None
    clip: Positive | None = None
    normalize: Annotated[str, AfterValidator(one_of("mean_one"))] | None = None


class Weigh(Section):
    """What is in the mix, and what multiplies the loss."""

    keep: dict[str, Share] | None = Field(default=None, description="the part of a source's train rows that stays")
    rows: dict[str, Count] | None = Field(default=None, description="at most so many train rows of a source")
    share: dict[str, Annotated[float, Field(ge=0.0)]] | None = Field(
        default=None, description="the part of the mix, of every source"
    )
    temperature: Positive | None = Field(default=None, description="shares as size^(1/temperature)")
    of: Annotated[str, AfterValidator(one_of("rows", "tokens"))] = "rows"
    weight: Weight = Weight()

    @model_validator(mode="after")
    def _one_mix(self) -> "Weigh":
        if self.share is not None and self.temperature is not None:
            raise _refuse("share and temperature both say how much of each source there is; leave one of them out")
        if "of" in self.model_fields_set and self.share is None and self.temperature is None:
            raise _refuse("of says what a share is counted in; say share or temperature too, or leave it out")
        if self.share is not None and not sum(self.share.values()) > 0:
            raise _refuse("share leaves every source out; give at least one a share over 0")
        return self


def _measures(value: list[str]) -> list[str]:
    for name in value:
        one_of(*MEASURES)(name)
    return value


def _references(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name != "old":
            raise _refuse(
                f"no reference is called {name!r}; old is the policy that wrote the completions, and the section's own "
                "model is ref"
            )
    return value


class Reference(Section):
    """A further model whose log-probs are stored and published, under its own name."""

    model: ModelReference
    dtype: Annotated[str, AfterValidator(one_of("auto", "float32", "bfloat16"))] | None = Field(
        default=None, description="that of score by default"
    )


class Score(Section):
    """Reference log-probs: by which model, and how text becomes tokens."""

    model: ModelReference
    template: str = Field("chat", description="chat, plain, or the path of a .jinja file")
    max_length: Count = 1024
    max_prompt_length: Count | None = Field(default=None, description="three quarters of max_length by default")
    dtype: Annotated[str, AfterValidator(one_of("auto", "float32", "bfloat16"))] = "auto"
    token_budget: Count | None = Field(
        default=None, description="tokens of a forward pass; speed and memory, not numbers"
    )
    backend: Annotated[str, AfterValidator(one_of("torch", "vllm"))] = Field(
        "torch", description="what runs the model; another's numbers are stored apart"
    )
    token_logps: bool = Field(True, description="store each token's log-prob, not their sum alone")
    squares: bool = Field(False, description="store the mean over tokens of log Σp² over the vocabulary too")
    references: Annotated[dict[str, Reference], AfterValidator(_references)] = Field(
        default_factory=dict, description="old: the policy that wrote the completions, of PPO, APA and GRPO"
    )
    publish: Annotated[list[str], AfterValidator(_measures)] = Field(
        default_factory=list, description="further columns of the snapshot; what train.rule needs is there anyway"
    )

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Each reference's model by its place in the section, the section's own first."""
        return {"model": self.model} | {f"references.{name}.model": one.model for name, one in self.references.items()}

    @model_validator(mode="after")
    def _publish_what_is_stored(self) -> "Score":
        if "token_logps" in self.publish and not self.token_logps:
            raise _refuse("token_logps: false stores none, and publish names them; leave one of the two out")
        if "mean_log_p2" in self.publish and not self.squares:
            raise _refuse("publish names mean_log_p2, which squares: true stores; add it")
        return self


class Expect(Section):
    """What must hold before anything is published."""

    rows: Annotated[list[int | None], Field(min_length=2, max_length=2)] | None = (
        None  # [fewest, most], null = no bound
    )
    quarantine_rate: Share | None = None  # most rows in quarantine, as a share of the raw records
    label_balance: Annotated[list[Share | None], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[least, most] share of desirable rows among the labelled ones"
    )
    ess: Share | None = Field(
        default=None, description="least effective sample size of the weights, as a share of the train rows"
    )
    categories: dict[str, Count] | None = Field(default=None, description="least rows of each category")

    @model_validator(mode="after")
    def _fewest_first(self) -> "Expect":
        fewest, most = self.rows or (None, None)
        if fewest is not None and most is not None and fewest > most:
            raise _refuse(f"rows goes from {fewest} to {most}; write [fewest, most], null for no bound")
        return self


class Publish(Section):
    """Where the snapshot goes."""

    to: Annotated[str, Field(min_length=1)]
    retain: Count | None = Field(None, description="how many versions `gc` keeps; all by default")


def _targets(value: Any) -> Any:
    names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if value != "all-linear" and not names:
        raise _refuse("must be all-linear, or a list of the names of linear layers, such as [q_proj, v_proj]")
    return value


class Lora(Section):
    """A low-rank adapter, instead of all parameters; its base is the reference."""

    r: Count = Field(16, description="rank")
    alpha: Positive = Field(32.0, description="the adapter counts alpha / r")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Annotated[Any, AfterValidator(_targets)] = Field(
        default="all-linear", description="all-linear, or a list of names of linear layers"
    )


class MovingReference(Section):
    """A reference that follows the policy; it is measured in the step."""

    ema: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None, description="share of itself that it keeps at every step"
    )
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, description="share of the policy in an update, 1 by default: the policy as it is"
    )
    tau: Count | None = Field(default=None, description="steps between updates, 1 by default")

    @model_validator(mode="after")
    def _one_way(self) -> "MovingReference":
        if (self.ema is None) == (self.alpha is None and self.tau is None):
            raise _refuse("write {ema: 0.99}, or {alpha: 0.6, tau: 512}: TR-DPO's share and steps between updates")
        return self


class Blend(BaseModel):
    """A further table in the same step; keys that are not here are its rule's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    snapshot: Annotated[str, Field(description="the name of the spec that builds it")]
    rule: Annotated[Any, AfterValidator(_rule)]
    coefficient: Annotated[float, Field(ge=0.0)] = 1.0
    batch_size: Count | None = Field(default=None, description="rows of an optimizer step; train's by default")
    name: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="in the metrics; the snapshot's by default"
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The rule's parameters."""
        return dict(self.model_extra or {})


class Condition(Section):
    """The class that a policy is conditioned on: its text stands in the prompt, in training and when it answers."""

    on: Annotated[str, AfterValidator(one_of("label", "source", "category"))]
    text: Annotated[dict[str, Annotated[str, Field(min_length=1)]], BeforeValidator(_classes), Field(min_length=2)]
    place: Annotated[str, AfterValidator(one_of("user", "system", "template"))] = "user"
    infer: Annotated[str | None, BeforeValidator(_class)] = Field(
        default=None, description="the class that is asked for; true of labels, else the first, by default"
    )

    @model_validator(mode="after")
    def _agree(self) -> "Condition":
        if self.on == "label" and self.text.keys() != {"true", "false"}:
            raise _refuse("a label is true or false; write text: {true: …, false: …}")
        if self.infer is not None and self.infer not in self.text:
            raise _refuse(f"infer: no class {self.infer!r}; {did_you_mean(self.infer, self.text)}")
        if len(set(self.text.values())) < len(self.text):
            raise _refuse("two classes have the same text; a policy could not tell them apart")
        return self

    @property
    def as_told(self) -> dict[str, Any]:
        """The same as the trainer takes it."""
        infer = self.infer or ("true" if self.on == "label" else next(iter(self.text)))
        return {"on": self.on, "text": dict(self.text), "place": self.place, "infer": infer}


class Rounds(Sampling):
    """Online training: in each round the policy writes answers, they are rated, and it is trained on them."""

    n: Count = Field(description="rounds")
    prompts: Count | None = Field(default=None, description="of the train split, so many a round; all by default")
    samples: Count = Field(4, description="answers to each prompt")
    rate: Rate
    reference: Annotated[str, AfterValidator(one_of("behaviour", "fixed"))] = Field(
        "behaviour", description="what the rule's reference is: the policy that wrote the answers, or score.model"
    )

    @model_validator(mode="after")
    def _judged_by_itself(self) -> "Rounds":
        if self.rate.by not in RATES_TEXT:
            raise _refuse(f"nobody has judged what is written now: rate it by {' or '.join(RATES_TEXT)}")
        return self


class Train(BaseModel):
    """How a policy is trained on the snapshot; keys that are not here are the rule's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    rule: Annotated[Any, AfterValidator(_rule)] = Field(
        description="a rule's name, module:function, {chosen: FORMULA, rejected: FORMULA}, {completion: FORMULA}, or "
        "{sum: [{rule: …, coefficient: …}]}"
    )
    model: ModelReference
    epochs: Positive = 1.0
    max_steps: Count | None = None
    batch_size: Count = Field(16, description="rows of an optimizer step")
    token_budget: Count | None = Field(
        default=None, description="tokens of a forward pass; speed and memory, not numbers"
    )
    learning_rate: Positive = 1e-5
    schedule: Annotated[str, AfterValidator(one_of("linear", "cosine", "constant"))] = "linear"
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    checkpoint_every: Count = Field(200, description="steps")
    dtype: Annotated[str, AfterValidator(one_of("auto", "float32", "bfloat16"))] = Field(
        "auto", description="of matrix products; parameters are float32 always"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more time")
    shard: bool = Field(False, description="under torchrun, divide parameters among the ranks")
    compile: bool = Field(False, description="compile what does not depend on packing; for GPUs")
    deterministic: bool = Field(False, description="refuse operations that depend on the order of threads")
    template: str | None = None
    max_length: Count | None = None
    max_prompt_length: Count | None = None
    condition: Condition | None = None
    blend: Annotated[list[Blend], Field(min_length=1)] | None = Field(
        default=None, description="further tables in the same step"
    )
    lora: Lora | None = None
    reference: MovingReference | None = Field(
        default=None, description="one that follows the policy; stored scores are not read"
    )
    rounds: Rounds | None = None
    track: list[Annotated[str, AfterValidator(one_of("tensorboard", "trackio", "mlflow", "wandb"))]] = Field(
        default_factory=list, description="where the metrics go besides the run's folder"
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The rule's parameters."""
        return dict(self.model_extra or {})


class Evaluate(Section):
    """What is measured on held-out rows, before and after training."""

    by: Annotated[str, AfterValidator(one_of("category", "source"))] | None = "category"
    split: Annotated[str, AfterValidator(one_of("test", "validation"))] = "test"
    verifier: Annotated[str, AfterValidator(_function)] | None = None
    reward_model: ModelReference | None = Field(default=None, description="a trained one, a judge of the same answers")
    samples: Count = Field(1, description="answers generated per prompt")
    prompts: Count | None = Field(default=None, description="at most so many held-out prompts")
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    max_new_tokens: Count = 128


def _cron(value: str) -> str:
    if len(value.split()) != 5:
        raise _refuse(f'{value!r} is no schedule; write five fields, such as "0 3 * * 1" for Mondays at three')
    return value


def _timezone(value: str) -> str:
    known = available_timezones()
    if known and value not in known:
        raise _refuse(f"no timezone named {value!r}; write one such as Europe/Berlin")
    return value


class Schedule(Section):
    """When the flow runs."""

    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"


class Spec(Section):
    """A whole spec; its sections stand in this order."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    about: str = ""
    seed: int = 0
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    clean: list[Clean] = Field(default_factory=list)
    rate: Rate = Rate()
    split: Split = Split()
    shape: Shape
    weigh: Weigh = Weigh()
    score: Score | None = None
    expect: Expect = Expect()
    publish: Publish
    train: Train | None = None
    evaluate: Evaluate | None = None
    schedule: Schedule | None = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()}
