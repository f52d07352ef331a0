"""The policy of the world before training: a tokenizer trained on its text, a tiny Llama with random weights."""

from collections.abc import Iterable
from pathlib import Path

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 384  # 256 bytes, so that every text has tokens, 3 special tokens, and merges of the world's words
LONGEST = 128  # tokens


def save_model(folder: Path, texts: Iterable[str], *, seed: int) -> None:
    """Write tokenizer and model into `folder`, as AutoTokenizer and AutoModelForCausalLM read them.

    Args:
        folder: of the model; made if need be.
        texts: what the tokenizer learns its merges from.
        seed: of the random weights.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, START, END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        initializer_range=0.06,  # 0.02 is for wide models: with it this one needs twice the steps
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # no text here is longer than LONGEST
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=bpe.token_to_id(END),
        pad_token_id=bpe.token_to_id(PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
