"""LlamaForCausalLM in mup, exported by autofit; needs torch alone.

Dimensions (here, at the base):
    hidden_size: 1024, 256
    model.layers.*.self_attn.v_proj.heads: 4, 1
    intermediate_size: 2816, 704

Multipliers:
    readout_multiplier = 1 / width_mult: readout lm_head.weight
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Sizes, and what follows from them."""

    vocab_size: int = 32000
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 64
    num_hidden_layers: int = 4
    base_hidden_size: float = 256

    @property
    def width_mult(self) -> float:
        """Growth of the width over the base (1024 elements here)."""
        return self.hidden_size / self.base_hidden_size

    @property
    def readout_multiplier(self) -> float:
        """By what a readout sums: in all it has to go with the power -1 of its growth (TP5 Table 8)."""
        return 1 / self.width_mult


class SiLUActivation(nn.Module):
    def forward(self, x):
        return F.silu(x)


class LlamaRMSNorm(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states):
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * (variance + 1e-06).rsqrt()
        return self.weight * hidden_states.to(self.weight.dtype)


class LlamaAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.size = config.head_dim // 2
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.num_attention_heads = config.num_attention_heads
        self.scaling = config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings, position_embeddings_2, causal_mask):
        batch, length = hidden_states.shape[:2]
        query_states = self.q_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        unsqueeze = position_embeddings.unsqueeze(1)
        unsqueeze_2 = position_embeddings_2.unsqueeze(1)
        query_states = (
            query_states * unsqueeze
            + torch.cat([-query_states[:, :, :, self.size :], query_states[:, :, :, : self.size]], -1) * unsqueeze_2
        )
        key_states = (
            key_states * unsqueeze
            + torch.cat([-key_states[:, :, :, self.size :], key_states[:, :, :, : self.size]], -1) * unsqueeze_2
        )
        attn_output = F.scaled_dot_product_attention(
            query_states,
            key_states.unsqueeze(2)
            .expand(batch, self.num_key_value_heads, self.num_key_value_groups, length, self.head_dim)
            .reshape(batch, self.num_attention_heads, length, self.head_dim),
            value_states.unsqueeze(2)
            .expand(batch, self.num_key_value_heads, self.num_key_value_groups, length, self.head_dim)
            .reshape(batch, self.num_attention_heads, length, self.head_dim),
            attn_mask=causal_mask,
            scale=self.scaling,
        ).transpose(1, 2)
        attn_output = attn_output.reshape(batch, length, -1)
        return self.o_proj(attn_output)


class LlamaMLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = SiLUActivation()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config)
        self.post_attention_layernorm = LlamaRMSNorm(config)

    def forward(self, hidden_states, position_embeddings, position_embeddings_2, causal_mask):
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states), position_embeddings, position_embeddings_2, causal_mask
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LlamaRotaryEmbedding(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.register_buffer(
            "inv_freq",
            1.0 / 10000.0 ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim),
            persistent=False,
        )

    def forward(self, x):
        freqs = x.unsqueeze(2).to(torch.float32) * self.inv_freq.to(torch.float32)
        emb = torch.cat([freqs, freqs], -1)
        cos = emb.cos()
        sin = emb.sin()
        return (cos.to(self.inv_freq.dtype), sin.to(self.inv_freq.dtype))


class LlamaRMSNorm_2(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states):
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * (variance + 1e-06).rsqrt()
        return self.weight * hidden_states.to(self.weight.dtype)


class LlamaModel(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm_2(config)
        self.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(self, input_ids):
        _, length = input_ids.shape
        inputs_embeds = self.embed_tokens(input_ids)
        position_ids = torch.arange(length, device=input_ids.device).unsqueeze(0)
        causal_mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        position_embeddings, position_embeddings_2 = self.rotary_emb(position_ids)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, position_embeddings_2, causal_mask)
        return self.norm(hidden_states)


class LlamaForCausalLM(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.readout_multiplier = config.readout_multiplier
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids):
        outputs = self.model(input_ids)
        return self.lm_head(outputs * self.readout_multiplier)

    def mup_base(self) -> "LlamaForCausalLM":
        """This model at the base; beside it autofit sees that it is in muP already."""
        sizes = {
            n: getattr(self.config, n) / growth
            for n, growth in {
                "hidden_size": self.config.width_mult,
                "intermediate_size": self.config.width_mult,
                "num_attention_heads": self.config.width_mult,
                "num_key_value_heads": self.config.width_mult,
            }.items()
        }
        if any(size % 1 for size in sizes.values()):
            raise ValueError(f"no whole sizes at the base: {sizes}")
        return build(**{**vars(self.config), **{n: int(size) for n, size in sizes.items()}})


def build(**overrides) -> LlamaForCausalLM:
    """The model, with initial values in muP; overrides are fields of Config."""
    model = LlamaForCausalLM(Config(**overrides))
    init_weights(model)
    return model


INIT = {
    "input": lambda r_in, r_out: 1,
    "hidden": lambda r_in, r_out: r_in**-0.5,
    "vector": lambda r_in, r_out: 1,
    "output": lambda r_in, r_out: 1,
}
"Std of initial values over that at the base, by rule (TP5 Table 8)."
FACTORS = {
    "input": lambda r_in, r_out: ((1, 1, 1 / r_out), (1, 1, 1 / r_out), (r_out, 1 / r_out, 1)),
    "hidden": lambda r_in, r_out: (
        (1 / r_in, r_in, 1 / r_out),
        (1 / r_in, 1, 1 / r_out),
        (r_out / r_in, r_in / r_out, 1),
    ),
    "vector": lambda r_in, r_out: ((1, 1, 1 / r_out), (1, 1, 1 / r_out), (r_out, 1 / r_out, 1)),
    "output": lambda r_in, r_out: ((1, 1, 1 / r_in), (1, 1, 1 / r_in), (r_in, 1 / r_in, 1)),
}
"Factors on (lr, weight decay, eps) under AdamW, Adam and SGD, by rule (TP5 Table 8)."
OPTIMIZERS = {"adamw": (0, 0.01, 1e-08), "adam": (1, 0.0, 1e-08), "sgd": (2, 0.0, None)}
"Columns of FACTORS, and what torch takes for weight decay and eps."


def rules(config: Config) -> dict[str, tuple]:
    """By name, ``*`` for a number: rule, growth of fan_in and fan_out, how it is drawn, std at the base."""
    r = config.width_mult
    return {
        "model.embed_tokens.weight": ("input", 1, r, "normal", 0.02),
        "model.layers.*.self_attn.q_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.self_attn.k_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.self_attn.v_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.self_attn.o_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.mlp.gate_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.mlp.up_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.mlp.down_proj.weight": ("hidden", r, r, "normal", 0.02),
        "model.layers.*.input_layernorm.weight": ("vector", 1, r, "constant", 1),
        "model.layers.*.post_attention_layernorm.weight": ("vector", 1, r, "constant", 1),
        "model.norm.weight": ("vector", 1, r, "constant", 1),
        "lm_head.weight": ("output", r, 1, "normal", 0.02),
    }


def rule_of(name: str, config: Config) -> tuple:
    """The row of `rules` that a parameter has."""
    table = rules(config)
    return table[name] if name in table else table[re.sub("(?<![^.])\\d+(?![^.])", "*", name)]


@torch.no_grad()
def init_weights(model: LlamaForCausalLM, generator: torch.Generator | None = None) -> None:
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


def param_groups(model: LlamaForCausalLM, optimizer="adamw", lr=0.001, weight_decay=None, eps=None) -> list[dict]:
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
