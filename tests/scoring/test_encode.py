"""Token ids are those that the policy sees when it generates."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlhf_data.scoring.encode import encode, encode_prompts, turn_end
from tests import tiny_model

BAKE = [{"role": "user", "content": "How do I bake bread?"}]
IM_START, IM_END, BOS = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.tokenizer()


def one(tokenizer, prompt, completion, **options):
    encoded = encode(tokenizer, [prompt], [completion], **({"max_length": 512} | options))
    return tuple(column[0] for column in encoded)


def with_template(template: str):
    return tiny_model.tokenizer(template)


def test_a_prompt_ends_with_the_generation_prompt_and_a_completion_with_one_end_token(tokenizer):
    prompt, completion, truncated, refused = one(tokenizer, BAKE, "Mix flour.")
    assert tokenizer.decode(prompt) == "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(completion) == "Mix flour.<|im_end|>"
    assert (completion.count(IM_END), truncated, refused) == (1, False, None)


def test_what_a_template_writes_after_the_end_token_is_left_out(tokenizer):
    # ChatML writes a newline after <|im_end|>; a longer tail changes nothing either.
    longer = with_template(tiny_model.CHATML.replace("+ '\n' }}{% endfor", "+ '\nand more\n' }}{% endfor"))
    assert one(longer, BAKE, "Mix.")[1] == one(tokenizer, BAKE, "Mix.")[1]


GEMMA = (
    "{% for m in messages %}{{ '<start>' + m['role'] + '\n' + m['content'] + '<turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{{ '<start>' + m['role'] }}{{ '<channel>final' if m['role'] == 'assistant' }}"
    "{{ '<message>' + m['content'] + '<turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>assistant' }}{% endif %}"
)


@pytest.mark.parametrize("answer", ["fin", "Mix flour. ", ""])
@pytest.mark.parametrize(("template", "before"), [(GEMMA, ""), (HARMONY, "<channel>final<message>")])
def test_a_completion_ends_with_its_templates_end_of_turn(template, before, answer):
    held = with_template(template)
    held.add_special_tokens({"additional_special_tokens": ["<start>", "<turn>", "<channel>", "<message>"]})
    assert held.decode(one(held, BAKE, answer)[1]) == f"{before}{answer}<turn>"
    assert held.decode([turn_end(held)]) == "<turn>"


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [ZEPHYR, LLAMA2])
@pytest.mark.parametrize("form", ["legacy", "metaspace"])
def test_no_space_comes_between_a_prompt_and_its_answer(template, form):
    held = sentencepiece(template, form)
    prompt, completion, *_ = one(held, BAKE, "Hello there.")
    said = held.apply_chat_template([*BAKE, {"role": "assistant", "content": "Hello there."}], tokenize=False)
    whole = held(said, add_special_tokens=False)["input_ids"]
    assert prompt == whole[: len(prompt)]
    assert completion == whole[len(prompt) : len(prompt) + len(completion)]
    assert completion[-1] == held.eos_token_id


def sentencepiece(template: str, form: str):
    """A tokenizer as those of Llama 2, Mistral 7B and Zephyr are, in the two forms of their files."""
    first = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(list(first))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(["Hello there. The bread, of course.", "Yes! Hello flour. No, never."] * 5, learnt)
    if form == "metaspace":
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=made, **words)


def test_an_end_token_is_added_where_the_template_writes_none():
    bare = with_template("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    _, completion, *_ = one(bare, BAKE, "Mix.")
    assert completion[-1] == IM_END and completion.count(IM_END) == 1


def test_an_empty_completion_is_its_end_token(tokenizer):
    assert one(tokenizer, BAKE, "")[1:] == ([IM_END], False, None)
    assert one(tokenizer, BAKE, "", template="plain")[1:] == ([IM_END], False, None)


def test_all_completions_of_a_prompt_share_its_ids(tokenizer):
    encoded = encode(tokenizer, [BAKE, BAKE], ["Mix.", "No, never."], max_length=64)
    assert encoded.prompt_ids[0] is encoded.prompt_ids[1]


def test_system_and_earlier_turns_are_rendered(tokenizer):
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bread?"},
    ]
    text = tokenizer.decode(one(tokenizer, talk, "Sure.")[0])
    assert [text.count(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")] == [1, 2, 2]


def test_a_bos_that_the_template_writes_is_there_once():
    once = with_template("<s>" + tiny_model.CHATML)
    twice = with_template("<s><s>" + tiny_model.CHATML)
    assert one(once, BAKE, "Mix.")[0][:2] == [BOS, IM_START]
    assert one(twice, BAKE, "Mix.")[0] == one(once, BAKE, "Mix.")[0]


def test_the_plain_template_adds_the_bos_that_the_post_processor_adds(tokenizer):
    assert one(tokenizer, BAKE, "Mix.", template="plain")[0][0] != BOS
    adding = tiny_model.tokenizer()
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    prompt, completion, *_ = one(adding, BAKE, "Mix.", template="plain")
    assert prompt[0] == BOS and prompt.count(BOS) == 1 and BOS not in completion
    assert BOS not in one(adding, BAKE, "Mix.")[0]  # the chat template did not write it


def test_the_plain_template_joins_contents_by_a_blank_line(tokenizer):
    prompt, completion, *_ = one(tokenizer, [*BAKE, {"role": "user", "content": "Quick!"}], " Mix.", template="plain")
    assert tokenizer.decode(prompt) == "How do I bake bread?\n\nQuick!"
    assert tokenizer.decode(completion) == " Mix.<|im_end|>"


def test_a_jinja_file_is_a_template(tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(tiny_model.CHATML)
    assert one(tokenizer, BAKE, "Mix.", template=str(tmp_path / "own.jinja")) == one(tokenizer, BAKE, "Mix.")


def test_a_long_completion_loses_its_last_tokens_and_its_end_token(tokenizer):
    whole = one(tokenizer, BAKE, "Mix flour, water, salt.")
    room = len(whole[0]) + 4
    prompt, completion, truncated, _ = one(
        tokenizer, BAKE, "Mix flour, water, salt.", max_length=room, max_prompt_length=room - 1
    )
    assert (prompt, completion, truncated) == (whole[0], whole[1][:4], True)
    assert IM_END not in completion


def test_a_completion_that_just_fits_is_not_truncated(tokenizer):
    whole = one(tokenizer, BAKE, "Mix.")
    room = len(whole[0]) + len(whole[1])
    assert one(tokenizer, BAKE, "Mix.", max_length=room, max_prompt_length=room - 1) == whole


def test_a_long_prompt_loses_its_oldest_tokens_but_not_its_bos():
    plain = with_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    whole = one(plain, BAKE, "Mix.")[0]
    cut = one(plain, BAKE, "Mix.", max_length=8, max_prompt_length=5)
    assert cut[0] == whole[-5:] and cut[2]
    bos = with_template("<s>{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert one(bos, BAKE, "Mix.", max_length=8, max_prompt_length=5)[0] == [BOS, *whole[-4:]]


def test_prompts_take_three_quarters_of_the_length_by_default(tokenizer):
    long = [{"role": "user", "content": "bread " * 100}]
    assert len(one(tokenizer, long, "Mix.", max_length=40)[0]) == 30


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|im_start|>", "x<s>"])
def test_special_tokens_in_a_text_are_refused(tokenizer, text):
    assert one(tokenizer, BAKE, text)[1:] == ([], False, "text.special_token")
    assert one(tokenizer, [{"role": "user", "content": text}], "Mix.")[3] == "text.special_token"


def test_a_template_that_raises_refuses_the_row_and_no_other():
    strict = with_template(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny_model.CHATML
    )
    encoded = encode(strict, [[{"role": "system", "content": "x"}, *BAKE], BAKE], ["a", "a"], max_length=64)
    assert encoded.refused == ["template.refused", None]


def test_a_template_that_renders_the_prompt_anew_with_the_answer_is_refused():
    shifty = with_template("{{ messages | length }}" + tiny_model.CHATML)
    assert one(shifty, BAKE, "Mix.")[3] == "template.prefix"


def test_a_prompt_without_tokens_is_refused(tokenizer):
    assert one(tokenizer, [{"role": "user", "content": ""}], "Mix.", template="plain")[3] == "prompt.empty"


def test_generation_starts_from_the_ids_that_scoring_sees(tokenizer):
    (ids,) = encode_prompts(tokenizer, [BAKE], template="chat", max_prompt_length=100)
    assert ids == one(tokenizer, BAKE, "Mix.")[0]
    with pytest.raises(ValueError, match=r"text\.special_token"):
        encode_prompts(tokenizer, [[{"role": "user", "content": "<s>"}]], template="chat", max_prompt_length=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "chatt"}, "template is 'chatt': it must be chat, plain, or the path of a .jinja file"),
        ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length is 8 and max_length 8"),
        ({"max_length": 1}, "max_prompt_length is 0"),
    ],
)
def test_wrong_settings_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        one(tokenizer, BAKE, "Mix.", **options)


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template: use template plain"):
        one(tiny_model.tokenizer(None), BAKE, "Mix.")


@pytest.mark.parametrize("start", ["", "\n", "\n\n"])
def test_a_template_that_writes_the_date_writes_one_day(start):
    dated = start + "{{ strftime_now('%d %b %Y, %A') }}{% if strftime_now is defined %}!{% endif %}\n"
    prompt, *_ = one(with_template(dated + tiny_model.CHATML), BAKE, "Mix.")
    plain, *_ = one(
        with_template(start + "{{ '26 Jul 2024, Friday' }}{% if true %}!{% endif %}\n" + tiny_model.CHATML),
        BAKE,
        "Mix.",
    )
    assert tiny_model.tokenizer().decode(prompt) == tiny_model.tokenizer().decode(plain)
    assert "26 Jul 2024, Friday!" in tiny_model.tokenizer().decode(prompt)
