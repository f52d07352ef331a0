"""What changes a number is scored again, all of it; what does not is found, all of it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from xxhash import xxh3_128_hexdigest

from rlhf_data import engine
from rlhf_data.plan import Workspace
from rlhf_data.scoring import recipe, score, scorer
from rlhf_data.scoring.status import status
from rlhf_data.spec import read_all
from tests import tiny_model
from tests.project import SPEC, Project, ratings

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
Row = tuple[list[dict[str, str]], str]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# One prompt of 40 tokens or so, one of two answers; an answer of 30 tokens or so.
ROWS: list[Row] = [
    (user("How do I bake a loaf of bread, and how long does it have to wait at the café?"), "Mix flour and water."),
    (user("How do I bake a loaf of bread, and how long does it have to wait at the café?"), "No, never."),
    (user("Write a poem about the sea, if you please, and do it in a hurry, too, please."), "The sea is deep. " * 3),
]


class Place:
    """A model's folder, an adapter's, and a store; `asked` and `options` are what the next scoring is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = list(ROWS)
        self.options: dict[str, Any] = {"max_length": 256}
        self.model: dict[str, Any] = {"path": str(folder / "model")}

    @property
    def adapted(self) -> dict[str, Any]:
        return {**self.model, "adapter": str(self.folder / "adapter")}

    def requests(self) -> Path:
        """The rows by ids of their content, as steps name them."""
        path = self.folder / "requests.parquet"
        names = [xxh3_128_hexdigest(json.dumps(row).encode()) for row in self.asked]
        prompts = pa.array([prompt for prompt, _ in self.asked], MESSAGES)
        answers = [answer for _, answer in self.asked]
        pq.write_table(pa.table({"completion_id": names, "prompt": prompts, "completion": answers}), path)
        return path

    def score(self) -> dict[str, int]:
        """The counts of one scoring."""
        told = score(
            self.requests(),
            self.folder / "out.parquet",
            model=self.model,
            store=self.folder / "store",
            cache=self.folder / "cache",
            device="cpu",
            progress=False,
            **self.options,
        )
        return told["counts"]

    def edit(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a JSON file below the folder."""
        file = self.folder / name
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    def tokenizer(self, change: Callable[[Any], Any]) -> None:
        made = AutoTokenizer.from_pretrained(self.model["path"])
        change(made)
        made.save_pretrained(self.model["path"])


def save_adapter(model: Path, folder: Path, seed: int) -> None:
    """A LoRA adapter of random weights, in the files that peft writes."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "inference_mode": True,
    }
    torch.manual_seed(seed)
    tensors = {}
    for layer, (name, width) in itertools.product(range(2), (("q_proj", 32), ("v_proj", 16))):
        place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        tensors[f"{place}.lora_A.weight"] = torch.randn(2, 32)
        tensors[f"{place}.lora_B.weight"] = torch.randn(width, 2)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A folder with a model, an adapter, and the scores of ROWS by both."""
    made = Place(tmp_path_factory.mktemp("scored"))
    tiny_model.save(made.folder / "model")
    save_adapter(made.folder / "model", made.folder / "adapter", seed=0)
    assert made.score()["scored"] == len(ROWS)
    made.model = made.adapted
    assert made.score()["scored"] == len(ROWS)
    return made.folder


@pytest.fixture
def place(scored, tmp_path) -> Place:
    return Place(shutil.copytree(scored, tmp_path / "place"))


def one_weight(folder: Path, name: str) -> None:
    tensors = load_file(folder / name)
    first = sorted(tensors)[0]
    tensors[first].view(-1)[0] += 0.25
    save_file(tensors, folder / name, metadata={"format": "pt"})


def use(place: Place, **options: Any) -> None:
    place.options |= options


def ask(place: Place, change: Callable[[Row], Row]) -> None:
    place.asked = [change(row) for row in place.asked]


def template(place: Place, change: Callable[[str], str]) -> None:
    def apply(tokenizer: Any) -> None:
        before = tokenizer.chat_template
        tokenizer.chat_template = change(before)
        assert tokenizer.chat_template != before

    place.tokenizer(apply)


def as_file(place: Place) -> None:
    (place.folder / "mine.jinja").write_text(
        tiny_model.CHATML.replace("'<|im_start|>'", "'<|im_start|>the '", 1).replace(
            "<|im_start|>assistant", "<|im_start|>the assistant"
        )
    )
    use(place, template=str(place.folder / "mine.jinja"))


def revision(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id whose revision b has other weights than a."""
    one_weight(Path(shutil.copytree(place.folder / "model", place.folder / "b")), "model.safetensors")
    folders = {"a": place.folder / "model", "b": place.folder / "b"}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, **_: str(folders[revision]))
    place.model = {"path": "org/name", "revision": "a"}
    assert place.score()["scored"] == 0
    place.model = {"path": "org/name", "revision": "b"}


def stored_without_tokens(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(place.folder / "store")
    use(place, token_logps=False)
    assert place.score()["scored"] == len(ROWS)
    assert place.score()["scored"] == 0
    use(place, token_logps=True)


def with_adapter(change: Callable[[Place], Any]) -> Callable[[Place, pytest.MonkeyPatch], None]:
    def apply(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        change(place)
        place.model = place.adapted

    return apply


ASKED = {
    "a system prompt": lambda row: ([{"role": "system", "content": "Be brief."}, *row[0]], row[1]),
    "another system prompt's role": lambda row: ([{**row[0][0], "role": "human"}], row[1]),
    "the prompt's text": lambda row: (user(row[0][0]["content"] + " Why?"), row[1]),
    "the prompt's case": lambda row: (user(row[0][0]["content"].upper()), row[1]),
    "a turn more": lambda row: ([*user("Hello."), {"role": "assistant", "content": "Yes?"}, *row[0]], row[1]),
    "the completion's text": lambda row: (row[0], row[1].replace("e", "a")),
    "white space behind the completion": lambda row: (row[0], row[1] + "\n"),
    "white space before the completion": lambda row: (row[0], " " + row[1]),
    "an empty completion": lambda row: (row[0], ""),
    "the prompt's last blank": lambda row: (user(row[0][0]["content"] + " "), row[1]),
    "the normal form of Unicode": lambda row: (row[0], unicodedata.normalize("NFD", row[1] + " café")),
}
MISSES: dict[str, Callable[[Place, pytest.MonkeyPatch], Any]] = {
    "one weight": lambda p, m: one_weight(p.folder / "model", "model.safetensors"),
    "all weights": lambda p, m: tiny_model.save(p.folder / "model", seed=1),
    "the model's epsilon": lambda p, m: p.edit("model/config.json", lambda c: c.update(rms_norm_eps=1e-3)),
    "the revision": revision,
    "the dtype": lambda p, m: use(p, dtype="bfloat16"),
    "the head's dtype": lambda p, m: m.setattr(recipe, "HEAD_DTYPE", "bfloat16"),
    "the code of the numbers": lambda p, m: m.setattr(recipe, "NUMERICS", recipe.NUMERICS + 1),
    "the squares": lambda p, m: use(p, squares=True),
    "the single tokens": stored_without_tokens,
    "no template": lambda p, m: use(p, template="plain"),
    "a template of one's own": lambda p, m: as_file(p),
    "the template's text": lambda p, m: template(
        p, lambda t: t.replace("'\n' + m", "'\n\n' + m").replace("assistant\n", "assistant\n\n")
    ),
    "the template's system prompt": lambda p, m: template(p, lambda t: "<|im_start|>system\nBe kind.<|im_end|>\n" + t),
    "a BOS": lambda p, m: template(p, lambda t: "{{ bos_token }}" + t),
    "no BOS before a plain text": lambda p, m: (use(p, template="plain"), p.score(), bos_first(p)),
    "the end token": lambda p, m: (
        p.tokenizer(lambda t: setattr(t, "eos_token", "<s>")),
        template(p, lambda t: t.replace("'<|im_end|>' + '\n'", "'<s>'")),
    ),
    "a word of the vocabulary": lambda p, m: p.tokenizer(lambda t: t.add_tokens(["o", "ea"])),
    "the tokenizer's merges": lambda p, m: p.edit("model/tokenizer.json", lambda t: t["model"].update(merges=[])),
    "the tokenizer's first blank": lambda p, m: p.edit(
        "model/tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"})
    ),
    "a length that cuts": lambda p, m: use(p, max_length=24),
    "a prompt's length that cuts": lambda p, m: use(p, max_prompt_length=20),
    "an adapter's weights": with_adapter(lambda p: one_weight(p.folder / "adapter", "adapter_model.safetensors")),
    "an adapter's scale": with_adapter(
        lambda p: p.edit("adapter/adapter_config.json", lambda c: c.update(lora_alpha=8))
    ),
    "an adapter's initialisation, where it is the reference's": with_adapter(
        lambda p: save_adapter(p.folder / "model", p.folder / "adapter", seed=1)
    ),
    "the weights below an adapter": with_adapter(lambda p: one_weight(p.folder / "model", "model.safetensors")),
    **{name: lambda p, m, change=change: ask(p, change) for name, change in ASKED.items()},
}


def bos_first(place: Place) -> None:
    """A tokenizer that writes BOS before a text, as Llama's does."""
    place.edit(
        "model/tokenizer.json",
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
            }
        ),
    )


@pytest.mark.parametrize("change", MISSES.values(), ids=MISSES.keys())
def test_what_changes_a_number_is_scored_again(change, place, monkeypatch):
    change(place, monkeypatch)
    counts = place.score()
    assert counts["distinct"] == len({json.dumps(row) for row in place.asked})
    assert (counts["scored"], counts["reused"], counts["refused"]) == (counts["distinct"], 0, 0)
    assert place.score()["scored"] == 0  # and is found from then on


def test_enough_changes_are_tried():
    assert len(MISSES) >= 25 and len(HITS) + len(SPECS) >= 12


def moved_model(place: Place) -> None:
    (place.folder / "elsewhere").mkdir()
    place.model = {"path": str(shutil.move(place.folder / "model", place.folder / "elsewhere" / "m"))}


def touched(place: Place) -> None:
    for file in (place.folder / "model").iterdir():
        os.utime(file, ns=(1, 1))


def another_layout(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "layout_of", lambda model: "padded")
    place.asked.append((user("And now?"), "Yes, sure!"))


def moved_base(place: Place) -> None:
    """An adapter that says where its base is, and that lies elsewhere now."""
    shutil.move(place.folder / "model", place.folder / "base")
    place.edit(
        "adapter/adapter_config.json",
        lambda c: c.update(base_model_name_or_path=str(place.folder / "base"), inference_mode=False, peft_version="0"),
    )
    place.model = {"path": str(place.folder / "adapter")}


HITS: dict[str, Callable[[Place, pytest.MonkeyPatch], Any]] = {
    "nothing": lambda p, m: None,
    "the order of rows": lambda p, m: p.asked.reverse(),
    "rows that repeat": lambda p, m: p.asked.extend(ROWS),
    "fewer rows": lambda p, m: p.asked.pop(),
    "the token budget": lambda p, m: use(p, token_budget=1),
    "the size of a shard": lambda p, m: use(p, shard_rows=1),
    "threads": lambda p, m: m.setenv("OMP_NUM_THREADS", "2"),
    "values that are read back": lambda p, m: use(p, give=["token_logps"]),
    "a length that cuts nothing": lambda p, m: use(p, max_length=300),
    "a prompt's length that cuts nothing": lambda p, m: use(p, max_prompt_length=150),
    "the time of the files": lambda p, m: touched(p),
    "the folder of the model": lambda p, m: moved_model(p),
    "the folder of an adapter's base, and who wrote it": lambda p, m: moved_base(p),
    "a policy's adapter beside the model, of another initialisation": lambda p, m: save_adapter(
        p.folder / "model", p.folder / "policy", seed=5
    ),
    "a README beside the weights": lambda p, m: (p.folder / "model" / "README.md").write_text("# A model"),
    "the name of the tokenizer's file of templates": lambda p, m: p.edit(
        "model/tokenizer_config.json", lambda c: c.update(model_max_length=12345)
    ),
    "the code of the encoding, where it gives the same ids": lambda p, m: m.setattr(recipe, "ENCODING", 99),
    "no single tokens wanted": lambda p, m: use(p, token_logps=False),
}


@pytest.mark.parametrize("change", HITS.values(), ids=HITS.keys())
def test_what_changes_no_number_is_found(change, place, monkeypatch):
    change(place, monkeypatch)
    counts = place.score()
    assert (counts["scored"], counts["tokens"], counts["reused"]) == (0, 0, counts["distinct"])


def test_another_engine_costs_only_what_is_new(place, monkeypatch):
    another_layout(place, monkeypatch)
    counts = place.score()
    assert (counts["scored"], counts["reused"]) == (1, len(ROWS))


def test_new_rows_cost_their_own_tokens_and_no_others(place):
    new: list[Row] = [(user("What is the capital of France?"), "Paris."), (user("And of Spain?"), "Madrid, sure!")]
    place.asked = [*ROWS, *new]
    counts = place.score()
    assert (counts["scored"], counts["reused"]) == (2, 3)
    shutil.rmtree(place.folder / "store")
    place.asked = new
    assert place.score()["tokens"] == counts["tokens"]


def test_an_answer_that_joins_a_scored_prompt_costs_the_prompt_and_itself(place):
    place.asked = [*ROWS, (ROWS[0][0], "Yes, sure!")]
    with_others = place.score()
    shutil.rmtree(place.folder / "store")
    place.asked = place.asked[-1:]
    assert (with_others["scored"], with_others["tokens"]) == (1, place.score()["tokens"])


def test_an_encoding_of_another_code_is_made_anew(place, monkeypatch):
    def ask_status() -> dict[str, Any]:
        (told,) = status(
            place.requests(),
            store=place.folder / "store",
            cache=place.folder / "cache",
            model=place.model,
            max_length=256,
            dtype="float32",
        )
        return told

    assert (ask_status()["stored"], ask_status()["new"]) == (3, 0)
    monkeypatch.setattr(recipe, "ENCODING", 99)
    assert (ask_status()["stored"], ask_status()["new"]) == (0, 3)


SPECS = {
    "the rule": ("rule: dpo", "rule: simpo"),
    "a rule over tokens": ("rule: dpo", "rule: ld_dpo"),
    "beta": ("beta: 0.1", "beta: 0.7"),
    "the learning rate": ("learning_rate: 1e-4", "learning_rate: 1e-3"),
    "the seed": ("seed: 7", "seed: 8"),
    "the output's folder": ("snapshots/demo", "elsewhere/demo"),
    "the batch size": ("batch_size: 4", "batch_size: 8"),
    "the pairing": ("pairing: all", "pairing: best_vs_worst"),
    "the least gap of a pair": ("pairing: all", "pairing: all, min_margin: 0.5"),
    "the split": ("test: 0.2", "test: 0.5"),
    "the scale of the ratings": ("[1, 5]", "[0, 10]"),
    "the weights": ("score:", "weigh: {weight: {row: margin}}\nscore:"),
    "the table": ("{to: paired, pairing: all}", "{to: unpaired, label: prompt_mean}"),
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A spec whose answers are scored."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save(tmp_path / "model")
    made = Project(tmp_path)
    made.raw(ratings(4, 3))
    trained = "train: {rule: dpo, model: model, beta: 0.1, learning_rate: 1e-4, batch_size: 4}\n"
    scoring = "score: {model: model, max_length: 64, dtype: float32}\n"
    made.spec(SPEC.replace("publish:", scoring + "publish:") + trained)
    assert made.build() == 0
    return made


def missing(project: Project) -> tuple[int, int]:
    """How many completions the spec asks for, and how many the store lacks."""
    ((spec, _),) = read_all(project.folder / "demo.yaml").values()
    (told,) = engine.score_status(spec, Workspace(project.folder / ".rlhf"))
    return told["completions"], told["missing"]


def test_nothing_of_a_spec_but_what_changes_numbers_is_scored_again(project, capfd):
    text = (project.folder / "demo.yaml").read_text()
    for name, (old, new) in SPECS.items():
        assert text.count(old) == 1, name
        changed = text.replace(old, new)
        if name == "the table":
            changed = changed.replace("rule: dpo", "rule: sft").replace(", beta: 0.1", "")
        project.spec(changed)
        completions, lacking = missing(project)
        assert completions > 0 and lacking == 0, name
    project.spec(text)
    rows = ratings(4, 3)
    project.raw(rows[::-1])
    assert missing(project) == (12, 0), "the order of rows"
    project.raw(rows[:5])
    project.raw(rows[5:], "second.jsonl")
    assert missing(project) == (12, 0), "the split into files"
    project.raw(ratings(6, 3)[12:], "third.jsonl")
    assert missing(project) == (18, 6), "new rows"
    project.spec(text.replace("max_length: 64", "max_length: 64, template: plain"))
    assert missing(project) == (18, 18), "the template"


def test_two_scorers_at_once_leave_a_store_with_every_score(place):
    place.asked = [(user(f"What is {i}?"), f"The sea, {i}, " * (1 + i % 4)) for i in range(80)]
    requests = place.requests()
    shutil.rmtree(place.folder / "store")
    code = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rlhf_data.scoring import score
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
score(folder / "requests.parquet", out, store=folder / "store", model={"path": str(folder / "model")}, max_length=256,
      cache=folder / sys.argv[3], token_budget=128, shard_rows=4, device="cpu", progress=False)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, place.folder, place.folder / f"{n}.parquet", f"cache-{n}"])
        for n in range(2)
    ]
    assert [one.wait(timeout=120) for one in running] == [0, 0]
    first, second = (pq.read_table(place.folder / f"{n}.parquet").to_pylist() for n in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["key"] == other["key"] and one["logps"] == pytest.approx(other["logps"], abs=1e-4)
    assert len(first) == 80 and pq.read_table(requests).num_rows == 80
    assert place.score()["scored"] == 0
