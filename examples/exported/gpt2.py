"""GPT2LMHeadModel in mup, exported by autofit; needs torch alone.

Dimensions (here, at the base):
    n_embd: 768, 256
    transformer.h.*.attn.c_proj.heads: 12, 4
    transformer.h.*.mlp.c_fc: 3072, 1024

Multipliers:
    readout_multiplier = 1 / width_mult: readout transformer.wte.weight
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Sizes, and what follows from them."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12
    base_n_embd: float = 256

    @property
    def width_mult(self) -> float:
        """Growth of the width over the base (768 elements here)."""
        return self.n_embd / self.base_n_embd

    @property
    def readout_multiplier(self) -> float:
        """By what a readout sums: in all it has to go with the power -1 of its growth (TP5 Table 8)."""
        return 1 / self.width_mult


class Conv1D(nn.Module):
    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nx = nx
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(x.shape[0], x.shape[1], self.nf)


class NewGELUActivation(nn.Module):
    def forward(self, x):
        return x * 0.5 * (((x + x.pow(3.0) * 0.044715) * 0.7978845608028654).tanh() + 1.0)


class GPT2Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_dim = config.n_embd
        self.head_dim = config.n_embd // config.n_head
        self.scaling = (config.n_embd / config.n_head) ** -0.5
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, hidden_states, causal_mask):
        batch, length = hidden_states.shape[:2]
        query_states, key_states, value_states = self.c_attn(hidden_states).split(self.embed_dim, 2)
        key_states = key_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        value_states = value_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        query_states = query_states.view(batch, length, -1, self.head_dim).transpose(1, 2)
        attn_output = (
            F.scaled_dot_product_attention(
                query_states,
                key_states,
                value_states,
                attn_mask=causal_mask,
                dropout_p=0.1 if self.training else 0.0,
                scale=self.scaling,
            )
            .transpose(1, 2)
            .contiguous()
        )
        attn_output = attn_output.reshape(batch, length, -1)
        attn_output = self.c_proj(attn_output)
        return self.resid_dropout(attn_output)


class GPT2MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)
        self.act = NewGELUActivation()
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states):
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        return self.dropout(hidden_states)


class GPT2Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = GPT2MLP(config)

    def forward(self, hidden_states, causal_mask):
        attn_output = self.attn(self.ln_1(hidden_states), causal_mask)
        hidden_states = attn_output + hidden_states
        feed_forward_hidden_states = self.mlp(self.ln_2(hidden_states))
        return hidden_states + feed_forward_hidden_states


class GPT2Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList([GPT2Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, input_ids):
        _, length = input_ids.shape
        inputs_embeds = self.wte(input_ids)
        position_embeds = self.wpe(torch.arange(length, device=input_ids.device).unsqueeze(0))
        hidden_states = inputs_embeds + position_embeds
        causal_mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(hidden_states, causal_mask)
        return self.ln_f(hidden_states)


class GPT2LMHeadModel(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.readout_multiplier = config.readout_multiplier
        self.transformer = GPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids):
        transformer_outputs = self.transformer(input_ids)
        return self.lm_head(transformer_outputs * self.readout_multiplier)

    def mup_base(self) -> "GPT2LMHeadModel":
        """This model at the base; beside it autofit sees that it is in muP already."""
        sizes = {
            n: getattr(self.config, n) / growth
            for n, growth in {"n_embd": self.config.width_mult, "n_head": self.config.width_mult}.items()
        }
        if any(size % 1 for size in sizes.values()):
            raise ValueError(f"no whole sizes at the base: {sizes}")
        return build(**{**vars(self.config), **{n: int(size) for n, size in sizes.items()}})


def build(**overrides) -> GPT2LMHeadModel:
    """The model, with initial values in muP; overrides are fields of Config."""
    model = GPT2LMHeadModel(Config(**overrides))
    init_weights(model)
    return model


INIT = {"input": lambda r_in, r_out: 1, "vector": lambda r_in, r_out: 1, "hidden": lambda r_in, r_out: r_in**-0.5}
"Std of initial values over that at the base, by rule (TP5 Table 8)."
FACTORS = {
    "input": lambda r_in, r_out: ((1, 1, 1 / r_out), (1, 1, 1 / r_out), (r_out, 1 / r_out, 1)),
    "vector": lambda r_in, r_out: ((1, 1, 1 / r_out), (1, 1, 1 / r_out), (r_out, 1 / r_out, 1)),
    "hidden": lambda r_in, r_out: (
        (1 / r_in, r_in, 1 / r_out),
        (1 / r_in, 1, 1 / r_out),
        (r_out / r_in, r_in / r_out, 1),
    ),
}
"Factors on (lr, weight decay, eps) under AdamW, Adam and SGD, by rule (TP5 Table 8)."
OPTIMIZERS = {"adamw": (0, 0.01, 1e-08), "adam": (1, 0.0, 1e-08), "sgd": (2, 0.0, None)}
"Columns of FACTORS, and what torch takes for weight decay and eps."


def rules(config: Config) -> dict[str, tuple]:
    """By name, ``*`` for a number: rule, growth of fan_in and fan_out, how it is drawn, std at the base."""
    r = config.width_mult
    return {
        "transformer.wte.weight": ("input", 1, r, "normal", 0.02),
        "transformer.wpe.weight": ("input", 1, r, "normal", 0.02),
        "transformer.h.*.ln_1.weight": ("vector", 1, r, "constant", 1),
        "transformer.h.*.ln_1.bias": ("vector", 1, r, "constant", 0),
        "transformer.h.*.attn.c_attn.weight": ("hidden", r, r, "normal", 0.02),
        "transformer.h.*.attn.c_attn.bias": ("vector", 1, r, "constant", 0),
        "transformer.h.*.attn.c_proj.weight": ("hidden", r, r, "normal", 0.02 / (2 * config.n_layer) ** 0.5),
        "transformer.h.*.attn.c_proj.bias": ("vector", 1, r, "constant", 0),
        "transformer.h.*.ln_2.weight": ("vector", 1, r, "constant", 1),
        "transformer.h.*.ln_2.bias": ("vector", 1, r, "constant", 0),
        "transformer.h.*.mlp.c_fc.weight": ("hidden", r, r, "normal", 0.02),
        "transformer.h.*.mlp.c_fc.bias": ("vector", 1, r, "constant", 0),
        "transformer.h.*.mlp.c_proj.weight": ("hidden", r, r, "normal", 0.02 / (2 * config.n_layer) ** 0.5),
        "transformer.h.*.mlp.c_proj.bias": ("vector", 1, r, "constant", 0),
        "transformer.ln_f.weight": ("vector", 1, r, "constant", 1),
        "transformer.ln_f.bias": ("vector", 1, r, "constant", 0),
    }


def rule_of(name: str, config: Config) -> tuple:
    """The row of `rules` that a parameter has."""
    table = rules(config)
    return table[name] if name in table else table[re.sub("(?<![^.])\\d+(?![^.])", "*", name)]


@torch.no_grad()
def init_weights(model: GPT2LMHeadModel, generator: torch.Generator | None = None) -> None:
    """Draw initial values."""
    for name, p in model.named_parameters():
        rule, r_in, r_out, kind, value = rule_of(name, model.config)
        if kind == "normal":
            p.normal_(0, value * INIT[rule](r_in, r_out), generator=generator)
        elif kind == "uniform":
            bound = 3**0.5 * value * INIT[rule](r_in, r_out)
            p.uniform_(-bound, bound, generator=generator)
        else:
            p.copy_(torch.as_tensor(value).expand_as(p))


def param_groups(model: GPT2LMHeadModel, optimizer="adamw", lr=0.001, weight_decay=None, eps=None) -> list[dict]:
    """Groups for an optimizer, given by name or class; lr, weight_decay and eps are those tuned at the base."""
    optimizer = optimizer if isinstance(optimizer, str) else optimizer.__name__.lower()
    column, own_decay, own_eps = OPTIMIZERS[optimizer]
    decay, eps = (own_decay if weight_decay is None else weight_decay, own_eps if eps is None else eps)
    groups = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            rule, r_in, r_out, *_ = rule_of(name, model.config)
            factors = FACTORS[rule](r_in, r_out)[column]
            settings = {"lr": lr * factors[0], "weight_decay": decay * factors[1]}
            settings |= {} if eps is None else {"eps": eps * factors[2]}
            group = groups.setdefault(tuple(settings.values()), {"params": [], "param_names": [], **settings})
            group["params"].append(p)
            group["param_names"].append(name)
    return list(groups.values())
