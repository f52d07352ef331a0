"""The folder that `generate` and the command make."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_data.world import generate, ratings, verify

PROMPTS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("world"), prompts=PROMPTS, seed=3)


@pytest.fixture(scope="module")
def tokenizer(world):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world.model)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_reports_what_it_made(world):
    assert world.made
    assert world.lines == len(world.ratings.read_bytes().splitlines()) == PROMPTS * 8 + world.damaged
    assert world.damaged == 14


def test_equal_arguments_give_equal_bytes_to_the_last_weight(world, tmp_path):
    generate(tmp_path / "again", prompts=PROMPTS, seed=3)
    assert contents(tmp_path / "again") == contents(world.model.parent)


def test_another_seed_gives_other_ratings_and_weights(world, tmp_path):
    other = contents(generate(tmp_path, prompts=PROMPTS, seed=4).model.parent)
    same = contents(world.model.parent)
    assert all(other[name] != same[name] for name in ("raw/ratings.jsonl", "model/model.safetensors"))


def test_the_random_state_of_the_caller_stays(tmp_path):
    import torch

    before = torch.random.get_rng_state()
    generate(tmp_path, prompts=8)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_as_asked_is_left_alone_and_any_other_made_anew(tmp_path):
    (tmp_path / "snapshots").mkdir()
    first = generate(tmp_path, prompts=8)
    written = first.ratings.stat().st_mtime_ns
    assert not generate(tmp_path, prompts=8).made
    assert first.ratings.stat().st_mtime_ns == written

    whole = contents(tmp_path)
    first.ratings.write_text("{}\n")
    assert generate(tmp_path, prompts=8).made
    (first.model / "config.json").unlink()
    assert generate(tmp_path, prompts=8).made
    assert contents(tmp_path) == whole
    assert generate(tmp_path, prompts=12).made
    assert (tmp_path / "snapshots").is_dir()


def test_a_world_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        generate(tmp_path, prompts=0)


def test_every_answer_survives_the_tokenizer(tokenizer):
    for category, question in ratings.questions(PROMPTS, seed=3):
        for row in ratings.rows(category, question, seed=3):
            for text in (question, row["answer"], "a text it never saw: Ümläut 😀\n"):
                assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_symbol_is_a_token_of_its_own(tokenizer):
    assert len(tokenizer.encode("7 2 9 4", add_special_tokens=False)) == 4
    assert len(tokenizer.encode("k a b e", add_special_tokens=False)) == 4


def test_a_conversation_fits_in_64_tokens_and_ends_with_the_end_token(tokenizer):
    for category, question in ratings.questions(PROMPTS, seed=3):
        for row in ratings.rows(category, question, seed=3):
            asked = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            answered = [*asked, {"role": "assistant", "content": row["answer"]}]
            whole = tokenizer.apply_chat_template(answered, tokenize=False)
            assert whole == f"{prompt}{row['answer']}<|im_end|>\n"
            assert len(tokenizer.encode(whole, add_special_tokens=False)) <= 40
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_the_model_loads_and_answers_in_text(world, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.model)
    assert model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = [{"role": "user", "content": "Sort: 7 2 9 4"}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    answer = tokenizer.decode(model(ids).logits[0, -4:].argmax(-1))
    assert 0.0 <= verify(prompt, answer) <= 1.0


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_data.world", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_says_what_it_made(tmp_path):
    made = run(tmp_path / "demo", "--prompts", 8)
    assert (made.returncode, made.stderr) == (0, "")
    assert "72 lines, 8 of them damaged" in made.stdout
    assert "already made" in run(tmp_path / "demo", "--prompts", 8).stdout


def test_the_command_explains_itself_and_refuses_in_one_line(tmp_path):
    assert "--prompts" in run("--help").stdout
    refused = run(tmp_path, "--prompts", 100_000)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
