"""A Llama of two layers with random weights and a real BPE tokenizer with a ChatML template, made in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "What is the capital of France? The capital of France is Paris, of course.",
    "Write a poem about the sea. The sea is deep and blue and cold and wide.",
    "How do I bake bread? Mix flour, water, salt and yeast, wait, then bake it.",
    "I am sorry, I cannot help with that. Yes, sure! No, never. 1 2 3 4 5 6 7 8 9 0",
]


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 320 tokens; eos <|im_end|>, bos <s>, which the template does not write."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def model(seed: int = 0, *, hidden_size: int = 32, vocab_size: int = 384) -> LlamaForCausalLM:
    """Two layers, four query and two key heads; weights large enough that log-probs differ by nats."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def save(folder: Path, seed: int = 0) -> dict[str, str]:
    """Write a model and its tokenizer; returns the reference that `load` takes."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return {"path": str(folder)}
