"""The memory that models of some sizes take, as the preflight foresees it: `python -m rlhf_data.training.sizes`."""

import torch

from rlhf_data.scoring.memory import Shape, training_bytes

TOKENS = 8192  # of a forward, the default on a GPU
# Parameters, layers, width, inner width and vocabulary as their publishers give them.
MODELS = {
    "135M (SmolLM2)": Shape(134_515_008, 134_515_008, 30, 576, 1536, 49_152),
    "1.5B (Qwen2.5)": Shape(1_543_714_304, 1_543_714_304, 28, 1536, 8960, 151_936),
    "8B (Llama 3.1)": Shape(8_030_261_248, 8_030_261_248, 32, 4096, 14_336, 128_256),
    "70B (Llama 3.1)": Shape(70_553_706_496, 70_553_706_496, 80, 8192, 28_672, 128_256),
}
_WAYS = {
    "1 GPU": (1, False),
    "1 GPU, checkpointed": (1, True),
    "8 GPUs, `shard`": (8, False),
    "8 GPUs, `shard`, checkpointed": (8, True),
}


def table() -> str:
    """GiB on each GPU of an AdamW step in bfloat16 products, full fine-tuning and with 1 % of it trained."""
    lines = [f"| model | trained | {' | '.join(_WAYS)} |", f"| --- | --- |{' ---: |' * len(_WAYS)}"]
    for name, shape in MODELS.items():
        for trained, part in (("all", 1), ("1 % (LoRA)", 100)):
            one = shape._replace(trained=shape.parameters // part)
            sizes = [
                sum(
                    training_bytes(
                        one, TOKENS, dtype=torch.bfloat16, ranks=ranks, gradient_checkpointing=checkpointed
                    ).values()
                )
                for ranks, checkpointed in _WAYS.values()
            ]
            lines.append(f"| {name} | {trained} | {' | '.join(f'{size / 2**30:,.0f}' for size in sizes)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
