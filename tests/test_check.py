"""The static check: what it says of models that are right, of those with a planted fault, and in which words."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import autofit
from autofit.rules import optimizers

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from faults import FAULTS, LR, OPTIMIZERS, RIGHT, Fault, statically, told
from handmade import BASE, Decoder, Options, batch, train


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_nothing_is_wrong_with_a_model_that_is_right(options: dict[str, object]) -> None:
    found = statically(Options(**options))  # type: ignore[arg-type]
    assert found.ok, str(found)
    assert not found.findings


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.static], ids=lambda f: f.name)
def test_a_planted_fault_is_told_where_it_is(fault: Fault) -> None:
    found = statically(Options(**fault.options, fault=fault.name))
    assert told(fault, found), str(found)
    assert found.ok == (fault.name == "eps not scaled")  # a remark: it matters only where eps is large


@pytest.mark.filterwarnings("ignore:SGD. .* is a fused weight")
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_called_wrong_by_any_optimizer(name: str) -> None:
    torch.manual_seed(0)
    mu = autofit.muify(FAMILIES[name].build(), base=FAMILIES[name].main // 4, frozen="plan", unused="freeze")
    for optimizer in OPTIMIZERS:
        groups = mu.param_groups(optimizer, lr=1e-3, **({"beside": {"lr": 1e-3}} if optimizer == "muon" else {}))
        found = autofit.check(mu, param_groups=groups, optimizer=optimizer, lr=1e-3)
        assert found.ok, f"{optimizer}\n{found}"


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "mixtral", "resnet"])
def test_without_mup_every_kind_of_weight_is_told(name: str) -> None:
    found = autofit.analyze(FAMILIES[name].build(), base=FAMILIES[name].main // 4, scheme="sp")
    answer = autofit.check(found, param_groups=torch.optim.AdamW(found.model.parameters(), lr=1e-3))
    assert not answer.ok
    hidden = {p.name for p in found.plan.parameters.values() if p.role == "hidden"}
    assert hidden <= {f.name for f in answer.findings if f.what == "lr" and f.exponent == pytest.approx(1, abs=0.01)}


@pytest.mark.parametrize("scheme", ["u-mup+plain-embedding", "mup+completep", "mup+depth"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_schemes_are_right_in_width(scheme: str, optimizer: str) -> None:
    mu = autofit.muify(FAMILIES["vit"].build(), base=16, scheme=scheme, depth_ratio=2)
    found = autofit.check(mu, param_groups=mu.optimizer(optimizer, lr=1e-3))
    assert found.ok, str(found)


@pytest.mark.parametrize("form", ["table3", "folded", "table9", "one_lr"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_all_forms_are_right(form: str, optimizer: str) -> None:
    mu = autofit.muify(FAMILIES["llama"].build(), base=16, form=form, tunables={"output": 3.0, "hidden": {"lr": 2.0}})
    found = autofit.check(mu, param_groups=mu.optimizer(optimizer, lr=1e-3))
    assert found.ok, str(found)


def test_embeddings_of_u_mup_are_remarked_and_not_called_wrong() -> None:
    mu = autofit.muify(FAMILIES["llama"].build(), base=16, scheme="u-mup")
    found = autofit.check(mu, param_groups=mu.optimizer("adamw", lr=1e-3))
    assert found.ok
    assert [(f.what, f.name, f.exponent) for f in found.findings] == [
        ("lr", "model.embed_tokens.weight", pytest.approx(-0.5))
    ]


def test_values_that_were_changed_after_muify_are_seen() -> None:
    mu = autofit.muify(FAMILIES["llama"].build(), base=16)
    with torch.no_grad():
        mu.model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(4)
    (found,) = autofit.check(mu).findings
    assert (found.what, found.name) == ("init", "model.layers.0.mlp.up_proj.weight")
    assert "multiply its initial values by 0.25" in found.todo


def test_a_multiplier_that_is_gone_is_seen() -> None:
    mu = autofit.muify(FAMILIES["llama"].build(), base=16)
    mu.model.lm_head = nn.Linear(64, 99, bias=False)
    with pytest.raises(autofit.AutofitError, match="lm_head"):
        mu.param_groups("adamw", lr=1e-3)
    groups = [{"params": list(mu.model.parameters()), "lr": 1e-3}]
    assert not autofit.check(mu, param_groups=groups).ok


def test_the_finding_says_where_and_what_would_be_right() -> None:
    found = statically(Options(fault="hidden lr not scaled"))
    first = next(f for f in found.findings if f.name.endswith("out.weight"))
    assert (first.what, first.wanted) == ("lr", 0.0)
    assert first.exponent == pytest.approx(1)
    assert "lr 0.00025 instead of 0.001" in first.todo
    assert "self.out(" in first.where
    assert "handmade.py" in first.where
    assert any("a sum of r aligned terms r" in step for step in first.steps)
    shown = str(found)
    assert shown.startswith("wrong: ")
    assert "blocks.{0..1}.attention.out.weight" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_base_lr_is_found_and_said() -> None:
    wide, optimizer = train(Decoder(4 * BASE, Options(fault="embedding lr scaled")), 1e-3)
    found = autofit.check(wide, batch(Options()), base=Decoder(BASE, Options()), param_groups=optimizer)
    assert [f.name for f in found.findings] == ["wte.weight"]
    assert any("lr is taken to be 0.001" in note for note in found.notes)


class Aside(nn.Module):
    """A layer whose result is thrown away, and one that is never called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.lost, self.idle = (
            nn.Linear(4, width),
            nn.Linear(width, 2),
            *(nn.Linear(4, width) for _ in "ab"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.b(h + self.lost(x).detach())


def test_what_weight_norm_divides_by_its_length() -> None:
    """Whatever the initial values, rows have the learned lengths; learning rates are those without it."""
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), weight_norm(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 3))
    mu = autofit.muify(net, torch.zeros(2, 6), base=16)
    assert autofit.check(mu).ok
    rates = [{"params": [p], "lr": 1e-3} for p in net.parameters()]
    wrong = autofit.check(mu, param_groups=rates).findings
    assert ("lr", "2.parametrizations.weight.original1") in {(f.what, f.name) for f in wrong if f.severe}


def test_lengths_that_weight_norm_shares_among_all_rows() -> None:
    """Of each tap of wav2vec2's positional convolution: they grow with the width, and what they scale does not."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}
    sizes |= {"conv_dim": (64,), "conv_kernel": (10,), "conv_stride": (5,), "num_feat_extract_layers": 1}
    config = transformers.Wav2Vec2Config(**sizes, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    assert autofit.check(autofit.muify(transformers.Wav2Vec2Model(config), base=64)).ok


def test_what_cannot_be_told_is_said() -> None:
    mu = autofit.muify(Aside(64), torch.zeros(3, 4), base=Aside(16), strict=False)
    found = autofit.check(mu, param_groups=mu.optimizer("sgd", lr=0.1))
    assert any("no gradient reaches" in n and "lost.weight" in n for n in found.notes), found.notes
    assert any("does not reach" in n and "idle.weight" in n for n in found.notes), found.notes


def test_a_factory_and_groups_do_as_well() -> None:
    wide, optimizer = train(Decoder(2 * BASE, Options()), 1e-3)
    groups = optimizer.param_groups
    found = autofit.check(wide, batch(Options()), base=lambda: Decoder(BASE, Options()), param_groups=groups)
    assert found.ok, str(found)
    assert found.to_json()["ok"] is True


def test_at_the_base_there_is_nothing_to_check() -> None:
    model, optimizer = train(Decoder(BASE, Options(fault="hidden lr not scaled")), 1e-3)
    found = autofit.check(model, batch(Options()), base=Decoder(BASE, Options()), param_groups=optimizer)
    assert found.ok
    assert "this is the base" in found.width


def test_what_cannot_be_checked_is_refused() -> None:
    wide, optimizer = train(Decoder(2 * BASE, Options()), 1e-3)
    with pytest.raises(autofit.BaseError, match="a number does not tell"):
        autofit.check(wide, batch(Options()), base=64, param_groups=optimizer)
    with pytest.raises(autofit.OptimizerError, match="no groups"):
        autofit.check(wide, batch(Options()), base=Decoder(BASE, Options()))
    with pytest.raises(autofit.OptimizerError, match="no parameter of the model"):
        autofit.check(
            wide, batch(Options()), base=Decoder(BASE, Options()), param_groups=train(Decoder(64, Options()), 1.0)[1]
        )
    mu = autofit.muify(FAMILIES["llama"].build(), base=16)
    with pytest.raises(autofit.LoweringError, match="muified"):
        autofit.check(mu.model, base=FAMILIES["llama"].build(), param_groups=mu.optimizer("adamw", lr=1.0))
    with pytest.raises(autofit.BaseError, match="is muified"):
        autofit.check(FAMILIES["llama"].build(), base=mu.model, param_groups=[])
    mu.bake()
    with pytest.raises(autofit.LoweringError, match="baked"):
        autofit.check(mu)


GPT2 = {"n_embd": 64, "n_head": 2, "n_layer": 2, "vocab_size": 99, "base_n_embd": 64}
LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1}
LLAMA |= {"head_dim": 16, "num_hidden_layers": 2, "vocab_size": 99, "base_hidden_size": 64}
WIDE = {"n_embd", "n_head", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"}


@pytest.mark.parametrize(("name", "fields"), [("gpt2", GPT2), ("llama", LLAMA)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_exported_file_is_right_by_itself(name: str, fields: dict[str, int], optimizer: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "exported"))
    file = importlib.import_module(name)
    torch.manual_seed(0)
    wide = file.build(**{k: 4 * v if k in WIDE else v for k, v in fields.items()})
    example = {"input_ids": torch.zeros(2, 7, dtype=torch.long)}
    groups = file.param_groups(wide, optimizer, lr=1e-3)
    base = file.build(**fields)
    found = autofit.check(wide, example, base=base, param_groups=groups, optimizer=optimizer, lr=1e-3)
    assert found.ok, str(found)
    assert not found.findings
    for group in groups:
        group["lr"] = 1e-3
    assert not autofit.check(wide, example, base=base, param_groups=groups, optimizer=optimizer, lr=1e-3).ok


def test_on_meta_and_at_any_size() -> None:
    with torch.device("meta"):
        model = FAMILIES["llama"].build(hidden_size=4096, intermediate_size=16384, num_attention_heads=256)
    mu = autofit.muify(model, base=256)
    assert autofit.check(mu).ok


def test_the_list_of_optimizers_is_that_of_the_table() -> None:
    assert set(OPTIMIZERS) <= set(optimizers())
    assert set(LR) == {"adamw", "sgd"}
