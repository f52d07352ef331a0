"""Models are found by reference, and equal weights have equal hashes."""

import shutil
import subprocess
import sys

import pytest
import torch

from rlhf_data import files
from rlhf_data.scoring import identity, models
from tests import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model.save(path)
    return path


def test_a_model_loads_in_eval_mode_in_the_dtype_of_its_device(folder, tmp_path):
    model, tokenizer = models.load({"path": str(folder)}, device="cpu", cache=tmp_path)
    assert (model.training, model.dtype, tokenizer.eos_token) == (False, torch.float32, "<|im_end|>")
    assert models.load({"path": str(folder)}, dtype="bfloat16", cache=tmp_path)[0].dtype == torch.bfloat16
    assert (models.dtype_name("auto", "cpu"), models.dtype_name("auto", "cuda:0")) == ("float32", "bfloat16")


def test_a_hash_follows_weights_and_config_wherever_they_lie(folder, tmp_path):
    here = identity.content_hash({"path": str(folder)}, tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert identity.content_hash({"path": str(copy)}, tmp_path) == here
    (copy / "config.json").write_text(
        (copy / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06')
    )
    assert identity.content_hash({"path": str(copy)}, tmp_path) != here
    other = tiny_model.save(tmp_path / "other", seed=1)
    assert identity.content_hash(other, tmp_path) != here
    assert identity.tokenizer_hash(other, tmp_path) == identity.tokenizer_hash({"path": str(folder)}, tmp_path)


def test_a_hash_is_of_the_files_that_are_loaded_not_of_what_lies_beside_them(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "value_head.safetensors").write_bytes(b"another model's")
    hashes = []
    for weights in (b"one", b"two"):
        (tmp_path / "pytorch_model.bin").write_bytes(weights)
        hashes.append(identity.content_hash({"path": str(tmp_path)}, tmp_path / "cache"))
    assert hashes[0] != hashes[1]


def test_a_file_is_read_once_for_its_hash(folder, tmp_path, monkeypatch):
    before = identity.content_hash({"path": str(folder)}, tmp_path)
    monkeypatch.setattr(files, "digest", None)
    assert identity.content_hash({"path": str(folder)}, tmp_path) == before


def test_identity_and_the_package_import_without_torch():
    code = "import sys; import rlhf_data.scoring.identity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"path": "/no/such/folder"}, "no model folder at /no/such/folder"),
        ({"path": "{folder}", "gguf_file": "b.gguf"}, r"no file b.gguf in .*its GGUF files: a.gguf"),
        ({"path": "{folder}"}, r"has no config.json: set gguf_file to one of a.gguf"),
        ({"path": ""}, r"a model is \{path, gguf_file\?, revision\?, adapter\?\}"),
        ({"path": "{folder}", "gguf": "a.gguf"}, "a model is"),
    ],
)
def test_a_wrong_reference_is_refused_with_what_is_there(reference, message, tmp_path):
    (tmp_path / "a.gguf").touch()
    reference = {name: value.format(folder=tmp_path) for name, value in reference.items()}
    with pytest.raises(ValueError, match=message):
        identity.content_hash(reference, tmp_path)


def test_a_folder_without_weights_or_tokenizer_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no weights"):
        identity.content_hash({"path": str(tmp_path)}, tmp_path / "cache")
    with pytest.raises(ValueError, match="no tokenizer files"):
        identity.tokenizer_hash({"path": str(tmp_path)}, tmp_path / "cache")


def test_a_hub_model_that_cannot_be_had_is_named(monkeypatch, tmp_path):
    def unreachable(name, **_):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        ValueError, match=r"the hub gave no model org/name at revision abc .ConnectionError.: no network"
    ):
        identity.find({"path": "org/name", "revision": "abc"})


def test_a_wrong_dtype_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'fp8': it must be auto, float32"):
        models.load({"path": str(folder)}, dtype="fp8", cache=tmp_path)
