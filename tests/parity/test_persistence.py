"""A saved localised model comes back as it was, never without its locality in silence; bad files are named."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import VOCAB, random_ids, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import proloc
from proloc.blocks import OnlineBlocks
from proloc.hf import find_state

# Written by the last code of format 1: a random GPT-2 of width 8, drift blocks, reversed cubic, 2 sinks, dial 0.75.
FORMAT_1 = Path(__file__).parents[1] / "data" / "format-1"
FIXED = proloc.FixedBlocks(5)
ENDS = list(range(5, 15))
CONFIG, ARRAYS = "config.json", "proloc.safetensors"


def drift():
    embedding = torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(3))
    return proloc.DriftBlocks.from_embedding(ENDS, embedding, dim=8, threshold=0.9, min_length=2, max_length=12)


def online():
    embedding = torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(3))
    blocks = OnlineBlocks(ENDS, embedding, penalty=0.02, min_sentences=1, min_sentence=2)
    return blocks.centred([random_ids(1, 60, seed=1)[0].numpy()])


def localised(family="gpt2", blocks=FIXED, schedule=None, **settings):
    schedule = schedule or proloc.Polynomial(beta=1)
    return proloc.localize(tiny_model(family), schedule, blocks, attention="reference", **settings)


def again(folder, **kwargs):
    return proloc.from_pretrained(folder, attention="reference", **kwargs)


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def rewritten(folder, change):
    """Let ``change`` edit the locality setting in a saved ``config.json``, as a hand would."""
    config = json.loads((folder / CONFIG).read_text())
    config["proloc"] = change(config["proloc"])
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize(
    "blocks",
    [
        FIXED,
        proloc.SentenceBlocks(ENDS, min_length=2),
        drift(),
        proloc.RandomBlocks({3: 2, 5: 1, 8: 1}, seed=1),
        proloc.RandomBlocks({3: 2, 5: 1, 8: 1}, leads={(3, 0): 1, (3, 2): 3}),
        online(),
    ],
    ids=lambda blocks: blocks.kind,
)
def test_a_saved_model_comes_back_with_its_locality(tmp_path, family, blocks):
    model = localised(family, blocks, proloc.Reversed(proloc.Polynomial(beta=3)), sinks=2, halo=1)
    proloc.set_dial(model, 0.7)
    model.save_pretrained(tmp_path)
    other, ids = again(tmp_path), random_ids(2, 30)
    assert proloc.describe(other) == proloc.describe(model)
    assert other.config.proloc == model.config.proloc
    assert torch.equal(find_state(other).blocks(ids), blocks(ids))
    assert torch.equal(logits(other, ids), logits(model, ids))


def test_a_model_of_format_1_loads_and_gives_its_logits():
    expected = load_file(FORMAT_1 / "expected.safetensors")
    model = again(FORMAT_1)
    assert proloc.describe(model) == {
        "localities": [1.0, 0.125, 0.0],
        "dial": 0.75,
        "blocks": "drift",
        "sinks": 2,
        "halo": 0,
        "attention": "reference",
        "computed_by": [],
    }
    assert torch.equal(find_state(model).blocks(expected["input_ids"]), expected["block_ids"])
    torch.testing.assert_close(logits(model, expected["input_ids"]), expected["logits"], rtol=0, atol=1e-5)
    assert model.config.proloc["format"] == 3


def test_saving_a_model_of_format_1_makes_it_format_3(tmp_path):
    model = again(FORMAT_1)
    model.save_pretrained(tmp_path)
    other = again(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["proloc"]["format"] == 3
    assert proloc.describe(other) == proloc.describe(model)
    ids = random_ids(2, 30)
    assert torch.equal(logits(other, ids), logits(model, ids))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_localised_and_independent(how):
    model, ids = localised(), random_ids(1, 20)
    other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(other, ids), logits(model, ids))
    with proloc.dial(other, 0.0):
        assert find_state(model).dial == 1.0
        assert not torch.equal(logits(other, ids), logits(model, ids))


def test_saving_other_blocks_over_an_older_save_leaves_no_old_arrays(tmp_path):
    model = localised(blocks=drift())
    model.save_pretrained(tmp_path)
    proloc.set_dial(proloc.localize(model, proloc.Uniform(value=0.5), FIXED), 0.25)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / ARRAYS).exists()
    assert proloc.describe(again(tmp_path))["dial"] == 0.25


def test_the_arrays_come_from_where_the_model_comes_from(tmp_path):
    model, ids = localised(blocks=drift()), random_ids(2, 30)
    model.save_pretrained(tmp_path / "sub")
    assert torch.equal(logits(again(tmp_path, subfolder="sub"), ids), logits(model, ids))


def test_a_save_that_breaks_off_leaves_the_arrays_of_the_one_before(tmp_path, monkeypatch):
    model = localised(blocks=drift())
    model.save_pretrained(tmp_path)
    before = (tmp_path / ARRAYS).read_bytes()
    monkeypatch.setattr("proloc.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    proloc.localize(model, proloc.Uniform(value=1.0), proloc.DriftBlocks(ENDS, torch.eye(VOCAB)))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / ARRAYS).read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_plain_loading_without_proloc_stops_and_names_it(tmp_path, monkeypatch):
    localised().save_pretrained(tmp_path)
    monkeypatch.delitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "proloc")
    with pytest.raises(ValueError, match='attn_implementation="proloc"` is not supported'):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_plainly_loaded_model_stops_at_its_first_forward_and_says_what_to_do(tmp_path):
    localised().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(proloc.ProlocError, match=r"proloc\.from_pretrained\(folder\)"):
        model(random_ids(1, 12))
    with pytest.raises(proloc.ProlocError, match=r"proloc\.from_pretrained\(folder\)"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))(random_ids(1, 12))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_asking_for_another_attention_gives_the_plain_model(tmp_path, family):
    base, ids = tiny_model(family), random_ids(2, 20)
    expected = logits(base, ids)
    proloc.localize(base, proloc.Uniform(value=1.0), FIXED).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(plain, ids), expected)
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=None).config._attn_implementation == "sdpa"
    )


def test_a_plain_model_that_was_made_on_purpose_can_be_localised_again(tmp_path):
    localised().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    model = proloc.localize(plain, proloc.Uniform(value=0.5), FIXED, attention="reference")
    model.save_pretrained(tmp_path / "other")
    assert proloc.describe(again(tmp_path / "other"))["localities"] == [0.5] * 3


def test_a_trainers_save_and_checkpoint_carry_the_locality_and_resume(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in random_ids(8, 16)]

    def tune(steps, resume=False):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=steps, save_steps=2, per_device_train_batch_size=2,
            use_cpu=True, report_to=[], disable_tqdm=True, lr_scheduler_type="constant", learning_rate=1e-3,
        )  # fmt: skip
        trainer = Trainer(localised(blocks=drift()), arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    tune(2)
    resumed, ids = tune(4, resume=True), random_ids(2, 20)
    resumed.save_model(str(tmp_path / "saved"))
    expected = logits(resumed.model, ids)
    assert torch.equal(logits(again(tmp_path / "saved"), ids), expected)
    assert torch.equal(logits(again(tmp_path / "out" / "checkpoint-4"), ids), expected)
    shutil.rmtree(tmp_path / "out")
    assert torch.equal(logits(tune(4).model, ids), expected)


def test_adapters_over_a_saved_localised_model_come_back_over_it_and_not_over_the_plain_one(tmp_path):
    peft = pytest.importorskip("peft")
    localised("llama", drift()).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(again(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = random_ids(2, 20)
    assert torch.equal(logits(again(tmp_path / "adapter"), ids), logits(adapted, ids))
    with pytest.raises(proloc.ProlocError, match=r"proloc\.from_pretrained\(folder\)"):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")(ids)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again(tmp_path / "merged"), ids), logits(merged, ids))


def test_saving_a_model_with_a_built_in_adapter_says_that_the_locality_stays_behind(tmp_path):
    peft = pytest.importorskip("peft")
    model = localised("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="saves only the adapter"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()


@pytest.fixture
def pushed(monkeypatch):
    """The files of every upload to a Hub that is not there."""
    uploads = []

    def create_commit(**kwargs):
        uploads.append({each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in kwargs["operations"]})

    if not hasattr(transformers.utils.hub, "hf_api"):
        pytest.skip("older versions of transformers talk to the Hub in another way")
    api = SimpleNamespace(
        create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id), create_commit=create_commit
    )
    for module in ("transformers.utils.hub", "transformers.modeling_utils"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: api)
    monkeypatch.setattr(ModelCard, "load", lambda *_, **__: (_ for _ in ()).throw(EntryNotFoundError("no card")))
    return uploads


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_what_is_pushed_to_the_hub_is_whole(tmp_path, pushed, how):
    model, ids = localised(blocks=drift()), random_ids(2, 30)
    if how == "push_to_hub":
        model.push_to_hub("someone/something")
    else:
        model.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="someone/something")
    (files,) = pushed
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(logits(again(tmp_path), ids), logits(model, ids))
    assert "with a locality dial" in files["README.md"].decode()
    assert "automatically generated" not in files["README.md"].decode()


def test_a_card_that_a_person_wrote_on_the_hub_is_pushed_back_as_it_was(pushed, monkeypatch):
    monkeypatch.setattr(ModelCard, "load", lambda *_, **__: ModelCard("---\nlicense: mit\n---\n# Mine\n"))
    localised().push_to_hub("someone/something")
    assert "# Mine" in pushed[0]["README.md"].decode()


def test_a_folder_without_locality_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(proloc.ProlocError, match="no locality setting"):
        proloc.from_pretrained(tmp_path)


def blocks_with(**changes):
    return lambda setting: {**setting, "blocks": {**setting["blocks"], **changes}}


def without(key):
    return lambda setting: {name: value for name, value in setting.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "drift", "its format is 'drift'"),
        (lambda s: {**s, "format": 99}, "newer proloc, in format 99"),
        (lambda s: {**s, "format": "2"}, "its format is '2', not 1 to 3"),
        (lambda s: {**s, "format": True}, "its format is True"),
        (without("format"), "its format is None"),
        (without("schedule"), '"schedule" is missing'),
        (without("blocks"), '"blocks" is missing'),
        (without("sinks"), '"sinks" is missing'),
        (without("dial"), '"dial" is missing'),
        (lambda s: {**s, "sinks": "two"}, "\"sinks\" is 'two', but it should be a valid integer"),
        (lambda s: {**s, "sinks": -1}, '"sinks" is -1'),
        (lambda s: {**s, "halo": -1}, '"halo" is -1'),
        (lambda s: {**s, "dial": 1.5}, '"dial" is 1.5, but it should be less than or equal to 1'),
        (lambda s: {**s, "dial": float("nan")}, '"dial" is nan'),
        (lambda s: {**s, "sink": 1}, 'there is no "sink"'),
        (lambda s: {**s, "schedule": {"kind": "septic"}}, "no schedule 'septic'; choose one of"),
        (lambda s: {**s, "schedule": {"kind": "polynomial"}}, "missing 1 required"),
        (lambda s: {**s, "schedule": {"kind": "polynomial", "beta": "5"}}, "beta is '5'"),
        (lambda s: {**s, "schedule": {"kind": "explicit", "values": 3}}, "'explicit' does not take these settings"),
        (lambda s: {**s, "schedule": {"kind": "explicit", "values": [0, 1]}}, "the model has 3 layers"),
        (lambda s: {**s, "schedule": [5]}, r'"schedule" is \[5\]'),
        (blocks_with(kind="clever"), "no 'clever' blocks; choose one of"),
        (blocks_with(kind=3), '"blocks.kind" is 3'),
        (blocks_with(settings={}), "'drift' blocks take"),
        (blocks_with(settings=None), '"blocks.settings" is None'),
        (
            lambda s: blocks_with(settings={**s["blocks"]["settings"], "threshold": "far"})(s),
            "'drift' blocks cannot be made from its settings",
        ),
        (lambda s: blocks_with(settings={**s["blocks"]["settings"], "min_length": 0.5})(s), "min_length must be"),
        (
            lambda s: blocks_with(settings={**s["blocks"]["settings"], "sentence_ends": 7})(s),
            "'drift' blocks cannot be made from its settings",
        ),
        (blocks_with(arrays={"embedding": [61, 9]}), "not from one save"),
        (lambda s: {**s, "figures": [{"what": "perplexity"}]}, '"figures.0.value" is missing'),
    ],
)
def test_a_setting_that_a_hand_spoilt_is_refused_in_one_sentence(tmp_path, change, message):
    localised(blocks=drift()).save_pretrained(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(proloc.ProlocError, match=message) as refused:
        proloc.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_model_of_format_2_knew_no_halo_and_comes_back_the_same(tmp_path):
    model, ids = localised(), random_ids(2, 30)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda setting: {**without("halo")(setting), "format": 2})
    older = again(tmp_path)
    assert proloc.describe(older) == proloc.describe(model)
    assert torch.equal(logits(older, ids), logits(model, ids))


@pytest.mark.parametrize("missing", ["schedule", "blocks", "sinks"])
def test_format_1_is_checked_as_well(tmp_path, missing):
    shutil.copytree(FORMAT_1, tmp_path / "model")
    rewritten(tmp_path / "model", without(missing))
    with pytest.raises(proloc.ProlocError, match=f'"{missing}" is missing'):
        proloc.from_pretrained(tmp_path / "model")


def test_arrays_that_are_missing_cut_short_or_of_another_shape_are_refused(tmp_path):
    localised(blocks=drift()).save_pretrained(tmp_path)
    file = tmp_path / ARRAYS
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(proloc.ProlocError, match=r"cannot read .*copy it from where the model was saved"):
        proloc.from_pretrained(tmp_path)
    save_file({"embedding": torch.zeros(7)}, file)
    with pytest.raises(proloc.ProlocError, match=r"holds arrays \{'embedding': \[7\]\}"):
        proloc.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(proloc.ProlocError, match=r"has no proloc.safetensors, which holds the embedding"):
        proloc.from_pretrained(tmp_path)
    shutil.copytree(FORMAT_1, tmp_path / "old")
    (tmp_path / "old" / ARRAYS).unlink()
    with pytest.raises(proloc.ProlocError, match="missing a required argument: 'embedding'"):
        proloc.from_pretrained(tmp_path / "old")
    save_file({"embedding": torch.zeros(7)}, tmp_path / "old" / ARRAYS)
    with pytest.raises(proloc.ProlocError, match=r"embedding must be \[vocab, dim\]"):
        proloc.from_pretrained(tmp_path / "old")
