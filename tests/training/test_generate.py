"""Samples are kept under what decides them, written block by block, by whatever engine is there."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from rlhf_data.scoring import models
from rlhf_data.scoring.encode import encode_prompts
from rlhf_data.training import generate as sample_texts
from rlhf_data.training.generate import SAMPLES, by_transformers, by_vllm, choose_engine, open_writer, samples, write
from tests import tiny_model
from tests.training.snapshots import user

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [user("How do I bake bread?"), user("Sea?"), user("Write a poem about the deep blue sea, please.")]
ROWS = [{"prompt_id": f"p{k}", "prompt": user(f"What is {k}?"), "category": "xy"[k % 2]} for k in range(7)]
SHORT = {"n": 2, "max_new_tokens": 4, "max_prompt_length": 60, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def reference(folder):
    return tiny_model.save(folder / "model")


@pytest.fixture(scope="module")
def loaded(folder, reference):
    return models.load(reference, cache=folder / "cache")


def test_a_store_holds_n_rows_a_prompt_in_the_order_asked_for(folder, reference, tmp_path):
    file = samples(tmp_path, ROWS, model=reference, cache=folder / "cache", block=3, **SHORT)
    table = pq.read_table(file)
    assert table.schema.equals(SAMPLES)
    assert table["prompt_id"].to_pylist() == [row["prompt_id"] for row in ROWS for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 7
    assert max(table["n_tokens"].to_pylist()) <= 4
    assert all(row["n_tokens"] == 4 for row in table.to_pylist() if not row["finished"])
    assert not list(file.parent.glob("part-*"))


def test_what_was_killed_goes_on_with_the_first_block_that_is_not_there(folder, reference, tmp_path, monkeypatch):
    options = {"model": reference, "cache": folder / "cache", "block": 3, **SHORT}
    whole = samples(tmp_path / "whole", ROWS, **options)
    module = sys.modules["rlhf_data.training.generate"]
    asked = []

    def killed(writer, tokenizer, prompts, **sampling):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return write(writer, tokenizer, prompts, **sampling)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            samples(tmp_path / "killed", ROWS, **options)
        assert len(list((tmp_path / "killed").glob("*/part-*.parquet"))) == 2
        asked.clear()
        resumed = samples(tmp_path / "killed", ROWS, **options)
    assert asked == [1]  # of blocks of 3, 3 and 1 rows
    assert pq.read_table(resumed).equals(pq.read_table(whole))


def test_processes_that_share_the_blocks_write_what_one_writes(folder, reference, tmp_path):
    options = {"model": reference, "cache": folder / "cache", "block": 2, **SHORT}
    whole = samples(tmp_path / "whole", ROWS, **options)
    for number, blocks in ((1, [1, 3]), (0, [0, 1, 2, 3])):  # of 2, 2, 2 and 1 rows
        said = samples(tmp_path / "shared", ROWS, share=(number, 2), **options)
        assert not said.exists()
        assert sorted(int(part.stem[5:]) for part in said.parent.glob("part-*")) == blocks
    assert samples(tmp_path / "shared", ROWS, **options).read_bytes() == whole.read_bytes()


def test_the_same_question_is_answered_from_the_store_and_another_is_not(folder, reference, tmp_path, monkeypatch):
    options = {"cache": folder / "cache", **SHORT}
    first = samples(tmp_path, ROWS, model=reference, **options)
    others = [
        samples(tmp_path, ROWS, model=reference, **(options | {"temperature": 0.5})),
        samples(tmp_path, ROWS, model=reference, **(options | {"seed": 1})),
        samples(tmp_path, ROWS[:-1], model=reference, **options),
        samples(tmp_path, ROWS, model=tiny_model.save(tmp_path / "another", seed=1), **options),
    ]
    assert len({first, *others}) == 5
    same_weights = tiny_model.save(tmp_path / "copy")
    monkeypatch.setattr(sys.modules["rlhf_data.training.generate"], "open_writer", None)
    assert samples(tmp_path, ROWS, model=same_weights, **options) == first


def test_other_end_tokens_of_the_model_are_another_question(folder, tmp_path):
    model, options = tiny_model.save(tmp_path / "model"), {"cache": folder / "cache", **SHORT}
    first = samples(tmp_path / "store", ROWS, model=model, **options)
    (Path(model["path"]) / "generation_config.json").write_text('{"eos_token_id": [1, 5, 6, 7]}')
    again = samples(tmp_path / "store", ROWS, model=model, **options)
    assert again != first


def test_prompts_that_cannot_be_encoded_are_left_out(folder, reference, tmp_path):
    rows = [*ROWS[:2], {"prompt_id": "odd", "prompt": user("<|im_end|>"), "category": None}]
    table = pq.read_table(samples(tmp_path, rows, model=reference, cache=folder / "cache", **SHORT))
    assert set(table["prompt_id"].to_pylist()) == {"p0", "p1"}
    with pytest.raises(ValueError, match=r"none of the 1 prompts can be encoded: \{'text.special_token': 1\}"):
        samples(tmp_path, rows[2:], model=reference, cache=folder / "cache", **SHORT)


def test_a_completion_is_finished_where_its_last_token_ends_it(loaded):
    model, tokenizer = loaded
    written = write(by_transformers(model, tokenizer), tokenizer, PROMPTS * 20, max_new_tokens=20, progress=False)
    flat = [one for texts in written for one in texts]
    assert {one.finished for one in flat} == {True, False}
    assert all(one.n_tokens == 20 for one in flat if not one.finished)
    assert all(tokenizer.eos_token not in one.text for one in flat)


def test_the_likeliest_answer_is_written_once_and_given_n_times(loaded):
    greedy = sample_texts(*loaded, PROMPTS, n=3, temperature=0, max_new_tokens=5, progress=False)
    assert all(len(texts) == 3 and len(set(texts)) == 1 for texts in greedy)


class FakeVllm:
    """As much of vLLM as is used: it echoes the last prompt tokens and ends."""

    def __init__(self, end: int) -> None:
        self.asked, self.opened, self.end = [], [], end
        self.SamplingParams = SimpleNamespace
        outer = self

        class LLM:
            def __init__(self, **options):
                outer.opened.append(options)

            def generate(self, prompts, settings, use_tqdm):
                outer.asked += list(zip(prompts, settings, strict=True))
                return [outer.answer(p["prompt_token_ids"], s) for p, s in outer.asked[-len(prompts) :]]

        self.LLM = LLM

    def answer(self, ids, settings):
        texts = [SimpleNamespace(token_ids=(*ids[-2:], *([self.end] if k == 0 else []))) for k in range(settings.n)]
        return SimpleNamespace(outputs=texts)


@pytest.fixture
def vllm(monkeypatch, loaded):
    fake = FakeVllm(loaded[1].eos_token_id)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "vllm" or None)
    return fake


def test_vllm_gets_the_token_ids_of_the_prompts_and_writes_all_at_once(vllm, loaded, folder, reference):
    _, tokenizer = loaded
    writer, same = open_writer(reference, engine="vllm", cache=folder / "cache", max_length=80)
    assert same.name_or_path == reference["path"] == vllm.opened[0]["model"] and vllm.opened[0]["max_model_len"] == 80
    written = write(writer, tokenizer, PROMPTS, n=2, temperature=0.7, max_new_tokens=9, seed=4, progress=False)
    ids = encode_prompts(tokenizer, PROMPTS, template="chat", max_prompt_length=768)
    assert sorted(p["prompt_token_ids"] for p, _ in vllm.asked) == sorted(ids)
    assert len({s.seed for _, s in vllm.asked}) == 3
    assert all((s.n, s.temperature, s.top_k, s.max_tokens) == (2, 0.7, 0, 9) for _, s in vllm.asked)
    for one, prompt in zip(written, ids, strict=True):
        assert one[0] == (tokenizer.decode(prompt[-2:], skip_special_tokens=True), 3, True)
        assert (one[1].n_tokens, one[1].finished) == (2, False)


def test_vllm_is_taken_where_it_is_installed_and_a_gpu_is_there_for_whole_models(vllm, monkeypatch):
    plain, adapted = {"path": "m"}, {"path": "m", "adapter": "a"}
    devices = ("cpu", "cuda", "cuda:1")
    assert [choose_engine("auto", device, plain) for device in devices] == ["transformers", "vllm", "vllm"]
    assert choose_engine("transformers", "cuda", plain) == "transformers"
    assert choose_engine("auto", "cuda", adapted) == "transformers"
    with pytest.raises(ValueError, match="merge the adapter first"):
        choose_engine("vllm", "cuda", adapted)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine("auto", "cuda", plain) == "transformers"
    with pytest.raises(ValueError, match="pip install vllm"):
        choose_engine("vllm", "cuda", plain)
    with pytest.raises(ValueError, match="engine is 'tgi'"):
        choose_engine("tgi", "cpu", plain)


def test_a_writer_by_vllm_stops_at_the_models_own_end_tokens_too(vllm, loaded, folder, reference):
    ends = by_vllm(loaded[1], "float32").ends
    assert loaded[1].eos_token_id in ends


def test_samples_carry_the_categories_that_were_asked_with(folder, reference, tmp_path):
    for category in ("sea", "bread", None):
        asked = [row | {"category": category} for row in ROWS[:2]]
        file = samples(tmp_path, asked, model=reference, cache=folder / "cache", **SHORT)
        assert set(pq.read_table(file)["category"].to_pylist()) == {category}


def test_of_two_that_want_the_same_samples_the_slower_one_gets_them_too(folder, reference, tmp_path, monkeypatch):
    options = {"model": reference, "cache": folder / "cache", "block": 3, **SHORT}
    module = sys.modules["rlhf_data.training.generate"]
    calls = []

    def slow(*arguments, **sampling):
        calls.append(1)
        written = write(*arguments, **sampling)
        if len(calls) == 3:  # its last block; meanwhile the other one ends
            monkeypatch.setattr(module, "write", write)
            samples(tmp_path, ROWS, **options)
        return written

    monkeypatch.setattr(module, "write", slow)
    file = samples(tmp_path, ROWS, **options)
    assert pq.read_table(file).num_rows == 14
    assert sorted(path.name for path in file.parent.iterdir()) == ["samples.json", "samples.parquet"]
