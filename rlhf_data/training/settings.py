"""Every option of a training run, checked once; a new option is a field here and a word in the spec."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_data import rules
from rlhf_data.scoring.encode import prompt_limit
from rlhf_data.training.adapters import LORA, check_adapter
from rlhf_data.training.averaging import moving, stored_columns
from rlhf_data.training.blend import identify
from rlhf_data.training.optimizer import Schedule

# Options that change speed, memory or what lies on disk meanwhile, but no result beyond rounding: a run that was killed
# may go on under others.
SPEED = ("device", "token_budget", "checkpoint_every", "gradient_checkpointing", "shard", "compile", "deterministic")


@dataclass(frozen=True)
class Settings:
    """What a run does, beside its snapshot and where it writes.

    Attributes:
        rule: a name of `rules.RULES`, or a rule in any other form that `rlhf_data.rules` knows.
        model: reference {"path", "gguf_file"?, "revision"?} of the policy to start from.
        parameters: the rule's hyperparameters; its defaults for the rest.
        template: see `scoring.encode.encode`; as when the references were scored.
        max_length: most tokens of prompt and completion.
        max_prompt_length: most tokens of a prompt, 3/4 of `max_length` by default.
        condition: see `scoring.condition`: each row's class stands in its prompt. Stored references are of prompts
            without it, so a rule that reads them is refused.
        dtype: what matrix products are computed in, "float32" or "bfloat16"; "auto" is bfloat16 on a GPU and float32 on
            a CPU. Parameters, gradients and optimizer state are float32 always: AdamW's steps are smaller than what
            bfloat16 can tell apart.
        device: see `models.load`; under torchrun "auto" is the rank's own GPU.
        split: which part of the snapshot to train on.
        epochs: passes over the rows; may be a fraction.
        max_steps: an upper limit to optimizer steps.
        batch_size: rows of an optimizer step, however many forwards and ranks that takes; on average, where a rule
            wants all answers to a prompt in one step.
        learning_rate: its peak.
        warmup: share of the steps over which it rises from 0.
        schedule: how it falls after that: "linear" or "cosine" to 0, or "constant".
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        seed: of the order of rows.
        token_budget: most tokens of a forward.
        checkpoint_every: steps between checkpoints; 0 for none.
        gradient_checkpointing: keep the input of each layer for the backward pass and compute the rest of it again:
            activations shrink by an order of magnitude, and a step takes a third longer.
        shard: under torchrun, divide parameters, gradients and optimizer state among the ranks (FSDP2).
        compile: compile the parts of a layer that do not depend on how rows are packed; for GPUs.
        deterministic: refuse operations whose result depends on the order of threads.
        lora: {"r", "alpha", "dropout", "targets"}, each at will: train a low-rank adapter, see `adapters.attach`. The
            base is the reference, and its scores serve.
        reference: {"ema"} or {"alpha", "tau"}: a reference that follows the policy, see `averaging`. It starts as the
            policy, and is measured in the step: log-probs that the snapshot holds are not read.
        blend: further tables in the same step, see `blend.identify`.

    Raises:
        ValueError: a value that is out of range.
    """

    rule: rules.Rule
    model: dict[str, Any]
    parameters: dict[str, Any] | None = field(default_factory=dict)
    template: str = "chat"
    max_length: int = 1024
    max_prompt_length: int | None = None
    condition: dict[str, Any] | None = None
    dtype: str = "auto"
    device: str = "auto"
    split: str = "train"
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 1e-6
    warmup: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    token_budget: int | None = None
    checkpoint_every: int = 100
    gradient_checkpointing: bool = False
    shard: bool = False
    compile: bool = False
    deterministic: bool = False
    lora: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    blend: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        rules.check_parameters(self.rule, self.parameters or {})
        read = rules.columns(self.rule)
        read = read if self.reference is None else stored_columns(read)
        stored = [name for name in read if name.startswith(("ref_", "old_"))]
        scores = rules.scores(self.rule)
        if self.condition is not None and scores:
            raise ValueError("condition: a reward model judges texts as they are: leave condition out")
        if self.condition is not None and self.blend:
            raise ValueError("blend: classes are written into the prompts of the main table alone: leave condition out")
        if any(rules.scores(part["rule"]) != scores for part in self.blend or ()):
            raise ValueError("blend: a reward head and a policy are two models: train them apart")
        if scores and self.lora is not None:
            raise ValueError(f"lora: {rules.label(self.rule)} trains a new head, which an adapter would leave as it is")
        if self.condition is not None and stored:
            raise ValueError(
                f"{rules.label(self.rule)} reads {', '.join(stored)}, which are of prompts without the text of a "
                "class: take a rule without a reference, such as c_rlft or sft, or leave condition out"
            )
        limits = {
            "dtype": self.dtype in ("auto", "float32", "bfloat16"),
            "epochs": self.epochs > 0,
            "batch_size": self.batch_size >= 1,
            "max_steps": self.max_steps is None or self.max_steps >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "schedule": self.schedule in ("linear", "cosine", "constant"),
            "weight_decay": self.weight_decay >= 0,
            "max_grad_norm": self.max_grad_norm >= 0,
            "token_budget": self.token_budget is None or self.token_budget >= 1,
            "checkpoint_every": self.checkpoint_every >= 0,
        }
        if wrong := [name for name, holds in limits.items() if not holds]:
            values = ", ".join(f"{name} {getattr(self, name)!r}" for name in wrong)
            raise ValueError(f"out of range: {values}; see the documentation of Settings")
        if self.lora is not None:
            check_adapter(self.lora, self.model)
        if self.reference is not None:
            moving(self.reference)
            every = (self.rule, *(part["rule"] for part in self.blend or ()))
            if not any(name.startswith("ref_") for rule in every for name in rules.columns(rule)):
                raise ValueError("no rule here reads log-probs of a reference: leave reference out")

    @property
    def encoding(self) -> dict[str, Any]:
        """How texts become token ids."""
        return {
            "template": self.template,
            "max_length": self.max_length,
            "max_prompt_length": prompt_limit(self.max_length, self.max_prompt_length),
        }

    def compute_dtype(self, device: str) -> str:
        """What "auto" means on a device."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if device.startswith("cuda") else "float32"

    def deciding(self, device: str) -> dict[str, Any]:
        """The options that decide a run's result, as they are recorded: defaults filled in."""
        said = {name: value for name, value in asdict(self).items() if name not in SPEED}
        filled = rules.parameters(self.rule) | (self.parameters or {})
        parts = {
            "lora": None if self.lora is None else LORA | self.lora,
            "reference": None if self.reference is None else moving(self.reference),
            "blend": identify(self.blend or (), batch_size=self.batch_size),
        }
        return said | self.encoding | parts | {"parameters": filled, "dtype": self.compute_dtype(device)}
