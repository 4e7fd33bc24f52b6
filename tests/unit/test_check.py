"""A check that cannot fail shows nothing: every way of being wrong is found."""

import dataclasses
import functools
import json
from dataclasses import replace

import pytest
import torch
from tiny import VOCAB, random_ids, tiny_model
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import proloc
from proloc import cli
from proloc.attention import Choice, KeyRanges, layout
from proloc.check import WAYS, Finding, Subject, check_model, report_dict, run_way
from proloc.check.finding import Outcome, difference, worst
from proloc.check.table import conclusion
from proloc.hf import cache, routing
from proloc.hf.state import LocalityState, Recorder
from proloc.locality import Layout

BY_NAME = {way.name: way for way in WAYS}


def subject(family="llama", **kwargs):
    blocks = proloc.SentenceBlocks(list(range(5, 15)), min_length=2)
    return Subject(tiny_model(family), blocks, random_ids(2, 24), **kwargs)


def verdict(name, examined=None):
    return run_way(examined or subject(), BY_NAME[name]).verdict


def patch_relation(monkeypatch, change):
    real = routing.relate
    monkeypatch.setattr(routing, "relate", lambda layout, positions, visible: change(real, layout, positions, visible))


def patch_attention(monkeypatch, change):
    """Change every backend that the automatic choice may take."""
    real = Choice.attend.fget
    monkeypatch.setattr(Choice, "attend", property(lambda self: functools.partial(change, real(self))))


def test_a_sound_model_passes():
    assert {verdict(name) for name in ("dial 0", "dial", "future", "other blocks")} <= {"exact", "equal"}


ON_BLOCKS = [
    "dial",
    "future",
    "other blocks",
    "left padding",
    "right padding",
    "packed rows",
    "statistics",
    "static cache",
    "sliding cache",
    "local cache",
    "beam search",
    "gradients",
    "checkpointing",
    "saved",
]


@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("name", ON_BLOCKS)
def test_a_sound_model_with_leads_passes(name, halo):
    blocks = proloc.RandomBlocks({2: 1, 3: 1, 6: 1}, leads={(2, 1): 1, (3, 4): 1})
    model = tiny_model("mistral" if name == "sliding cache" else "llama")
    assert verdict(name, Subject(model, blocks, random_ids(2, 24), halo=halo)) in {"exact", "equal"}


def test_a_lead_that_is_lost_is_found(monkeypatch):
    blocks = proloc.RandomBlocks({2: 1, 3: 1, 6: 1}, leads={(2, 1): 1, (3, 4): 1})
    real = layout.home_starts
    monkeypatch.setattr(layout, "home_starts", lambda ids, halo: real(ids & 0xFFFFFFFF, halo))
    assert verdict("dial", Subject(tiny_model(), blocks, random_ids(2, 24))) == "FAILED"


def test_a_causal_leak_is_found(monkeypatch):
    patch_relation(monkeypatch, lambda real, layout, at, visible: real(layout, at, torch.ones_like(visible)))
    assert verdict("future") == "FAILED"
    assert verdict("dial 0") == "FAILED"


def test_a_mask_that_hides_too_little_is_found(monkeypatch):
    def one_more(real, layout, at, visible):
        relation = real(layout, at, visible)
        first = torch.arange(relation.shape[-1]) == 2
        return torch.where(first & (relation == 1), 2, relation).to(torch.uint8)

    patch_relation(monkeypatch, one_more)
    assert verdict("other blocks") == "FAILED"
    assert verdict("dial") == "FAILED"


def test_padding_that_is_seen_is_found(monkeypatch):
    def see_padding(real, layout, at, visible):
        causal = torch.arange(visible.shape[-1]) <= at[:, None]
        return real(layout, at, causal.expand_as(visible))

    patch_relation(monkeypatch, see_padding)
    assert verdict("left padding") == "FAILED"


def test_a_dial_that_does_nothing_is_found(monkeypatch):
    monkeypatch.setattr(LocalityState, "set_dial", lambda self, dial: setattr(self, "dial", dial))
    assert verdict("dial") == "FAILED"
    assert verdict("other blocks") == "FAILED"


def test_layers_that_mix_up_their_localities_are_found(monkeypatch):
    examined = subject()
    twin = examined.twin()
    real = LocalityState.set_dial

    def reversed_layers(self, dial):
        real(self, dial)
        self.retain.copy_(self.retain.flip(0))

    monkeypatch.setattr(LocalityState, "set_dial", reversed_layers)
    assert examined.twin() is twin
    assert verdict("dial", examined) == "FAILED"


def test_a_fast_path_that_differs_from_the_reference_is_found(monkeypatch):
    patch_attention(monkeypatch, lambda real, q, *args, **kwargs: real(1.01 * q, *args, **kwargs))
    assert verdict("dial") == "FAILED"
    assert verdict("dynamic cache") == "FAILED"


def test_wrong_positions_in_a_cache_are_found(monkeypatch):
    real = KeyRanges.from_blocks
    monkeypatch.setattr(KeyRanges, "from_blocks", lambda blocks, sinks, starts, _, halo: real(blocks, sinks, starts))
    assert verdict("dynamic cache") == "FAILED"
    assert verdict("dial") in ("exact", "equal"), "a forward pass without a cache does not notice"


def test_a_local_cache_that_drops_too_much_is_found(monkeypatch):
    real = cache._home_starts
    monkeypatch.setattr(cache, "_home_starts", lambda layout: real(layout) + 1)
    monkeypatch.setattr(cache.LocalCache, "_check", lambda *_: None)
    assert verdict("local cache") == "FAILED"
    assert verdict("no cache") in ("exact", "equal")


def test_a_local_cache_that_drops_the_halo_is_found(monkeypatch):
    real = cache._home_starts
    monkeypatch.setattr(cache, "_home_starts", lambda layout: real(dataclasses.replace(layout, halo=0)))
    monkeypatch.setattr(cache.LocalCache, "_check", lambda *_: None)
    assert verdict("local cache", subject(halo=1)) == "FAILED"
    assert verdict("local cache", subject(halo=0)) in ("exact", "equal")


def test_a_halo_that_is_forgotten_or_too_wide_is_found(monkeypatch):
    real = LocalityState.layout

    def other(self, *args):
        return dataclasses.replace(real(self, *args), halo=1)

    monkeypatch.setattr(LocalityState, "layout", other)
    for halo in (0, 2):
        assert verdict("dial", subject(halo=halo)) == "FAILED"
        assert verdict("gradients", subject(halo=halo)) == "FAILED"
    assert verdict("other blocks", subject(halo=0)) == "FAILED"
    assert verdict("dial", subject(halo=1)) in ("exact", "equal")


def test_a_local_cache_that_reads_all_it_holds_is_found(monkeypatch):
    real = KeyRanges.at

    def all_home(self, positions):
        ranges = real(self, positions)
        return dataclasses.replace(ranges, home_start=ranges.visible_start)

    monkeypatch.setattr(KeyRanges, "at", all_home)
    assert verdict("local cache") == "FAILED"


def test_a_local_cache_that_forgets_its_sinks_is_found(monkeypatch):
    real = cache.LocalCache.follow

    def without_sinks(self, state, layout):
        return real(self, state, Layout(layout.block_ids, torch.zeros_like(layout.sinks)))

    monkeypatch.setattr(cache.LocalCache, "follow", without_sinks)
    assert verdict("local cache") == "FAILED"


def test_a_gradient_that_is_cut_is_found(monkeypatch):
    patch_attention(monkeypatch, lambda real, q, *args, **kwargs: real(q.detach(), *args, **kwargs))
    assert verdict("gradients") == "FAILED"


def test_a_statistic_that_is_wrong_is_found(monkeypatch):
    real = Recorder.record

    def one_per_cent_off(self, layer, attention, keys):
        real(self, layer, replace(attention, fidelity_undialled=0.99 * attention.fidelity_undialled), keys)

    monkeypatch.setattr(Recorder, "record", one_per_cent_off)
    assert verdict("statistics") == "FAILED"


def test_a_recurrence_that_no_mask_can_stop_is_found(monkeypatch):
    real = LlamaDecoderLayer.forward

    def mixing(self, hidden_states, *args, **kwargs):
        return real(self, hidden_states + 0.1 * hidden_states.roll(1, dims=1), *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", mixing)
    assert verdict("other blocks") == "FAILED"


def test_a_saved_model_that_forgets_its_sinks_is_found(monkeypatch):
    from proloc.hf import loading

    real = loading.localize
    monkeypatch.setattr(loading, "localize", lambda *args, sinks, **kwargs: real(*args, sinks=0, **kwargs))
    assert verdict("saved", subject(sinks=3)) == "FAILED"


def test_compilation_for_every_position_is_found(monkeypatch):
    examined = subject()
    state = examined.twin().__dict__["_proloc_state"]

    def specialised(real, q, k, v, ranges, retain, **kwargs):
        return real(q, k, v, ranges, torch.tensor(1.0 - state.dial), **kwargs)

    patch_attention(monkeypatch, specialised)
    assert verdict("compile", examined) == "FAILED"


def test_not_a_number_is_never_within_a_limit():
    assert Outcome(float("nan")).judged() == "FAILED"
    assert Outcome(None).judged() == "FAILED"
    assert worst([0.0, float("nan"), 1.0]) != worst([0.0, float("nan"), 1.0])
    assert difference(torch.zeros(2), torch.zeros(3)) != difference(torch.zeros(2), torch.zeros(3))


def test_an_exception_is_a_failure_and_a_refusal_is_not(monkeypatch):
    examined = subject()
    monkeypatch.setattr(Subject, "logits", lambda *_, **__: 1 / 0)
    assert run_way(examined, BY_NAME["future"]).note == "ZeroDivisionError: division by zero"

    def refuse(*_, **__):
        raise proloc.ProlocError("not here")

    monkeypatch.setattr(Subject, "logits", refuse)
    finding = run_way(examined, BY_NAME["future"])
    assert (finding.verdict, finding.note) == ("refused", "not here")


def test_texts_that_show_nothing_are_refused_or_fail():
    with pytest.raises(proloc.ProlocError, match="two texts of at least 16 tokens"):
        Subject(tiny_model(), proloc.FixedBlocks(5), random_ids(1, 24))
    one_block = Subject(tiny_model(), proloc.FixedBlocks(99), random_ids(2, 24))
    finding = run_way(one_block, BY_NAME["dial"])
    assert finding.verdict == "FAILED"
    assert "nothing is shown" in finding.note


def test_an_architecture_that_cannot_be_localised_is_refused_at_once():
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=VOCAB))
    with pytest.raises(proloc.ProlocError, match="does not route its attention"):
        next(check_model(Subject(bloom, proloc.FixedBlocks(5), random_ids(2, 24))))


def test_the_conclusion_names_what_failed():
    findings = [Finding("dial", "it works", "FAILED", 1.0, 0.1), Finding("future", "no leak", "exact", 0.0, 0.1)]
    report = report_dict(subject(), "mine", findings)
    assert report["passed"] is False
    assert "FAILED: dial" in conclusion(report)


def test_the_command_checks_a_folder_and_prints_json(model_folder, capsys, words, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(words)
    code = cli.main(["check", str(model_folder), "--text", str(text), "--tokens", "44", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["passed"]
    assert [finding["way"] for finding in report["findings"]] == [way.name for way in WAYS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "10"], "a check needs 16 or more"),
        (["--tokens", "90"], "--tokens is 90"),
        (["--text", "nowhere.txt"], "cannot read the text nowhere.txt"),
    ],
)
def test_bad_arguments_get_a_sentence(model_folder, capsys, arguments, message):
    assert cli.main(["check", str(model_folder), *arguments]) == 2
    assert message in capsys.readouterr().err
