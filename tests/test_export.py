"""Exported files run where neither autofit nor transformers is, and are the model: here, wider and deeper."""

from __future__ import annotations

import ast
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from inputs import logits
from torch import nn
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

import autofit
from autofit.errors import ExportError
from autofit.source.proof import load

EXAMPLES = Path(__file__).parent.parent / "examples" / "exported"


class Recurrent(nn.Module):
    def __init__(self, width: int = 64, vocabulary: int = 99, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(width, width, layers, batch_first=True, dropout=0.1)
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embed(input_ids))
        return self.decoder(hidden)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.skip(x))


class Convolutional(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Residual(width, width, 1), Residual(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """A model, and itself at another width and depth.

    Attributes:
        build: makes it.
        other: what makes it another.
        fields: the same in the exported file; ``None`` where it has the names of ``other``.
        inputs: for it, by name; ``None`` for tokens.
        base: base width.
        dtype: of gradients and steps.
        tolerance: for these, as a share of the largest value.
    """

    build: Callable[..., nn.Module]
    other: dict[str, Any]
    fields: dict[str, Any] | None = None
    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"input_ids": (2, 11)})
    base: int = 32
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-8


WIDER = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 200, "num_hidden_layers": 3}
T5 = {"d_model": 96, "num_heads": 6, "d_ff": 200, "num_layers": 4, "num_decoder_layers": 2}
CASES = {
    "gpt2": Case(FAMILIES["gpt2"].build, {"n_embd": 96, "n_head": 6, "n_layer": 3}),
    "llama": Case(FAMILIES["llama"].build, {**WIDER, "num_key_value_heads": 3}),
    "t5": Case(
        lambda **fields: FAMILIES["t5"].build(**{"num_layers": 3, "num_decoder_layers": 3, **fields}),
        T5,
        inputs={"input_ids": (2, 11), "decoder_input_ids": (2, 7)},
        tolerance=1e-6,  # softmax and norms are in single precision whatever the model is in
    ),
    "vit": Case(FAMILIES["vit"].build, WIDER, inputs={"pixel_values": (2, 3, 32, 32)}),
    "bert": Case(FAMILIES["bert"].build, WIDER),
    "mixtral": Case(  # torch multiplies stacks of experts in single precision only
        FAMILIES["mixtral"].build, {**WIDER, "num_key_value_heads": 3}, dtype=torch.float32, tolerance=1e-6
    ),
    "lstm": Case(
        Recurrent,
        {"width": 96, "layers": 3, "vocabulary": 50},
        {"embed_width": 96, "rnn_width": 96, "rnn_layers": 3, "embed_size": 50, "decoder_outputs": 50},
    ),
    "conv": Case(
        Convolutional,
        {"width": 48},
        {"stem_width": 48, "conv_width": 48, "conv_width_2": 96},
        {"image": (2, 3, 16, 16)},
    ),
}

FRESH = """
import importlib.util, sys
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("autofit", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Nobody())
import torch
torch.set_num_threads(1)

def build(folder, fields):
    spec = importlib.util.spec_from_file_location("model_mup", folder + "/model_mup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_mup"] = module
    spec.loader.exec_module(module)
    return module, module.build(**fields)

for folder in sys.argv[1:]:
    for saved in torch.load(folder + "/saved.pt"):
        module, model = build(folder, saved["fields"])
        model.load_state_dict(saved["state"])
        answers = {}
        def run(mode, inputs):
            model.train(mode == "train")
            torch.manual_seed(1)
            out = model(**inputs)
            return out if isinstance(out, torch.Tensor) else out[0]
        for mode in ("eval", "train"):
            answers[mode] = run(mode, saved["inputs"]).detach()
        model.to(saved["dtype"])
        inputs = {n: v.to(saved["dtype"]) if v.is_floating_point() else v for n, v in saved["inputs"].items()}
        for mode in ("eval", "train"):
            run(mode, inputs).square().mean().backward()
            answers[mode + " gradients"] = {n: p.grad for n, p in model.named_parameters()}
            model.zero_grad()
        torch.manual_seed(2)
        optimizer = torch.optim.AdamW(module.param_groups(model, "adamw", lr=1e-3, weight_decay=0.1, eps=1e-4))
        for _ in range(5):
            optimizer.zero_grad()
            out = model(**inputs)
            (out if isinstance(out, torch.Tensor) else out[0]).square().mean().backward()
            optimizer.step()
        answers["steps"] = {n: p.detach() for n, p in model.named_parameters()}
        torch.save(answers, folder + f"/{saved['name']}.pt")
"""


def tensors(case: Case, vocabulary: int = 50) -> dict[str, torch.Tensor]:
    """Random inputs."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(3, vocabulary, shape, generator=generator)
        if name.endswith("ids")
        else torch.randn(shape, generator=generator)
        for name, shape in case.inputs.items()
    }


def example(case: Case) -> Any:
    """What `muify` is told; transformers models tell themselves."""
    if case.build in (Recurrent, Convolutional):
        return {n: torch.zeros((3, *t.shape[1:]), dtype=t.dtype) for n, t in tensors(case).items()}
    return None


def answers(mu: autofit.Analysis, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """What the fresh process computes, by the model itself; ``dtype`` is that of gradients and steps.

    AdamW divides a gradient by its size: where that is zero, it would make a step of the rounding that is left.
    """
    model, found = mu.model, dict[str, Any]()

    def run(mode: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        model.train(mode == "train")
        torch.manual_seed(1)
        return logits(model, inputs)

    for mode in ("eval", "train"):
        found[mode] = run(mode, inputs).detach()
    model.to(dtype)
    inputs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
    for mode in ("eval", "train"):
        run(mode, inputs).square().mean().backward()
        found[f"{mode} gradients"] = {n: p.grad for n, p in model.named_parameters()}
        model.zero_grad()
    torch.manual_seed(2)
    optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1, eps=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        logits(model, inputs).square().mean().backward()
        optimizer.step()
    found["steps"] = {n: p.detach() for n, p in model.named_parameters()}
    return found


@dataclass
class Exported:
    """An exported model, with what it has to compute here and elsewhere."""

    text: str
    shown: str
    model: nn.Module
    folder: Path
    wanted: dict[str, dict[str, Any]]
    stds: dict[str, float]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """All cases, exported, and run in one fresh process."""
    made: dict[str, Exported] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        saved: list[dict[str, Any]] = []
        wanted: dict[str, dict[str, Any]] = {}
        inputs = tensors(case)
        text, shown, stds = "", "", {}
        for which, fields in (("here", {}), ("other", case.other)):
            torch.manual_seed(0)
            model = case.build(**fields)
            mu = autofit.muify(model, example(case), base=case.base)
            if which == "here":
                source = mu.export(folder / "model_mup.py")
                text, shown = source.text, source.shown
                first = model
            else:
                stds = {n: float(p.detach().std()) for n, p in model.named_parameters() if p.numel() > 500}
            own = {} if which == "here" else case.other if case.fields is None else case.fields
            state = {k: v.clone() for k, v in model.state_dict().items()}
            saved.append({"name": which, "fields": own, "state": state, "inputs": inputs, "dtype": case.dtype})
            wanted[which] = answers(mu, inputs, case.dtype)
        torch.save(saved, folder / "saved.pt")
        made[name] = Exported(text, shown, first, folder, wanted, stds)
    torch.set_num_threads(threads)
    folders = [str(e.folder) for e in made.values()]
    run = subprocess.run([sys.executable, "-c", FRESH, *folders], capture_output=True, text=True, cwd=folders[0])
    assert run.returncode == 0, run.stderr[-2000:]
    return made


def close(a: Any, b: Any, tolerance: float) -> None:
    """Equal to a share of the largest value; by name where there are several."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            if a[name] is None or b[name] is None:
                assert a[name] is b[name], name
            else:
                close(a[name], b[name], tolerance)
        return
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(a.abs().max()))


@pytest.mark.parametrize("which", ["here", "other"])
@pytest.mark.parametrize("name", CASES)
def test_computes_and_trains_as_the_model_does(exported: dict[str, Exported], name: str, which: str) -> None:
    found = torch.load(exported[name].folder / f"{which}.pt")
    wanted = exported[name].wanted[which]
    for key in ("eval", "train"):
        close(wanted[key], found[key], 1e-6)
    for key in ("eval gradients", "train gradients", "steps"):
        close(wanted[key], found[key], CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_draws_the_initial_values_of_muify_at_another_width(exported: dict[str, Exported], name: str) -> None:
    case = CASES[name]
    torch.manual_seed(5)
    model = load(exported[name].text).build(**(case.other if case.fields is None else case.fields))
    own = dict(model.named_parameters())
    for n, std in exported[name].stds.items():
        error = 6 / own[n].numel() ** 0.5
        assert float(own[n].detach().std()) == pytest.approx(std, rel=error, abs=1e-12), n


@pytest.mark.parametrize("name", CASES)
def test_is_the_lowered_graph_node_for_node(exported: dict[str, Exported], name: str) -> None:
    assert exported[name].shown == ("by values" if name == "mixtral" else "node for node")


@pytest.mark.parametrize("name", CASES)
def test_is_in_mup_already(exported: dict[str, Exported], name: str) -> None:
    model = load(exported[name].text).build()
    again = autofit.muify(model, {n: t[:, :9] if n.endswith("ids") else t for n, t in tensors(CASES[name]).items()})
    assert all(s.multiplier == 1 for s in again.plan.sites)
    if name in ("lstm", "conv"):  # a bias of torch's default draw has too few values to tell a root of two
        assert all("bias" in n for n in again.plan.rescaled())
        return
    assert any("already mup: nothing to add" in note for note in again.plan.notes)
    assert not again.plan.rescaled()


@pytest.mark.parametrize("name", ["gpt2", "llama", "lstm"])
def test_state_moves_both_ways(exported: dict[str, Exported], name: str) -> None:
    mine = load(exported[name].text).build()
    assert list(mine.state_dict()) == list(exported[name].model.state_dict())
    exported[name].model.load_state_dict(mine.state_dict())
    names = [n for n, _ in mine.named_parameters()]
    assert names == [n for n, _ in exported[name].model.named_parameters()]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_follows_the_models_dtype(name: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name].build()
    mu = autofit.muify(model, base=32)
    again = load(mu.export().text).build()
    again.load_state_dict(model.state_dict())
    inputs = tensors(CASES[name])
    model.to(torch.bfloat16).eval()
    again.to(torch.bfloat16).eval()
    for rotary in (m for m in again.modules() if hasattr(m, "inv_freq")):
        original = next(m for m in model.modules() if hasattr(m, "inv_freq"))
        rotary.inv_freq = original.inv_freq.clone()
    assert torch.equal(again(**inputs), logits(model, inputs))


@pytest.mark.parametrize("name", CASES)
def test_text(exported: dict[str, Exported], name: str) -> None:
    text = exported[name].text
    imported = {a.name.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
    imported |= {
        n.module.split(".")[0] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.module
    }
    assert imported <= {"torch", "dataclasses", "re"}
    assert "torch.ops.aten" not in text
    ruff = [sys.executable, "-m", "ruff"]
    root = Path(__file__).parent.parent
    given = {"input": text, "text": True, "capture_output": True, "cwd": root}
    assert subprocess.run([*ruff, "format", "-"], **given).stdout == text  # type: ignore[call-overload]
    checked = subprocess.run([*ruff, "check", "-"], **given)  # type: ignore[call-overload]
    assert checked.returncode == 0, checked.stdout


def test_the_same_bytes_twice() -> None:
    texts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        texts.append(autofit.muify(FAMILIES["gpt2"].build(), base=32).export().text)
    assert texts[0] == texts[1]


COMMITTED = {
    "gpt2.py": ("hf:gpt2", [], 250),
    "llama.py": (
        "hf:llama",
        ["hidden_size=1024", "num_attention_heads=16", "num_key_value_heads=4", "head_dim=64"],
        300,
    ),
}
MORE = {"llama.py": ["intermediate_size=2816", "num_hidden_layers=4", "vocab_size=32000"], "gpt2.py": []}


@pytest.mark.parametrize("file", COMMITTED)
def test_committed_files_are_what_the_command_writes(file: str, tmp_path: Path) -> None:
    target, settings, most = COMMITTED[file]
    options = [o for s in (*settings, *MORE[file]) for o in ("--set", s)]
    command = [sys.executable, "-m", "autofit.cli", "export", target, *options, "-o", str(tmp_path / file)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    made = (tmp_path / file).read_text()
    assert made == (EXAMPLES / file).read_text()
    assert len(made.splitlines()) <= most


def test_diff_says_what_mup_changes() -> None:
    torch.manual_seed(0)
    mu = autofit.muify(FAMILIES["gpt2"].build(), base=32)
    patch = mu.diff()
    assert "-        return self.lm_head(transformer_outputs)\n" in patch
    assert "+        return self.lm_head(transformer_outputs * self.readout_multiplier)\n" in patch
    plain = load(mu.export(multipliers=False).text).build().eval()
    untouched = FAMILIES["gpt2"].build().eval()
    plain.load_state_dict(untouched.state_dict())
    inputs = tensors(CASES["gpt2"])
    assert torch.equal(plain(**inputs), logits(untouched, inputs))


def test_stages_can_be_compared() -> None:
    torch.manual_seed(0)
    texts = [autofit.analyze(FAMILIES["gpt2"].build(), base=32).stages() for _ in range(2)]
    assert texts[0] == texts[1]
    for heading in ("# program", "# growth", "# roles", "# plan"):
        assert heading in texts[0]
    assert "modeling_gpt2.py" in texts[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_graph_form(name: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    mu = autofit.muify(model, base=FAMILIES[name].main // 2)
    graph = mu.graph()
    graph.graph.lint()
    assert {n for n, _ in graph.named_parameters()} <= {n for n, _ in model.named_parameters()}
    used = mu.roles.growth.dims.program
    generator = torch.Generator().manual_seed(0)

    def fill(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        return (
            torch.randint(3, 90, t.shape, generator=generator)
            if t.dtype == torch.long
            else torch.randn(t.shape, generator=generator)
        )

    inputs = {k: fill(v) for k, v in used.example.kwargs.items()}
    placeholders = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]
    wanted, found = logits(model, inputs), graph(*(inputs.get(p) for p in placeholders))
    found = found if isinstance(found, torch.Tensor) else next(f for f in found if f.shape == wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.detach().abs().max()))
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(v.square().mean(), parameters, allow_unused=True) for v in (wanted, found)]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert float((a - b).norm()) <= 1e-5 * float(a.norm()) + 1e-12


# the proof


def test_a_file_that_is_not_the_model_is_refused() -> None:
    torch.manual_seed(0)
    mu = autofit.muify(FAMILIES["gpt2"].build(), base=32)
    from autofit.source import write

    text = mu.export().text
    broken = {
        "* self.readout_multiplier": "* self.readout_multiplier * 1.5",
        "self.lm_head.weight = self.transformer.wte.weight": "pass",
        "attn_output + hidden_states": "attn_output - hidden_states",
        "self.wpe = nn.Embedding(config.n_positions, config.n_embd)": "self.wpe = nn.Embedding(7, config.n_embd)",
    }
    from autofit.source.proof import prove
    from autofit.source.worlds import see

    worlds = see(mu.model, mu.roles.growth)
    assert worlds.inputs.keys() == {"input_ids"}
    for old, new in broken.items():
        assert old in text
        with pytest.raises(ExportError):
            prove(text.replace(old, new), mu.model, worlds.first.program, worlds.inputs, mu.model)
    assert write.formatted("x = 1\n") == "x = 1\n"


# what cannot be written


class Sizes:
    """A configuration as transformers' are."""

    def __init__(self, width: int = 64, window: int = 3, layers: int = 2) -> None:
        self.width, self.window, self.layers = width, window, layers

    def to_dict(self) -> dict[str, int]:
        return dict(vars(self))


class DropPath(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x.div(1 - self.p) * torch.rand(len(x), 1, 1).add(1 - self.p).floor()


class Windowed(nn.Module):
    """Two tables that a constructor computes: one of indices, written in place, and one of floats."""

    def __init__(self, config: Sizes, decay: float) -> None:
        super().__init__()
        n = config.window
        at = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")).flatten(1)
        relative = (at[:, :, None] - at[:, None, :]).permute(1, 2, 0).contiguous()
        relative[:, :, 0] += n - 1
        relative[:, :, 0] *= 2 * n - 1
        relative[:, :, 1] += n - 1
        self.register_buffer("index", relative.sum(-1), persistent=False)
        rate = math.log(10000) / (config.width // 2 - 1)
        self.register_buffer("table", torch.exp(torch.arange(config.width) * -rate) * decay, persistent=False)
        self.bias = nn.Parameter(torch.zeros((2 * n - 1) ** 2))
        self.inner = nn.Linear(config.width, config.width)
        self.path = DropPath(0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.bias[self.index.flatten()].view(self.index.shape).softmax(-1) @ x
        return x + self.path(self.inner(mixed * self.table))


class Windows(nn.Module):
    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(7, config.width)
        self.blocks = nn.ModuleList(Windowed(config, 0.5**i) for i in range(config.layers))
        self.head = nn.Linear(config.width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_buffers_are_made_as_the_constructor_made_them() -> None:
    source = autofit.muify(Windows(Sizes()), torch.randn(2, 9, 7), base=32).export()
    assert source.text.count("def make_") == 2, source.text
    config = {"width": 96}
    made = load(source.text).build(**config)
    wanted = Windows(Sizes(**config))
    wanted.load_state_dict(made.state_dict())
    for (name, a), (_, b) in zip(made.named_buffers(), wanted.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    autofit.muify(wanted, torch.randn(2, 9, 7), base=lambda: Windows(Sizes(32)), init="keep")
    x = torch.randn(2, 9, 7)
    for mode in (False, True):
        outputs = []
        for model in (made, wanted):
            torch.manual_seed(1)
            outputs.append(model.train(mode)(x))
        assert torch.equal(*outputs)


def test_an_op_of_another_package_is_refused_with_its_line() -> None:
    @torch.library.custom_op("autofit_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(lambda x: torch.empty_like(x))
    twice.register_autograd(lambda ctx, grad: 2 * grad)

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 64), nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(twice(self.a(x)).relu()))

    mu = autofit.muify(Custom(), torch.zeros(2, 5), base=32, strict=False)
    with pytest.raises(ExportError, match=r"autofit_test.twice is an op of another package(.|\n)*test_export.py"):
        mu.export()


# names


HOSTILE = [
    'x"); import os; ("', "class", "import", "None", "__class__", "a b", "größe", "模型", "'", '"""', "\\", "\n",
    "{x}", "%s", "def f():", "self", "torch", "nn", "forward", "config", "0x", "1", "-", "*", "[0]", "print",
    "lambda", "x" * 80, "__import__('os').system('x')", "#", "\t", "🙂", "type", "super", "F", "training", "weight",
    "call", "_x", "__dunder__",
]  # fmt: skip


def hostile(count: int, seed: int) -> list[str]:
    """Names for modules that nobody would give, each another."""
    chosen, random_ = list(HOSTILE), random.Random(seed)
    while len(chosen) < count:
        chosen.append("".join(random_.choice("a\"'\\\n){}[];#_ 1é%\t$=") for _ in range(random_.randint(1, 12))))
    return [n for n in dict.fromkeys(chosen) if n and "." not in n and n not in dir(nn.Module())]


class Named(nn.Module):
    """Layers under given names, one after the other."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.first = nn.Linear(5, 64)
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(64, 64))
        self.last = nn.Linear(64, 3)
        self.register_buffer('b"; import os', torch.ones(1))
        self.table = nn.ModuleDict({"k'": nn.Linear(64, 64)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for name in self.names:
            x = x + F.relu(self._modules[name](x))
        return self.last(self.table["k'"](x) * self._buffers['b"; import os'])


@pytest.mark.parametrize("seed", range(3))
def test_hostile_names(seed: int) -> None:
    names = hostile(200, seed)
    assert len(names) > 170
    torch.manual_seed(0)
    model = Named(names)
    mu = autofit.muify(model, torch.zeros(4, 5), base=32)
    source = mu.export()
    calls = {
        n.func.id for n in ast.walk(ast.parse(source.text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    known = "getattr super any vars int build Config Named init_weights rules rule_of isinstance tuple list ValueError"
    assert calls <= set(known.split())
    again = load(source.text).build()
    again.load_state_dict(model.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(again(x), model(x))


def test_hostile_class_names() -> None:
    cls = type('Bad"); import os; ("', (Recurrent,), {})
    source = autofit.muify(cls(), torch.zeros(2, 7, dtype=torch.long), base=32).export()
    load(source.text).build()


# constructs, each in a model of its own


class Resampled(nn.Module):
    """Ops that torch's Python has other names for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, (3, 1), padding=(1, 0)), nn.Linear(width, 5)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.interpolate(x, size=(9, 9), mode="bilinear", align_corners=True)
        x = F.interpolate(x, size=(9, 9), mode="bilinear", antialias=True)
        x = F.interpolate(x, size=(9, 9), mode="bicubic")
        x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        x = self.mix(x)
        x = F.fold(F.unfold(x, 2, stride=2), (18, 18), 2, stride=2)
        x = torch.fft.irfft(torch.fft.rfft(x), n=18)
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = torch.div(F.logsigmoid(x), 0.5, rounding_mode="floor") + x
        return self.head(x.mean((2, 3)))


def exported_from(make: Callable[[int], nn.Module], *inputs: torch.Tensor) -> tuple[Any, nn.Module, nn.Module]:
    """A model of width 32 with a base of 16: what is exported, the model, and the one that the file builds."""
    torch.manual_seed(0)
    mu = autofit.muify(make(32), inputs, base=make(16))
    made = mu.export()
    again = load(made.text).build()
    again.load_state_dict(mu.model.state_dict())
    return made, mu.model, again


def test_ops_by_their_names_in_python() -> None:
    made, model, again = exported_from(Resampled, torch.randn(2, 3, 8, 8))
    assert made.shown == "node for node"
    assert not made.fallbacks
    assert "torch.ops" not in made.text
    assert "nn.Conv2d(3, 32, (3, 1), padding=(1, 0))" in made.text.replace("self.stem_width", "32").replace(
        "config.stem_width", "32"
    )
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again.eval()(x), model.eval()(x), rtol=0, atol=0)


class ByItsAtenName(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(self.stem(x))
        return self.head(torch.ops.aten.upsample_nearest2d.default(x, [9, 9]))


def test_an_op_without_another_name_is_said() -> None:
    made, _, _ = exported_from(ByItsAtenName, torch.randn(2, 3, 8, 8))
    assert made.fallbacks == (("ByItsAtenName", "aten.upsample_nearest2d"),)
    assert "Ops without a name in torch's Python: aten.upsample_nearest2d.default." in made.text


class Noisy(nn.Module):
    """Noise and a dropped path in training; in eval mode the value itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        if self.training:
            scale = torch.empty(1).uniform_(-0.5, 0.5).exp()
            x = x * scale
        y = self.mix(x)
        if self.training:
            y = y * (torch.rand(x.shape[0], 1) > 0.5)
        return self.head(torch.tanh(x + y))


def test_noise_stands_under_self_training() -> None:
    made, model, again = exported_from(Noisy, torch.randn(6, 5))
    assert made.shown == "node for node"
    assert made.text.count("if self.training:") == 2
    x = torch.randn(6, 5)
    for training in (False, True):
        torch.manual_seed(3)
        wanted = model.train(training)(x)
        torch.manual_seed(3)
        torch.testing.assert_close(again.train(training)(x), wanted, rtol=0, atol=0)


class OtherInEval(Noisy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        x = F.gumbel_softmax(x) if self.training else x.softmax(-1).round()
        return self.head(torch.tanh(self.mix(x)))


def test_what_eval_mode_does_instead_is_refused() -> None:
    mu = autofit.muify(OtherInEval(32), torch.randn(6, 5), base=OtherInEval(16))
    with pytest.raises(ExportError, match=r"in eval mode|computes something else"):
        mu.export()


class Mapped(nn.Module):
    """A mask by vmap over positions, as transformers make those that follow the data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, kinds = self.embed(ids), ids > 20

        def allowed(b: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return (k <= q) | (kinds[b, q] & kinds[b, k])

        mapped = torch.vmap(torch.vmap(torch.vmap(allowed, (None, None, 0)), (None, 0, None)), (0, None, None))
        places = torch.arange(ids.shape[1])
        with TransformGetItemToIndex():
            mask = mapped(torch.arange(ids.shape[0]), places, places)
        scores = self.query(x) @ self.key(x).transpose(1, 2) * 0.1
        return self.head(scores.masked_fill(~mask, -1e9).softmax(-1) @ x)


def test_a_mask_by_vmap_is_written_as_ops_that_broadcast() -> None:
    made, model, again = exported_from(Mapped, torch.randint(0, 50, (2, 7)))
    assert "vmap" not in made.text
    ids = torch.randint(0, 50, (3, 11))
    torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=0)


class Padded(nn.Module):
    """Pads to a whole number of windows: a size that no sum of sizes is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(torch.tanh(self.stem(F.pad(x, (0, 0, 0, -x.shape[1] % 8)))))
        return self.head(x.cumsum(1))


def test_a_size_that_holds_at_two_lengths_only_is_built_in() -> None:
    made, model, again = exported_from(Padded, torch.randn(2, 13, 5))
    assert any("built in (13)" in note for note in made.notes), made.notes
    x = torch.randn(4, 13, 5)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


class Tabled(nn.Module):
    """A buffer that Python computed, too long to be listed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(100, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.register_buffer("order", torch.tensor([(7 * i) % 100 for i in range(100)]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.stem(x[:, self.order])))))


def test_a_buffer_that_python_computed_is_written_as_its_values() -> None:
    made, model, again = exported_from(Tabled, torch.randn(2, 100))
    assert any("the values of order are written as they are" in note for note in made.notes), made.notes
    x = torch.randn(4, 100)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert again.order.dtype == torch.int64


class Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(5, width), nn.LayerNorm((width,)), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x)).relu())


def test_a_setting_by_axis_follows_the_width() -> None:
    made, model, again = exported_from(Normed, torch.randn(2, 5))
    wide = load(made.text).build(stem_width=64)
    assert wide.norm.normalized_shape == (64,)
    x = torch.randn(4, 5)
    assert wide(x).shape == (4, 3)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


class CrossMasked(nn.Module):
    """A mask between what enters and four learned slots: square at four positions alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slots, self.q, self.head = (
            nn.Parameter(torch.randn(4, width)),
            nn.Linear(width, width),
            nn.Linear(width, 3),
        )
        self.embed = nn.Linear(5, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], 4, dtype=torch.bool).tril()
        logits = self.q(self.embed(x)) @ self.slots.T / 8
        return self.head(logits.masked_fill(~mask, -1e4).softmax(-1) @ self.slots)


def test_a_mask_that_is_square_at_one_length_alone() -> None:
    mu = autofit.muify(CrossMasked(64), torch.randn(2, 4, 5), base=CrossMasked(16), strict=False)
    again = load(mu.export().text).build()
    again.load_state_dict(mu.model.state_dict())
    for length in (3, 4, 7):
        x = torch.randn(2, length, 5)
        torch.testing.assert_close(again(x=x), mu.model(x))
