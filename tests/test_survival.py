"""What muify did to a model survives what people do to models: copies, wrappers, compilers, casts, sharding.

Four models, each with multipliers that differ from one. Every transform is also applied to an untouched model,
which says how keys and ties must look afterwards.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from inputs import logits
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, stack_module_state
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

import autofit
from autofit import lowering, optim

WIDTH = 64
VOCABULARY = 97
G = torch.Generator().manual_seed(0)
IDS = torch.randint(3, VOCABULARY, (4, 8), generator=G)
FEATURES = torch.randn(8, 10, generator=G)
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
HALF, ROOT = 0.5, 0.5**0.5  # width 64 over base 32: readouts get 1/2, attention logits 1/sqrt(2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small wait longer for a second thread than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class LanguageModel(nn.Module):
    """LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


def gpt2() -> nn.Module:
    """Tied, without dropout."""
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, n_positions=32, **SPECIAL, **quiet)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    """Untied, with grouped queries."""
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        **SPECIAL,
    )
    return transformers.LlamaForCausalLM(config)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def fold_gpt2(model: Any) -> None:
    attention = model.transformer.h[0].attn.c_attn  # queries, keys and values side by side
    attention.weight[:, :WIDTH] *= ROOT
    attention.bias[:WIDTH] *= ROOT
    model.lm_head.weight = nn.Parameter(model.lm_head.weight * HALF)  # the embedding stays


def fold_llama(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.weight *= ROOT
    model.lm_head.weight *= HALF


def fold_mlp(model: Any) -> None:
    model[4].weight *= HALF


def fold_lstm(model: Any) -> None:
    model.head.weight *= HALF


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        make: makes it, untouched.
        inputs: keyword arguments of forward.
        multipliers: the multipliers it must get, by module path.
        fold: puts the same multipliers into the weights of an untouched model, by hand.
        layer: a module with a multiplier, whose weight is not tied.
    """

    make: Callable[[], nn.Module]
    inputs: dict[str, Any]
    multipliers: dict[str, float]
    fold: Callable[[Any], None]
    layer: str
    grow: Literal["heads", "head_dim"] = "heads"


TOKENS = {"input_ids": IDS, "use_cache": False}
CASES = {
    "gpt2": Case(
        gpt2,
        TOKENS,
        {"transformer.h.0.attn.c_attn": ROOT, "lm_head": HALF},
        fold_gpt2,
        "transformer.h.0.attn.c_attn",
        "head_dim",
    ),
    "llama": Case(
        llama, TOKENS, {"model.layers.0.self_attn.q_proj": ROOT, "lm_head": HALF}, fold_llama, "lm_head", "head_dim"
    ),
    "mlp": Case(mlp, {"input": FEATURES}, {"4": HALF}, fold_mlp, "4"),
    "lstm": Case(LanguageModel, {"ids": IDS}, {"head": HALF}, fold_lstm, "head"),
}
TRANSFORMERS = ("gpt2", "llama")
every_model = pytest.mark.parametrize("name", CASES)


def plain(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CASES[name].make()


def muify(name: str, model: nn.Module, init: Literal["auto", "keep"] = "auto") -> autofit.Analysis:
    case = CASES[name]
    return autofit.muify(model, case.inputs, base=WIDTH // 2, grow=case.grow, init=init)


def muified(name: str, seed: int = 0) -> autofit.Analysis:
    return muify(name, plain(name, seed))


@functools.cache
def kept(name: str, seed: int = 0) -> autofit.Analysis:
    """One for all tests that change nothing about it."""
    return muified(name, seed)


@torch.no_grad()
def folded(name: str, values: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> nn.Module:
    """An untouched model with these values and with the multipliers in its weights."""
    model = plain(name)
    model.load_state_dict(values)
    model.to(dtype)
    CASES[name].fold(model)
    return model


def moved(name: str, to: torch.dtype | str) -> dict[str, Any]:
    """Inputs on another device, or floats among them in another precision."""
    return {
        k: v.to(to) if isinstance(v, torch.Tensor) and (isinstance(to, str) or v.is_floating_point()) else v
        for k, v in CASES[name].inputs.items()
    }


def output(name: str, call: Callable[..., Any]) -> torch.Tensor:
    return logits(call, CASES[name].inputs).detach()


def groups(model: nn.Module, plan: autofit.Plan) -> list[dict[str, Any]]:
    return optim.param_groups(model, plan, "adamw", lr=1e-3)


def settings(model: nn.Module, plan: autofit.Plan) -> dict[str, tuple[float, ...]]:
    """Learning rate, weight decay and epsilon by parameter name."""
    return {n: (g["lr"], g["weight_decay"], g["eps"]) for g in groups(model, plan) for n in g["param_names"]}


def trained(name: str, call: nn.Module, model: nn.Module, plan: autofit.Plan) -> torch.Tensor:
    """Output after one AdamW step on the parameters of ``model``, which ``call`` wraps."""
    optimizer = torch.optim.AdamW(groups(model, plan))
    logits(call, CASES[name].inputs).square().mean().backward()
    optimizer.step()
    return output(name, call)


def ties(model: nn.Module) -> set[tuple[str, str]]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {(a, b) for a in named for b in named if a < b and named[a] is named[b]}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by name, taken off the model."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def scale(values: torch.Tensor) -> float:
    return values.abs().max().item()


@dataclass(frozen=True)
class Before:
    """A muified model to which nothing was done."""

    output: torch.Tensor
    trained: torch.Tensor
    keys: list[str]
    settings: dict[str, tuple[float, ...]]


@functools.cache
def before(name: str) -> Before:
    mu = muified(name)
    keys, first = list(plain(name).state_dict()), output(name, mu.model)
    return Before(first, trained(name, mu.model, mu.model, mu.plan), keys, settings(mu.model, mu.plan))


@every_model
def test_the_models_have_multipliers_that_act(name: str) -> None:
    mu, case = kept(name), CASES[name]
    assert {s.carrier.path: s.multiplier for s in mu.plan.sites} == pytest.approx(case.multipliers)
    assert len({lr for lr, *_ in settings(mu.model, mu.plan).values()}) > 1
    values = mu.model.state_dict()
    torch.testing.assert_close(output(name, folded(name, values)), before(name).output, rtol=0, atol=1e-6)
    untouched = plain(name)
    untouched.load_state_dict(values)
    difference = output(name, untouched) - before(name).output
    assert scale(difference) > 0.1 * scale(before(name).output)
    assert list(values) == before(name).keys


@dataclass(frozen=True)
class Subject:
    """What a transform gets: a model, the inputs, and a way to make another model of the kind."""

    model: nn.Module
    inputs: dict[str, Any]
    another: Callable[[], nn.Module]


def averaged(subject: Subject) -> nn.Module:
    average = AveragedModel(subject.model)
    for _ in range(2):
        average.update_parameters(subject.model)
    return average


def pickled(subject: Subject) -> nn.Module:
    return pickle.loads(pickle.dumps(subject.model))


def saved(subject: Subject) -> nn.Module:
    file = io.BytesIO()
    torch.save(subject.model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(subject: Subject) -> nn.Module:
    other = subject.another()
    other.load_state_dict(subject.model.state_dict())
    return other


def assigned(subject: Subject) -> nn.Module:
    other = subject.another()
    other.load_state_dict(subject.model.state_dict(), assign=True)
    return tie_again(other)


def tie_again(model: nn.Module) -> nn.Module:
    """torch forgets ties when it replaces parameters; transformers has a call for that."""
    if isinstance(model, transformers.PreTrainedModel):
        model.tie_weights()
    return model


@torch.no_grad()
def emptied(subject: Subject, through: str = "cpu") -> nn.Module:
    """Give up all values on a device and load them again; buffers that no state_dict holds are put back by hand."""
    model = subject.model
    values = copy.deepcopy(model.state_dict())
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    tie_again(model.to(through).to_empty(device="cpu")).load_state_dict(values)
    for name, buffer in buffers.items():
        model.get_buffer(name).copy_(buffer)
    return model


def exported(subject: Subject) -> nn.Module:
    return torch.export.export(subject.model, (), subject.inputs, strict=False).module()


def sharded(subject: Subject) -> nn.Module:
    """Layers one by one, then the rest, as the FSDP2 tutorial does."""
    mesh = init_device_mesh("cpu", (1,))
    for layers in list(subject.model.modules()):
        if isinstance(layers, nn.ModuleList | nn.Sequential):
            for layer in layers:
                fully_shard(layer, mesh=mesh)
    return fully_shard(subject.model, mesh=mesh)


TRANSFORMS: dict[str, Callable[[Subject], nn.Module]] = {
    "deepcopy": lambda s: copy.deepcopy(s.model),
    "moving average": averaged,
    "pickle": pickled,
    "torch.save": saved,
    "state_dict into another model": loaded,
    "state_dict assigned": assigned,
    "to_empty": emptied,
    "to meta, to_empty": lambda s: emptied(s, "meta"),
    "to double and back": lambda s: s.model.double().to("cpu").float(),
    "compile": lambda s: torch.compile(s.model, fullgraph=True, backend="eager"),
    "export": exported,
    "DDP": lambda s: DistributedDataParallel(s.model),
    "FSDP2": sharded,
}
PREFIXES = {"moving average": "module.", "compile": "_orig_mod.", "DDP": "module."}


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process on the CPU."""
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def dynamo() -> Iterator[None]:
    """No compiled code from before or for later; ``nn.LSTM`` is compiled too."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("process_group", "dynamo")
@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights:UserWarning")  # torch.export, nn.LSTM
@pytest.mark.parametrize("transform", TRANSFORMS)
@every_model
def test_a_transformed_model(name: str, transform: str) -> None:
    """Bit for bit the same output, keys and ties of an untouched model, the same settings, the same next step."""
    apply, prefix = TRANSFORMS[transform], PREFIXES.get(transform, "")
    inputs = CASES[name].inputs
    mu = muified(name)
    after = apply(Subject(mu.model, inputs, lambda: muified(name, seed=1).model))
    control = apply(Subject(plain(name), inputs, lambda: plain(name, seed=1)))
    inner = after.get_submodule(prefix.rstrip("."))

    assert torch.equal(output(name, after), before(name).output)
    keys = list(after.state_dict())
    assert keys == list(control.state_dict())
    assert [k.removeprefix(prefix) for k in keys if k.startswith(prefix)] == before(name).keys
    assert ties(after) == ties(control)
    assert lowering.is_muified(after) or transform == "export"  # a graph has the multipliers as ops
    assert settings(inner, mu.plan) == before(name).settings
    assert torch.equal(trained(name, after, inner, mu.plan), before(name).trained)


def test_assignment_splits_a_tie_as_in_an_untouched_model() -> None:
    """Two parameters on one memory, until somebody calls ``tie_weights``."""
    model: Any
    for model in (plain("gpt2", seed=1), muified("gpt2", seed=1).model):
        assert model.lm_head.weight is model.transformer.wte.weight
        model.load_state_dict(kept("gpt2").model.state_dict(), assign=True)
        assert model.lm_head.weight is not model.transformer.wte.weight
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


def test_groups_hold_both_halves_of_a_split_tie() -> None:
    mu = muified("gpt2", seed=1)
    mu.model.load_state_dict(kept("gpt2").model.state_dict(), assign=True)
    held = {id(p) for g in groups(mu.model, mu.plan) for p in g["params"]}
    assert held == {id(p) for p in mu.model.parameters()}


REGISTER = (nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook)


@every_model
def test_hooks_registered_after_unpickling_displace_no_multiplier(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch numbers hooks from zero in every process: here each load is a new beginning."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    mu = muified(name)
    data, numbers = pickle.dumps(mu.model), RemovableHandle.next_id
    for path, register in itertools.product(CASES[name].multipliers, REGISTER):
        RemovableHandle.next_id = 0
        model = pickle.loads(data)
        for _ in range(numbers):
            register(model.get_submodule(path), lambda *call: None)
        assert torch.equal(output(name, model), before(name).output)


@every_model
def test_double_precision_is_exact(name: str) -> None:
    mu = muified(name)
    by_hand = folded(name, mu.model.state_dict(), torch.float64)
    inputs = moved(name, torch.float64)
    torch.testing.assert_close(logits(mu.model.double(), inputs), logits(by_hand, inputs), rtol=0, atol=1e-12)
    assert settings(mu.model, mu.plan) == before(name).settings


@every_model
def test_bfloat16_is_near_and_stays_bfloat16(name: str) -> None:
    """Numbers have 8 bits: within 2% of the largest output."""
    mu = muified(name)
    found = logits(mu.model.bfloat16(), moved(name, torch.bfloat16))
    assert found.dtype == torch.bfloat16
    near = 0.02 * scale(before(name).output)
    torch.testing.assert_close(found.float().detach(), before(name).output, rtol=0, atol=near)
    assert list(mu.model.state_dict()) == before(name).keys
    assert settings(mu.model, mu.plan) == before(name).settings


@every_model
def test_meta_keeps_the_shape_forward(name: str) -> None:
    mu, inputs = muified(name), moved(name, "meta")
    inputs.pop("use_cache", None)  # without a cache transformers looks at values
    found = logits(mu.model.to("meta"), inputs)
    assert found.is_meta
    assert found.shape == before(name).output.shape
    assert list(mu.model.state_dict()) == before(name).keys
    assert settings(tie_again(mu.model), mu.plan) == before(name).settings


@every_model
def test_functional_call(name: str) -> None:
    mu, other = kept(name), kept(name, seed=1)
    values = {**dict(other.model.named_parameters()), **dict(other.model.named_buffers())}

    def call(**inputs: Any) -> Any:
        return functional_call(mu.model, values, (), inputs)

    assert torch.equal(output(name, call), output(name, other.model))
    assert torch.equal(output(name, mu.model), before(name).output)
    assert list(mu.model.state_dict()) == before(name).keys
    assert settings(mu.model, mu.plan) == before(name).settings


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("name", [n for n in CASES if n != "lstm"])  # torch has no batching rule for aten::lstm
def test_vmap_over_stacked_models(name: str) -> None:
    mu, other = kept(name), kept(name, seed=1)

    def call(parameters: Any, buffers: Any) -> torch.Tensor:
        return logits(lambda **inputs: functional_call(mu.model, (parameters, buffers), (), inputs), CASES[name].inputs)

    found = torch.vmap(call)(*stack_module_state([mu.model, other.model])).detach()
    expected = torch.stack([before(name).output, output(name, other.model)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert settings(mu.model, mu.plan) == before(name).settings


def normalize(layer: nn.Module) -> None:
    """Weight normalization, with lengths that are no longer those of the weight."""
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)


COMPUTED: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "weight_norm": (normalize, lambda layer: parametrize.remove_parametrizations(layer, "weight")),
    "prune": (
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
        lambda layer: prune.remove(layer, "weight"),
    ),
}


@pytest.mark.parametrize("way", COMPUTED)
@every_model
def test_a_multiplier_acts_on_a_computed_weight(name: str, way: str) -> None:
    """The same function as an untouched model with this weight, times the multiplier."""
    (begin, end), path = COMPUTED[way], CASES[name].layer
    mu, control = muified(name), plain(name)
    layer, values = mu.model.get_submodule(path), dict(mu.model.state_dict())
    begin(layer)
    begin(control.get_submodule(path))
    expected = output(name, folded(name, {**values, f"{path}.weight": layer.weight.detach()}))
    assert scale(expected - before(name).output) > 1e-3
    torch.testing.assert_close(output(name, mu.model), expected, rtol=0, atol=1e-6)
    assert list(mu.model.state_dict()) == list(control.state_dict())
    with pytest.raises(autofit.AutofitError, match="is not in the plan: it was added after muify"):
        settings(mu.model, mu.plan)

    end(layer)
    torch.testing.assert_close(output(name, mu.model), expected, rtol=0, atol=1e-6)
    assert sorted(mu.model.state_dict()) == sorted(before(name).keys)
    assert settings(mu.model, mu.plan) == before(name).settings


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_saved_checkpoint_comes_back(name: str, tmp_path: Path) -> None:
    mu: Any = kept(name)
    mu.model.save_pretrained(tmp_path)
    fresh = type(mu.model).from_pretrained(tmp_path)
    assert not lowering.is_muified(fresh)
    again = muify(name, fresh, init="keep")
    assert torch.equal(output(name, again.model), before(name).output)
    assert list(again.model.state_dict()) == before(name).keys
    assert settings(again.model, again.plan) == before(name).settings


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_generation_with_a_cache(name: str) -> None:
    """Logits of every step are those of a forward pass over all tokens."""
    model: Any = kept(name).model
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached, uncached = (
        model.generate(IDS, min_new_tokens=6, max_new_tokens=6, use_cache=cache, **options) for cache in (True, False)
    )
    assert cached.sequences.shape == (IDS.shape[0], IDS.shape[1] + 6)
    assert torch.equal(cached.sequences, uncached.sequences)
    whole = model(input_ids=cached.sequences).logits[:, IDS.shape[1] - 1 : -1].detach()
    for found in (cached, uncached):
        torch.testing.assert_close(torch.stack(found.logits, dim=1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gradient_checkpointing(name: str) -> None:
    model: Any = muified(name).model.train()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing == checkpointed
        logits(model, CASES[name].inputs).square().mean().backward()
        found.append(gradients(model))
    assert found[0]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@every_model
def test_autocast_is_near(name: str) -> None:
    """Within 2% of the largest output, as in bfloat16."""
    model = kept(name).model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output(name, model)
    assert found.dtype == torch.bfloat16
    near = 0.02 * scale(before(name).output)
    torch.testing.assert_close(found.float(), before(name).output, rtol=0, atol=near)


@every_model
def test_gradient_accumulation(name: str) -> None:
    model, inputs = kept(name).model, CASES[name].inputs
    logits(model, inputs).square().mean().backward()
    whole = gradients(model)
    for i in range(2):
        half = {k: v.chunk(2)[i] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        (logits(model, half).square().mean() / 2).backward()
    torch.testing.assert_close(gradients(model), whole, rtol=1e-4, atol=1e-7)


def test_a_readout_that_was_replaced_is_missed() -> None:
    """``resize_token_embeddings`` makes a new readout, without the multiplier of the old one."""
    config = transformers.LlamaConfig(
        vocab_size=307, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config)
    mu = autofit.muify(model, base=32)
    mu.optimizer("adamw", lr=0.01)
    model.resize_token_embeddings(311)
    with pytest.raises(autofit.LoweringError, match=r"lm_head has lost its multiplier(.|\n)*resize_token_embeddings"):
        mu.optimizer("adamw", lr=0.01)
