"""Plain PyTorch models, written the way people write them, as a zoo for anything that reads arbitrary models.

Every builder takes a width and returns a model with a tiny example input. Hidden widths are proportional to the
width, and it is the number of attention heads that grows, at 16 elements each. Vocabularies, images, classes and
sequences keep their sizes, which are none of the widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

HEAD_SIZE = 16

Builder = Callable[[int], tuple[nn.Module, Any]]
MODELS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Add a builder under its own name."""
    MODELS[builder.__name__] = builder
    return builder


# language models ----------------------------------------------------------------------------------------


@dataclass
class GPTConfig:
    block_size: int = 19
    vocab_size: int = 101
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    dropout: float = 0.0
    bias: bool = True


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.n_embd = config.n_embd
        mask = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer("bias", mask.view(1, 1, config.block_size, config.block_size))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = self.attn_dropout(F.softmax(att, dim=-1))
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class GPTBlock(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Decoder-only language model with tied embeddings, GPT-2 (Radford et al., 2019)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([GPTBlock(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        _, t = idx.size()
        assert t <= self.config.block_size, f"sequence of {t} is longer than {self.config.block_size}"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](pos))
        for block in self.transformer["h"]:
            x = block(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss


@register
def nano_gpt(width: int) -> tuple[nn.Module, Any]:
    model = GPT(GPTConfig(n_embd=width, n_head=width // HEAD_SIZE))
    return model, {"idx": torch.randint(0, 101, (2, 11)), "targets": torch.randint(0, 101, (2, 11))}


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        output = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return output.type_as(x) * self.weight


def precompute_freqs_cis(dim: int, end: int, theta: float = 10000.0) -> Tensor:
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    angles = torch.outer(torch.arange(end), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis[None, :, None, :]
    xq_out = torch.view_as_real(xq_ * freqs_cis).flatten(3)
    xk_out = torch.view_as_real(xk_ * freqs_cis).flatten(3)
    return xq_out.type_as(xq), xk_out.type_as(xk)


class LlamaAttention(nn.Module):
    def __init__(self, dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xk = self.wk(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xv = self.wv(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim)
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)
        xk, xv = self._repeat_kv(xk), self._repeat_kv(xv)
        xq, xk, xv = xq.transpose(1, 2), xk.transpose(1, 2), xv.transpose(1, 2)
        scores = torch.matmul(xq, xk.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = F.softmax((scores + mask).float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, xv).transpose(1, 2).contiguous().view(bsz, seqlen, -1)
        return self.wo(output)

    def _repeat_kv(self, x: Tensor) -> Tensor:
        bsz, seqlen, n_kv_heads, head_dim = x.shape
        n_rep = self.n_heads // n_kv_heads
        x = x[:, :, :, None, :].expand(bsz, seqlen, n_kv_heads, n_rep, head_dim)
        return x.reshape(bsz, seqlen, n_kv_heads * n_rep, head_dim)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.attention = LlamaAttention(dim, n_heads, n_kv_heads)
        self.feed_forward = SwiGLU(dim, 3 * dim)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(nn.Module):
    """Decoder with complex rotary embeddings and grouped queries, Llama 2 (Touvron et al., 2023)."""

    def __init__(self, vocab_size: int, dim: int, n_layers: int = 2, max_seq_len: int = 23) -> None:
        super().__init__()
        n_heads = dim // HEAD_SIZE
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList([LlamaBlock(dim, n_heads, n_heads // 2) for _ in range(n_layers)])
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.freqs_cis = precompute_freqs_cis(dim // n_heads, max_seq_len * 2)

    def forward(self, tokens: Tensor) -> Tensor:
        _, seqlen = tokens.shape
        h = self.tok_embeddings(tokens)
        self.freqs_cis = self.freqs_cis.to(h.device)
        freqs_cis = self.freqs_cis[:seqlen]
        mask = torch.full((seqlen, seqlen), float("-inf"), device=tokens.device)
        mask = torch.triu(mask, diagonal=1).type_as(h)
        for layer in self.layers:
            h = layer(h, freqs_cis, mask)
        return self.output(self.norm(h)).float()


@register
def llama(width: int) -> tuple[nn.Module, Any]:
    return Llama(vocab_size=103, dim=width), torch.randint(0, 103, (2, 13))


class AlbertLayer(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden)
        self.ffn = nn.Linear(hidden, 4 * hidden)
        self.ffn_output = nn.Linear(4 * hidden, hidden)
        self.full_norm = nn.LayerNorm(hidden)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.transpose_for_scores(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + mask
        context = torch.matmul(scores.softmax(dim=-1), v).permute(0, 2, 1, 3).flatten(2)
        x = self.attention_norm(x + self.dense(context))
        return self.full_norm(x + self.ffn_output(F.gelu(self.ffn(x))))


class Albert(nn.Module):
    """Masked language model with shared layers and a factorized embedding, ALBERT (Lan et al., 2020)."""

    def __init__(self, vocab: int, embedding: int, hidden: int, depth: int = 3, max_len: int = 29) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, embedding, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_len, embedding)
        self.embedding_norm = nn.LayerNorm(embedding)
        self.embedding_projection = nn.Linear(embedding, hidden)
        self.shared_layer = AlbertLayer(hidden, hidden // HEAD_SIZE)
        self.depth = depth
        self.mlm_dense = nn.Linear(hidden, embedding)
        self.mlm_norm = nn.LayerNorm(embedding)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab))
        self.pooler = nn.Linear(hidden, hidden)
        self.order_head = nn.Linear(hidden, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = self.embedding_projection(self.embedding_norm(x))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for _ in range(self.depth):
            x = self.shared_layer(x, mask)
        tokens = self.mlm_norm(F.gelu(self.mlm_dense(x)))
        return {
            "mlm_logits": F.linear(tokens, self.word_embeddings.weight, self.mlm_bias),
            "order_logits": self.order_head(torch.tanh(self.pooler(x[:, 0]))),
        }


@register
def albert(width: int) -> tuple[nn.Module, Any]:
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[0, 7:] = 0
    model = Albert(vocab=107, embedding=width // 2, hidden=width)
    return model, {"input_ids": torch.randint(1, 107, (3, 11)), "attention_mask": mask}


class Expert(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SparseMoE(nn.Module):
    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(dim) for _ in range(num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, dim = x.shape
        flat = x.view(-1, dim)
        logits = self.gate(flat)
        weights, chosen = torch.topk(logits, self.top_k, dim=-1)
        gates = torch.zeros_like(logits).scatter(1, chosen, F.softmax(weights, dim=-1))
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out = out + gates[:, i, None] * expert(flat)
        load = (gates > 0).float().mean(dim=0)
        balance = self.num_experts * (load * F.softmax(logits, dim=-1).mean(dim=0)).sum()
        return out.view(batch, length, dim), balance


class MoEBlock(nn.Module):
    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, dim // HEAD_SIZE, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = SparseMoE(dim, num_experts, top_k)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm1(x)
        causal = nn.Transformer.generate_square_subsequent_mask(x.size(1), device=x.device)
        attended, _ = self.attn(h, h, h, attn_mask=causal, need_weights=False, is_causal=True)
        x = x + attended
        update, balance = self.moe(self.norm2(x))
        return x + update, balance


class MoELanguageModel(nn.Module):
    """Language model with sparsely gated experts (Shazeer et al., 2017; Fedus et al., 2021)."""

    def __init__(self, vocab: int, dim: int, depth: int = 2, num_experts: int = 5, top_k: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.ModuleList(MoEBlock(dim, num_experts, top_k) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens) + self.pos[:, : tokens.size(1)]
        total = x.new_zeros(())
        for block in self.blocks:
            x, balance = block(x)
            total = total + balance
        return self.head(self.norm(x)), total


@register
def mixture_of_experts(width: int) -> tuple[nn.Module, Any]:
    return MoELanguageModel(vocab=97, dim=width), torch.randint(0, 97, (2, 13))


class LinearAttention(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, d // self.heads) for t in (q, k, v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bnhd,bnhm->bhmd", k, v)
        z = 1 / (torch.einsum("bnhd,bhd->bnh", q, k.sum(dim=1)) + self.eps)
        out = torch.einsum("bnhd,bhmd,bnh->bnhm", q, kv, z)
        return self.to_out(out.reshape(b, n, d))


class LinearTransformer(nn.Module):
    """Encoder whose attention is linear in the length, elu + 1 kernel (Katharopoulos et al., 2020)."""

    def __init__(self, vocab: int, classes: int, dim: int, depth: int = 2, max_len: int = 31) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(vocab, dim)
        self.pos_emb = nn.Embedding(max_len, dim)
        self.attns = nn.ModuleList([LinearAttention(dim, dim // HEAD_SIZE) for _ in range(depth)])
        self.norms1 = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.norms2 = nn.ModuleList([nn.LayerNorm(dim) for _ in range(depth)])
        self.ffs = nn.ModuleList(
            [nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)) for _ in range(depth)]
        )
        self.to_logits = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_emb(tokens)
        x = x + self.pos_emb(torch.arange(x.shape[1], device=x.device))
        for attn, norm1, ff, norm2 in zip(self.attns, self.norms1, self.ffs, self.norms2, strict=True):
            x = norm1(x + attn(x))
            x = norm2(x + ff(x))
        return self.to_logits(x.mean(dim=1))


@register
def linear_attention(width: int) -> tuple[nn.Module, Any]:
    return LinearTransformer(vocab=89, classes=7, dim=width), torch.randint(0, 89, (3, 13))


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.base.weight.requires_grad_(False)
        if self.base.bias is not None:
            self.base.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scaling


class PretrainedEncoder(nn.Module):
    def __init__(self, vocab: int, dim: int, depth: int = 2) -> None:
        super().__init__()
        self.heads = dim // HEAD_SIZE
        self.embed = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(dim),
                    "q": nn.Linear(dim, dim),
                    "k": nn.Linear(dim, dim),
                    "v": nn.Linear(dim, dim),
                    "o": nn.Linear(dim, dim),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
                    ),
                }
            )
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            h = layer["norm"](x)
            q, k, v = (layer[n](h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + layer["o"](h)
            x = x + layer["mlp"](x)
        return x


class LoRAClassifier(nn.Module):
    """Frozen encoder with low-rank adapters on its queries and values, LoRA (Hu et al., 2021)."""

    def __init__(self, encoder: PretrainedEncoder, dim: int, classes: int, rank: int = 3, alpha: float = 6.0) -> None:
        super().__init__()
        for p in encoder.parameters():
            p.requires_grad = False
        for layer in encoder.layers:
            for name in ("q", "v"):
                layer[name] = LoRALinear(layer[name], rank, alpha)
        self.encoder = encoder
        self.classifier = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.encoder(tokens).mean(dim=1))


@register
def lora(width: int) -> tuple[nn.Module, Any]:
    model = LoRAClassifier(PretrainedEncoder(vocab=83, dim=width), dim=width, classes=5)
    return model, torch.randint(0, 83, (2, 11))


# images -------------------------------------------------------------------------------------------------


class MlpBlock(nn.Sequential):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim), nn.Dropout(0.1))


class MixerBlock(nn.Module):
    def __init__(self, patches: int, dim: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mix = MlpBlock(patches, token_hidden)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mix = MlpBlock(dim, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class MlpMixer(nn.Module):
    """All-MLP image classifier, MLP-Mixer (Tolstikhin et al., 2021)."""

    def __init__(self, dim: int, classes: int, image: int = 35, patch: int = 7, depth: int = 2) -> None:
        super().__init__()
        patches = (image // patch) ** 2
        self.stem = nn.Conv2d(3, dim, patch, stride=patch)
        self.blocks = nn.Sequential(*[MixerBlock(patches, dim, dim // 2, 4 * dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        return self.head(x.mean(dim=1))


@register
def mlp_mixer(width: int) -> tuple[nn.Module, Any]:
    return MlpMixer(width, classes=11), torch.randn(2, 3, 35, 35)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class ConvMixer(nn.Sequential):
    """Isotropic patches, depthwise and pointwise convolutions, ConvMixer (Trockman and Kolter, 2022)."""

    def __init__(self, dim: int, depth: int = 2, kernel_size: int = 5, patch_size: int = 3, classes: int = 11) -> None:
        super().__init__(
            nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size),
            nn.GELU(),
            nn.BatchNorm2d(dim),
            *[
                nn.Sequential(
                    Residual(
                        nn.Sequential(
                            nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same"),
                            nn.GELU(),
                            nn.BatchNorm2d(dim),
                        )
                    ),
                    nn.Conv2d(dim, dim, kernel_size=1),
                    nn.GELU(),
                    nn.BatchNorm2d(dim),
                )
                for _ in range(depth)
            ],
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(),
            nn.Linear(dim, classes),
        )


@register
def conv_mixer(width: int) -> tuple[nn.Module, Any]:
    return ConvMixer(width), torch.randn(2, 3, 21, 21)


class EinsumAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.scale = dim_head**-0.5
        self.w_qkv = nn.Parameter(torch.empty(3, heads, dim, dim_head))
        self.w_out = nn.Parameter(torch.empty(heads, dim_head, dim))
        nn.init.trunc_normal_(self.w_qkv, std=dim**-0.5)
        nn.init.trunc_normal_(self.w_out, std=(heads * dim_head) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bnc,shcd->sbhnd", x, self.w_qkv)
        attn = torch.einsum("bhid,bhjd->bhij", q, k).mul(self.scale).softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return torch.einsum("bhid,hdc->bic", out, self.w_out)


class ViT(nn.Module):
    """Vision transformer with a class token and plain einsum attention, ViT (Dosovitskiy et al., 2021)."""

    def __init__(self, dim: int, classes: int, image: int = 35, patch: int = 5, depth: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.to_patch = nn.Linear(3 * patch * patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, dim) * 0.02)
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            attn = nn.Sequential(nn.LayerNorm(dim), EinsumAttention(dim, dim // HEAD_SIZE, HEAD_SIZE))
            mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            self.layers.append(nn.ModuleList([attn, mlp]))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def patchify(self, img: Tensor) -> Tensor:
        b, c, h, w = img.shape
        p = self.patch
        img = img.reshape(b, c, h // p, p, w // p, p)
        return torch.einsum("bchpwq->bhwpqc", img).reshape(b, (h // p) * (w // p), p * p * c)

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch(self.patchify(img))
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for attn, mlp in self.layers:
            x = attn(x) + x
            x = mlp(x) + x
        return self.head(self.norm(x)[:, 0])


@register
def vit(width: int) -> tuple[nn.Module, Any]:
    return ViT(width, classes=13), torch.randn(2, 3, 35, 35)


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Residual network of basic blocks, ResNet (He et al., 2016)."""

    def __init__(self, layers: tuple[int, ...], width: int, num_classes: int) -> None:
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.Sequential(
            *[self._make_layer(width * 2**i, n, stride=1 if i == 0 else 2) for i, n in enumerate(layers)]
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        for m in self.modules():
            if isinstance(m, BasicBlock):
                nn.init.constant_(m.bn2.weight, 0)

    def _make_layer(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        layers = [BasicBlock(self.inplanes, planes, stride)]
        self.inplanes = planes
        layers += [BasicBlock(planes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layers(x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


@register
def resnet(width: int) -> tuple[nn.Module, Any]:
    return ResNet((2, 1), width, num_classes=11), torch.randn(2, 3, 29, 29)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))
        return scale * x


class InvertedResidual(nn.Module):
    def __init__(self, inp: int, oup: int, expand: int, kernel: int, stride: int, use_se: bool) -> None:
        super().__init__()
        hidden = inp * expand
        self.use_res_connect = stride == 1 and inp == oup
        layers: list[nn.Module] = [nn.Conv2d(inp, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()]
        layers += [
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        ]
        if use_se:
            layers.append(SqueezeExcite(hidden))
        layers += [nn.Hardswish(), nn.Conv2d(hidden, oup, 1, bias=False), nn.BatchNorm2d(oup)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNet(nn.Module):
    """Inverted residuals with squeeze and excitation, MobileNetV3 (Howard et al., 2019)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        base = width // 4
        self.features = nn.Sequential(
            nn.Conv2d(3, base, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(base),
            nn.Hardswish(),
            InvertedResidual(base, base, expand=1, kernel=3, stride=1, use_se=True),
            InvertedResidual(base, 2 * base, expand=4, kernel=5, stride=2, use_se=True),
            InvertedResidual(2 * base, 2 * base, expand=3, kernel=5, stride=1, use_se=False),
            nn.Conv2d(2 * base, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(width, 2 * width), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(2 * width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.mean([2, 3]))


@register
def mobilenet(width: int) -> tuple[nn.Module, Any]:
    return MobileNet(width, num_classes=11), torch.randn(3, 3, 29, 29)


class EarlyExitNet(nn.Module):
    """Side branches that stop the forward pass once it is confident, BranchyNet (Teerapittayanon et al., 2016)."""

    def __init__(self, width: int, classes: int, threshold: float = 0.95) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())
            for c_in, c_out in pairwise(channels)
        )
        self.exits = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes)) for c in channels[1:]
        )
        self.threshold = threshold

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        for stage, head in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            logits = head(x)
            outputs.append(logits)
            confidence = F.softmax(logits, dim=-1).max(dim=-1).values
            if confidence.min().item() > self.threshold:
                break
        return outputs


@register
def early_exit(width: int) -> tuple[nn.Module, Any]:
    return EarlyExitNet(width, classes=11), torch.randn(3, 3, 21, 21)


def squash(x: Tensor, dim: int = -1) -> Tensor:
    norm_sq = (x**2).sum(dim=dim, keepdim=True)
    return norm_sq / (1 + norm_sq) * x / (norm_sq.sqrt() + 1e-8)


class DigitCaps(nn.Module):
    def __init__(self, in_caps: int, in_dim: int, out_caps: int, out_dim: int, routings: int = 3) -> None:
        super().__init__()
        self.routings = routings
        self.W = nn.Parameter(0.01 * torch.randn(out_caps, in_caps, out_dim, in_dim))

    def forward(self, x: Tensor) -> Tensor:
        x_hat = torch.squeeze(torch.matmul(self.W, x[:, None, :, :, None]), dim=-1)
        x_hat_detached = x_hat.detach()
        b = torch.zeros(x_hat.shape[:3], device=x.device)
        for _ in range(self.routings - 1):
            c = F.softmax(b, dim=1)
            outputs = squash(torch.sum(c[..., None] * x_hat_detached, dim=-2, keepdim=True))
            b = b + torch.sum(outputs * x_hat_detached, dim=-1)
        c = F.softmax(b, dim=1)
        return squash(torch.sum(c[..., None] * x_hat, dim=-2, keepdim=True)).squeeze(-2)


class CapsNet(nn.Module):
    """Capsules with dynamic routing and a reconstruction decoder, CapsNet (Sabour et al., 2017)."""

    def __init__(self, width: int, classes: int, image: int = 19, caps_dim: int = 6) -> None:
        super().__init__()
        caps_types, out_dim = width // 4, width // 2
        side = (image - 8 - 7) // 2 + 1
        self.image, self.caps_dim = image, caps_dim
        self.conv1 = nn.Conv2d(1, width, kernel_size=9)
        self.primary = nn.Conv2d(width, caps_types * caps_dim, kernel_size=7, stride=2)
        self.digits = DigitCaps(caps_types * side * side, caps_dim, classes, out_dim)
        self.decoder = nn.Sequential(
            nn.Linear(classes * out_dim, 2 * width),
            nn.ReLU(inplace=True),
            nn.Linear(2 * width, 4 * width),
            nn.ReLU(inplace=True),
            nn.Linear(4 * width, image * image),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv1(x))
        x = squash(self.primary(x).view(x.size(0), -1, self.caps_dim))
        x = self.digits(x)
        length = x.norm(dim=-1)
        one_hot = F.one_hot(y, num_classes=length.size(1)).float()
        reconstruction = self.decoder((x * one_hot[:, :, None]).view(x.size(0), -1))
        return length, reconstruction.view(-1, 1, self.image, self.image)


@register
def capsule(width: int) -> tuple[nn.Module, Any]:
    return CapsNet(width, classes=7), (torch.randn(3, 1, 19, 19), torch.tensor([0, 5, 2]))


# generative models --------------------------------------------------------------------------------------


def timestep_embedding(t: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = t[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, time_dim: int) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.GroupNorm(8, in_ch), nn.SiLU(), nn.Conv2d(in_ch, out_ch, 3, padding=1))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_ch))
        self.block2 = nn.Sequential(
            nn.GroupNorm(8, out_ch), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        )
        self.shortcut = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.block1(x)
        h = h + self.temb_proj(temb)[:, :, None, None]
        return self.block2(h) + self.shortcut(x)


class AttnBlock(nn.Module):
    def __init__(self, ch: int) -> None:
        super().__init__()
        self.heads = ch // HEAD_SIZE
        self.norm = nn.GroupNorm(8, ch)
        self.qkv = nn.Conv2d(ch, 3 * ch, 1)
        self.proj = nn.Conv2d(ch, ch, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b * self.heads, 3 * HEAD_SIZE, h * w)
        q, k, v = qkv.split(HEAD_SIZE, dim=1)
        scale = HEAD_SIZE**-0.25
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
        out = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, h, w)
        return x + self.proj(out)


class UNet(nn.Module):
    """Noise predictor with skip connections and a time embedding, DDPM (Ho et al., 2020)."""

    def __init__(self, ch: int, image_channels: int = 3, ch_mult: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.ch = ch
        time_dim = 4 * ch
        self.time_mlp = nn.Sequential(nn.Linear(ch, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.conv_in = nn.Conv2d(image_channels, ch, 3, padding=1)
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        skips, now = [ch], ch
        for i, mult in enumerate(ch_mult):
            self.downs.append(ResBlock(now, ch * mult, time_dim))
            now = ch * mult
            skips.append(now)
            if i != len(ch_mult) - 1:
                self.downs.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
        self.mid1, self.mid_attn, self.mid2 = ResBlock(now, now, time_dim), AttnBlock(now), ResBlock(now, now, time_dim)
        for i, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(2):
                self.ups.append(ResBlock(now + skips.pop(), ch * mult, time_dim))
                now = ch * mult
            if i != 0:
                self.ups.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(now, now, 3, padding=1)))
        self.out = nn.Sequential(nn.GroupNorm(8, now), nn.SiLU(), nn.Conv2d(now, image_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.time_mlp(timestep_embedding(t, self.ch))
        h = self.conv_in(x)
        hs = [h]
        for layer in self.downs:
            h = layer(h, temb) if isinstance(layer, ResBlock) else layer(h)
            hs.append(h)
        h = self.mid2(self.mid_attn(self.mid1(h, temb)), temb)
        for layer in self.ups:
            h = layer(torch.cat([h, hs.pop()], dim=1), temb) if isinstance(layer, ResBlock) else layer(h)
        return self.out(h)


@register
def unet(width: int) -> tuple[nn.Module, Any]:
    return UNet(width), (torch.randn(2, 3, 14, 14), torch.tensor([3, 711]))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class DiTBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = DiTAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.adaLN_modulation[-1].weight)
        nn.init.zeros_(self.adaLN_modulation[-1].bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    def __init__(self, dim: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        for layer in (self.linear, self.adaLN_modulation[-1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiT(nn.Module):
    """Diffusion transformer with adaptive layer norm and classifier-free labels, DiT (Peebles and Xie, 2023)."""

    def __init__(self, dim: int, image: int = 15, patch: int = 3, channels: int = 5, classes: int = 11) -> None:
        super().__init__()
        self.patch, self.channels, self.grid = patch, channels, image // patch
        self.num_classes, self.label_dropout, self.frequencies = classes, 0.1, 50
        self.x_embedder = nn.Conv2d(channels, dim, patch, stride=patch)
        self.t_embedder = nn.Sequential(nn.Linear(self.frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.y_embedder = nn.Embedding(classes + 1, dim)
        table = timestep_embedding(torch.arange(self.grid**2), dim)
        self.pos_embed = nn.Parameter(table.unsqueeze(0), requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(dim, dim // HEAD_SIZE) for _ in range(2)])
        self.final_layer = FinalLayer(dim, patch, 2 * channels)

    def unpatchify(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], self.grid, self.grid, self.patch, self.patch, 2 * self.channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(x.shape[0], 2 * self.channels, self.grid * self.patch, self.grid * self.patch)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        if self.training:
            drop = torch.rand(y.shape[0], device=y.device) < self.label_dropout
            y = torch.where(drop, self.num_classes, y)
        c = self.t_embedder(timestep_embedding(t, self.frequencies)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))


@register
def dit(width: int) -> tuple[nn.Module, Any]:
    return DiT(width), {"x": torch.randn(3, 5, 15, 15), "t": torch.tensor([1, 53, 900]), "y": torch.tensor([0, 4, 7])}


class VAE(nn.Module):
    """Variational autoencoder with a Gaussian latent (Kingma and Welling, 2014)."""

    def __init__(self, width: int, image: int = 13) -> None:
        super().__init__()
        self.image = image
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(image * image, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width), nn.ReLU()
        )
        self.fc_mu = nn.Linear(2 * width, width // 4)
        self.fc_logvar = nn.Linear(2 * width, width // 4)
        self.decoder = nn.Sequential(
            nn.Linear(width // 4, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, image * image),
        )

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.fc_mu(h), self.fc_logvar(h)
        z = self.reparameterize(mu, logvar)
        recon = torch.sigmoid(self.decoder(z)).view(-1, 1, self.image, self.image)
        return recon, mu, logvar


@register
def vae(width: int) -> tuple[nn.Module, Any]:
    return VAE(width), torch.rand(5, 1, 13, 13)


class CouplingLayer(nn.Module):
    def __init__(self, dim: int, hidden: int, flip: bool) -> None:
        super().__init__()
        mask = torch.arange(dim) % 2
        self.register_buffer("mask", (1 - mask if flip else mask).float())
        self.s_net = self._mlp(dim, hidden)
        self.t_net = self._mlp(dim, hidden)
        self.rescale = nn.Parameter(torch.ones(dim))

    @staticmethod
    def _mlp(dim: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        masked = x * self.mask
        s = self.rescale * torch.tanh(self.s_net(masked)) * (1 - self.mask)
        t = self.t_net(masked) * (1 - self.mask)
        return masked + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(dim=-1)


class RealNVP(nn.Module):
    """Normalizing flow of affine couplings, RealNVP (Dinh et al., 2017)."""

    def __init__(self, dim: int, hidden: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([CouplingLayer(dim, hidden, flip=i % 2 == 1) for i in range(layers)])
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = torch.zeros(x.size(0), device=x.device)
        for layer in self.layers:
            x, ld = layer(x)
            log_det = log_det + ld
        log_prob = -0.5 * (((x - self.loc) / self.scale) ** 2 + math.log(2 * math.pi)).sum(dim=-1)
        return x, log_prob + log_det


@register
def real_nvp(width: int) -> tuple[nn.Module, Any]:
    return RealNVP(dim=7, hidden=width), torch.randn(11, 7)


class Generator(nn.Module):
    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project = weight_norm(nn.Linear(latent, 4 * width * 3 * 3))
        self.up1 = weight_norm(nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1))
        self.up2 = weight_norm(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1))
        self.to_rgb = weight_norm(nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.project(z)).view(-1, 4 * self.width, 3, 3)
        x = F.relu(self.up1(x))
        x = F.relu(self.up2(x))
        return torch.tanh(self.to_rgb(x))


class ProjectionDiscriminator(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(3, width, 3, stride=2, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
        self.linear = spectral_norm(nn.Linear(2 * width, 1))
        self.embed = spectral_norm(nn.Embedding(classes, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), 0.2)
        h = F.leaky_relu(self.conv2(h), 0.2)
        h = h.sum(dim=(2, 3))
        return self.linear(h) + (self.embed(y) * h).sum(dim=1, keepdim=True)


class ConditionalGAN(nn.Module):
    """Weight-normalized generator and spectrally normalized projection critic (Miyato and Koyama, 2018)."""

    def __init__(self, width: int, latent: int, classes: int) -> None:
        super().__init__()
        self.generator = Generator(latent, width)
        self.discriminator = ProjectionDiscriminator(width, classes)

    def forward(self, z: Tensor, real: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        fake = self.generator(z)
        scores = self.discriminator(torch.cat([fake, real]), torch.cat([y, y]))
        score_fake, score_real = scores.chunk(2, dim=0)
        return score_fake, score_real


@register
def projection_gan(width: int) -> tuple[nn.Module, Any]:
    model = ConditionalGAN(width, latent=17, classes=7)
    return model, (torch.randn(3, 17), torch.randn(3, 3, 12, 12), torch.tensor([0, 6, 2]))


# three dimensions and coordinates -----------------------------------------------------------------------


class NeRF(nn.Module):
    """Radiance field over encoded positions with a skip to the input, NeRF (Mildenhall et al., 2020)."""

    def __init__(
        self, width: int, depth: int = 4, skips: tuple[int, ...] = (1,), l_pos: int = 5, l_dir: int = 2
    ) -> None:
        super().__init__()
        self.l_pos, self.l_dir, self.skips = l_pos, l_dir, skips
        pos_dim, dir_dim = 3 + 6 * l_pos, 3 + 6 * l_dir
        self.pts_linears = nn.ModuleList(
            [nn.Linear(pos_dim, width)]
            + [nn.Linear(width + pos_dim if i in skips else width, width) for i in range(depth - 1)]
        )
        self.alpha_linear = nn.Linear(width, 1)
        self.feature_linear = nn.Linear(width, width)
        self.views_linear = nn.Linear(dir_dim + width, width // 2)
        self.rgb_linear = nn.Linear(width // 2, 3)

    @staticmethod
    def encode(x: Tensor, num_freqs: int) -> Tensor:
        out = [x]
        for i in range(num_freqs):
            for fn in (torch.sin, torch.cos):
                out.append(fn(2.0**i * x))
        return torch.cat(out, -1)

    def forward(self, points: Tensor, views: Tensor) -> Tensor:
        input_pts = self.encode(points, self.l_pos)
        h = input_pts
        for i, layer in enumerate(self.pts_linears):
            h = F.relu(layer(h))
            if i in self.skips:
                h = torch.cat([input_pts, h], -1)
        alpha = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), self.encode(views, self.l_dir)], -1)
        h = F.relu(self.views_linear(h))
        return torch.cat([torch.sigmoid(self.rgb_linear(h)), alpha], -1)


@register
def nerf(width: int) -> tuple[nn.Module, Any]:
    return NeRF(width), (torch.randn(5, 11, 3), F.normalize(torch.randn(5, 11, 3), dim=-1))


class TNet(nn.Module):
    def __init__(self, width: int, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.conv1 = nn.Conv1d(k, width, 1)
        self.conv2 = nn.Conv1d(width, 2 * width, 1)
        self.fc1 = nn.Linear(2 * width, width)
        self.fc2 = nn.Linear(width, k * k)
        self.bn1 = nn.BatchNorm1d(width)
        self.bn2 = nn.BatchNorm1d(2 * width)
        self.bn3 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        batchsize = x.size(0)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = torch.max(x, 2, keepdim=True)[0].view(batchsize, -1)
        x = F.relu(self.bn3(self.fc1(x)))
        identity = torch.eye(self.k, device=x.device).flatten().repeat(batchsize, 1)
        return (self.fc2(x) + identity).view(-1, self.k, self.k)


class PointNet(nn.Module):
    """Point cloud classifier with a learned alignment and max pooling, PointNet (Qi et al., 2017)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stn = TNet(width)
        self.mlp1 = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.mlp2 = nn.Sequential(nn.Conv1d(width, 2 * width, 1), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.mlp3 = nn.Sequential(nn.Conv1d(2 * width, 4 * width, 1), nn.BatchNorm1d(4 * width))
        self.head = nn.Sequential(
            nn.Linear(4 * width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.Dropout(p=0.3),
            nn.Linear(2 * width, classes),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trans = self.stn(x)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = self.mlp3(self.mlp2(self.mlp1(x)))
        x = torch.max(x, 2)[0]
        return F.log_softmax(self.head(x), dim=1), trans


@register
def point_net(width: int) -> tuple[nn.Module, Any]:
    return PointNet(width, classes=11), torch.randn(5, 3, 23)


class ODEFunc(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim + 1, 2 * dim)
        self.fc2 = nn.Linear(2 * dim + 1, dim)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        tt = torch.ones_like(y[:, :1]) * t
        h = torch.tanh(self.fc1(torch.cat([tt, y], 1)))
        return self.fc2(torch.cat([tt, h], 1))


class NeuralODE(nn.Module):
    """Continuous-depth classifier with a fixed-step Runge-Kutta solver, Neural ODE (Chen et al., 2018)."""

    def __init__(self, inputs: int, dim: int, classes: int, steps: int = 5) -> None:
        super().__init__()
        self.lift = nn.Linear(inputs, dim)
        self.func = ODEFunc(dim)
        self.norm = nn.LayerNorm(dim)
        self.readout = nn.Linear(dim, classes)
        self.register_buffer("t", torch.linspace(0.0, 1.0, steps + 1))

    def odeint(self, y: Tensor) -> Tensor:
        for t0, t1 in zip(self.t[:-1], self.t[1:], strict=True):
            h = t1 - t0
            k1 = self.func(t0, y)
            k2 = self.func(t0 + h / 2, y + h * k1 / 2)
            k3 = self.func(t0 + h / 2, y + h * k2 / 2)
            k4 = self.func(t1, y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.norm(self.odeint(torch.relu(self.lift(x)))))


@register
def neural_ode(width: int) -> tuple[nn.Module, Any]:
    return NeuralODE(inputs=13, dim=width, classes=7), torch.randn(5, 13)


class KANLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, grid_size: int = 4, order: int = 3) -> None:
        super().__init__()
        self.order, self.in_features, self.out_features = order, in_features, out_features
        h = 2.0 / grid_size
        grid = torch.arange(-order, grid_size + order + 1) * h - 1.0
        self.register_buffer("grid", grid.expand(in_features, -1).contiguous())
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + order))
        self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))
        nn.init.normal_(self.spline_weight, std=0.1 / math.sqrt(in_features))
        nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5))

    def b_splines(self, x: Tensor) -> Tensor:
        grid = self.grid
        x = x.unsqueeze(-1)
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            bases = left * bases[:, :, :-1] + right * bases[:, :, 1:]
        return bases.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        base_output = F.linear(F.silu(x), self.base_weight)
        scaled = self.spline_weight * self.spline_scaler.unsqueeze(-1)
        spline_output = F.linear(self.b_splines(x).view(x.size(0), -1), scaled.view(self.out_features, -1))
        return base_output + spline_output


class KAN(nn.Module):
    """Learned spline activations on every edge, Kolmogorov-Arnold network (Liu et al., 2024)."""

    def __init__(self, layers_hidden: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(KANLinear(n_in, n_out) for n_in, n_out in pairwise(layers_hidden))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@register
def kan(width: int) -> tuple[nn.Module, Any]:
    return KAN([5, width, width, 3]), torch.rand(11, 5) * 2 - 1


# graphs and sets ----------------------------------------------------------------------------------------

EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 5, 5, 6, 6, 2, 4, 0], [1, 0, 2, 1, 4, 3, 6, 3, 5, 4, 0, 5, 2]])


class MessagePassing(nn.Module):
    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * dim + edge_dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.update = nn.GRUCell(dim, dim)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        m = self.message(torch.cat([h[src], h[dst], edge_attr], dim=-1))
        agg = torch.zeros_like(h).index_add(0, dst, m)
        degree = torch.zeros(h.size(0), device=h.device).index_add(0, dst, torch.ones_like(dst, dtype=h.dtype))
        return self.update(agg / degree.clamp(min=1).unsqueeze(-1), h)


class MPNN(nn.Module):
    """Graph regressor with edge features and gated updates, message passing network (Gilmer et al., 2017)."""

    def __init__(self, node_dim: int, edge_dim: int, dim: int, targets: int, steps: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(node_dim, dim)
        self.conv = MessagePassing(dim, edge_dim)
        self.steps = steps
        self.gate = nn.Linear(dim + node_dim, 1)
        self.readout = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, targets))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        h = torch.relu(self.embed(x))
        for _ in range(self.steps):
            h = self.conv(h, edge_index, edge_attr)
        weighted = torch.sigmoid(self.gate(torch.cat([h, x], dim=-1))) * h
        pooled = h.new_zeros(num_graphs, h.size(1))
        pooled = pooled.scatter_add(0, batch.unsqueeze(-1).expand_as(weighted), weighted)
        return self.readout(pooled)


@register
def message_passing(width: int) -> tuple[nn.Module, Any]:
    model = MPNN(node_dim=11, edge_dim=5, dim=width, targets=3)
    batch = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    return model, (torch.randn(7, 11), EDGES, torch.randn(EDGES.size(1), 5), batch, 2)


def scatter_softmax(scores: Tensor, index: Tensor, num_nodes: int) -> Tensor:
    expanded = index.unsqueeze(-1).expand_as(scores)
    peak = scores.new_full((num_nodes, scores.size(1)), float("-inf"))
    peak = peak.scatter_reduce(0, expanded, scores.detach(), reduce="amax")
    exp = (scores - peak[index]).exp()
    total = torch.zeros(num_nodes, scores.size(1), device=scores.device).index_add(0, index, exp)
    return exp / (total[index] + 1e-16)


class GATConv(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, heads: int, concat: bool = True) -> None:
        super().__init__()
        self.heads, self.out_dim, self.concat = heads, out_dim, concat
        self.lin = nn.Linear(in_dim, heads * out_dim, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_dim))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_dim))
        self.bias = nn.Parameter(torch.zeros(heads * out_dim if concat else out_dim))
        for p in (self.lin.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        n = x.size(0)
        src, dst = edge_index[0], edge_index[1]
        h = self.lin(x).view(n, self.heads, self.out_dim)
        a_src = (h * self.att_src).sum(dim=-1)
        a_dst = (h * self.att_dst).sum(dim=-1)
        alpha = F.leaky_relu(a_src[src] + a_dst[dst], negative_slope=0.2)
        alpha = F.dropout(scatter_softmax(alpha, dst, n), p=0.1, training=self.training)
        out = torch.zeros_like(h).index_add(0, dst, h[src] * alpha.unsqueeze(-1))
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        return out + self.bias


class GAT(nn.Module):
    """Node classifier with attention over neighbours, graph attention network (Velickovic et al., 2018)."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        heads = width // HEAD_SIZE
        self.conv1 = GATConv(features, HEAD_SIZE, heads)
        self.conv2 = GATConv(width, HEAD_SIZE, heads)
        self.conv3 = GATConv(width, classes, heads, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=0.1, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.elu(self.conv2(x, edge_index)) + x
        return F.log_softmax(self.conv3(x, edge_index), dim=-1)


@register
def graph_attention(width: int) -> tuple[nn.Module, Any]:
    return GAT(features=11, width=width, classes=5), (torch.randn(7, 11), EDGES)


class MAB(nn.Module):
    def __init__(self, dim_q: int, dim_k: int, dim_v: int, num_heads: int) -> None:
        super().__init__()
        self.dim_v, self.num_heads = dim_v, num_heads
        self.fc_q = nn.Linear(dim_q, dim_v)
        self.fc_k = nn.Linear(dim_k, dim_v)
        self.fc_v = nn.Linear(dim_k, dim_v)
        self.ln0 = nn.LayerNorm(dim_v)
        self.ln1 = nn.LayerNorm(dim_v)
        self.fc_o = nn.Linear(dim_v, dim_v)

    def forward(self, Q: Tensor, K: Tensor) -> Tensor:
        Q, K, V = self.fc_q(Q), self.fc_k(K), self.fc_v(K)
        dim_split = self.dim_v // self.num_heads
        Q_ = torch.cat(Q.split(dim_split, 2), 0)
        K_ = torch.cat(K.split(dim_split, 2), 0)
        V_ = torch.cat(V.split(dim_split, 2), 0)
        A = torch.softmax(Q_.bmm(K_.transpose(1, 2)) / math.sqrt(self.dim_v), 2)
        out = torch.cat((Q_ + A.bmm(V_)).split(Q.size(0), 0), 2)
        out = self.ln0(out)
        return self.ln1(out + F.relu(self.fc_o(out)))


class ISAB(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, num_heads: int, num_inds: int) -> None:
        super().__init__()
        self.inducing = nn.Parameter(torch.empty(1, num_inds, dim_out))
        nn.init.xavier_uniform_(self.inducing)
        self.mab0 = MAB(dim_out, dim_in, dim_out, num_heads)
        self.mab1 = MAB(dim_in, dim_out, dim_out, num_heads)

    def forward(self, X: Tensor) -> Tensor:
        H = self.mab0(self.inducing.repeat(X.size(0), 1, 1), X)
        return self.mab1(X, H)


class PMA(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_seeds: int) -> None:
        super().__init__()
        self.seeds = nn.Parameter(torch.empty(1, num_seeds, dim))
        nn.init.xavier_uniform_(self.seeds)
        self.mab = MAB(dim, dim, dim, num_heads)

    def forward(self, X: Tensor) -> Tensor:
        return self.mab(self.seeds.repeat(X.size(0), 1, 1), X)


class SetTransformer(nn.Module):
    """Attention over sets with inducing points and learned pooling, Set Transformer (Lee et al., 2019)."""

    def __init__(self, dim_input: int, dim_output: int, dim_hidden: int, num_inds: int = 5, num_seeds: int = 3) -> None:
        super().__init__()
        heads = dim_hidden // HEAD_SIZE
        self.enc = nn.Sequential(
            ISAB(dim_input, dim_hidden, heads, num_inds), ISAB(dim_hidden, dim_hidden, heads, num_inds)
        )
        self.pool = PMA(dim_hidden, heads, num_seeds)
        self.sab = MAB(dim_hidden, dim_hidden, dim_hidden, heads)
        self.dec = nn.Linear(dim_hidden, dim_output)

    def forward(self, X: Tensor) -> Tensor:
        H = self.pool(self.enc(X))
        return self.dec(self.sab(H, H))


@register
def set_transformer(width: int) -> tuple[nn.Module, Any]:
    return SetTransformer(dim_input=7, dim_output=6, dim_hidden=width), torch.randn(3, 13, 7)


class PerceiverAttention(nn.Module):
    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int = HEAD_SIZE) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = nn.LayerNorm(query_dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, query_dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(self.norm_context(context)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        sim = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        out = torch.einsum("bhij,bhjd->bhid", sim.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLUFeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim * mult * 2)
        self.out = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gates = self.proj(self.norm(x)).chunk(2, dim=-1)
        return self.out(x * F.gelu(gates))


class Perceiver(nn.Module):
    """Latent array that attends to Fourier-encoded data, Perceiver (Jaegle et al., 2021)."""

    def __init__(self, channels: int, latent_dim: int, classes: int, latents: int = 11, bands: int = 3) -> None:
        super().__init__()
        heads = latent_dim // HEAD_SIZE
        data_dim = channels + 2 * (2 * bands + 1)
        self.bands = bands
        self.latents = nn.Parameter(torch.randn(latents, latent_dim) * 0.02)
        self.cross_attn = PerceiverAttention(latent_dim, data_dim, heads)
        self.cross_ff = GEGLUFeedForward(latent_dim)
        self.self_attn = PerceiverAttention(latent_dim, latent_dim, heads)
        self.self_ff = GEGLUFeedForward(latent_dim)
        self.to_logits = nn.Sequential(nn.LayerNorm(latent_dim), nn.Linear(latent_dim, classes))

    def fourier_encode(self, h: int, w: int, device: torch.device) -> Tensor:
        axes = [torch.linspace(-1.0, 1.0, steps=s, device=device) for s in (h, w)]
        pos = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).unsqueeze(-1)
        scales = torch.linspace(1.0, 5.0, self.bands, device=device)
        x = pos * scales * math.pi
        return torch.cat([x.sin(), x.cos(), pos], dim=-1).flatten(2)

    def forward(self, data: Tensor) -> Tensor:
        b, h, w, _ = data.shape
        pos = self.fourier_encode(h, w, data.device).expand(b, -1, -1, -1)
        data = torch.cat((data, pos), dim=-1).flatten(1, 2)
        x = self.latents.unsqueeze(0).repeat(b, 1, 1)
        for _ in range(2):
            x = x + self.cross_attn(x, data)
            x = x + self.cross_ff(x)
            x = x + self.self_attn(x, x)
            x = x + self.self_ff(x)
        return self.to_logits(x.mean(dim=1))


@register
def perceiver(width: int) -> tuple[nn.Module, Any]:
    return Perceiver(channels=3, latent_dim=width, classes=7), torch.randn(2, 6, 5, 3)


# sequences ----------------------------------------------------------------------------------------------


class BahdanauAttention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(hidden, hidden, bias=False)
        self.W_k = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        energy = self.v(torch.tanh(self.W_q(query).unsqueeze(1) + self.W_k(keys))).squeeze(-1)
        weights = F.softmax(energy.masked_fill(~mask, -1e9), dim=-1)
        return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)


class Seq2Seq(nn.Module):
    """Recurrent translator with additive attention (Bahdanau et al., 2015)."""

    def __init__(self, src_vocab: int, tgt_vocab: int, hidden: int, pad: int = 0) -> None:
        super().__init__()
        self.pad, self.hidden = pad, hidden
        self.src_embed = nn.Embedding(src_vocab, hidden // 2, padding_idx=pad)
        self.tgt_embed = nn.Embedding(tgt_vocab, hidden // 2, padding_idx=pad)
        self.encoder = nn.GRUCell(hidden // 2, hidden)
        self.bridge = nn.Linear(hidden, hidden)
        self.attention = BahdanauAttention(hidden)
        self.decoder = nn.GRUCell(hidden // 2 + hidden, hidden)
        self.out = nn.Linear(2 * hidden, tgt_vocab)

    def encode(self, src: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.zeros(src.size(0), self.hidden, device=src.device)
        states = []
        for x in self.src_embed(src).unbind(dim=1):
            h = self.encoder(x, h)
            states.append(h)
        return torch.stack(states, dim=1), torch.tanh(self.bridge(h))

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        keys, h = self.encode(src)
        mask = src != self.pad
        outputs = []
        embedded = self.tgt_embed(tgt)
        for t in range(tgt.size(1)):
            context = self.attention(h, keys, mask)
            h = self.decoder(torch.cat([embedded[:, t], context], dim=-1), h)
            outputs.append(self.out(torch.cat([h, context], dim=-1)))
        return torch.stack(outputs, dim=1)


@register
def seq2seq(width: int) -> tuple[nn.Module, Any]:
    src, tgt = torch.randint(1, 79, (3, 7)), torch.randint(1, 73, (3, 5))
    src[0, 5:] = 0
    return Seq2Seq(src_vocab=79, tgt_vocab=73, hidden=width), (src, tgt)


class BiLSTMCRF(nn.Module):
    """Sequence tagger that returns its loss, bidirectional LSTM with a CRF (Huang et al., 2015)."""

    def __init__(self, vocab: int, tags: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width // 2, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.hidden2tag = nn.Linear(width, tags)
        self.transitions = nn.Parameter(torch.randn(tags, tags) * 0.1)
        self.start = nn.Parameter(torch.zeros(tags))
        self.end = nn.Parameter(torch.zeros(tags))

    def path_score(self, emissions: Tensor, tags: Tensor) -> Tensor:
        score = emissions.gather(2, tags.unsqueeze(-1)).squeeze(-1).sum(dim=1)
        score = score + self.transitions[tags[:, :-1], tags[:, 1:]].sum(dim=1)
        return score + self.start[tags[:, 0]] + self.end[tags[:, -1]]

    def partition(self, emissions: Tensor) -> Tensor:
        alpha = self.start + emissions[:, 0]
        for i in range(1, emissions.size(1)):
            alpha = torch.logsumexp(alpha.unsqueeze(2) + self.transitions + emissions[:, i].unsqueeze(1), dim=1)
        return torch.logsumexp(alpha + self.end, dim=1)

    def forward(self, words: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.lstm(self.embedding(words))
        emissions = self.hidden2tag(hidden)
        loss = (self.partition(emissions) - self.path_score(emissions, tags)).mean()
        return loss, emissions


@register
def bilstm_tagger(width: int) -> tuple[nn.Module, Any]:
    return BiLSTMCRF(vocab=113, tags=9, width=width), (torch.randint(1, 113, (3, 7)), torch.randint(0, 9, (3, 7)))


class Chomp1d(nn.Module):
    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int, kernel_size: int, dilation: int, dropout: float = 0.1) -> None:
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation)),
            Chomp1d(padding),
            nn.ReLU(),
            nn.Dropout(dropout),
            weight_norm(nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation)),
            Chomp1d(padding),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None

    def forward(self, x: Tensor) -> Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    """Causal dilated convolutions with weight norm, temporal convolutional network (Bai et al., 2018)."""

    def __init__(self, inputs: int, channels: list[int], classes: int, kernel_size: int = 3) -> None:
        super().__init__()
        sizes = [inputs, *channels]
        self.network = nn.Sequential(
            *[TemporalBlock(sizes[i], sizes[i + 1], kernel_size, dilation=2**i) for i in range(len(channels))]
        )
        self.linear = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.linear(self.network(x)[:, :, -1]), dim=1)


@register
def tcn(width: int) -> tuple[nn.Module, Any]:
    return TCN(inputs=5, channels=[width, width, 2 * width], classes=7), torch.randn(3, 5, 19)


class WaveNetLayer(nn.Module):
    def __init__(self, residual: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.pad = dilation
        self.dilated = nn.Conv1d(residual, 2 * residual, kernel_size=2, dilation=dilation)
        self.res_conv = nn.Conv1d(residual, residual, 1)
        self.skip_conv = nn.Conv1d(residual, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        filtered, gate = self.dilated(F.pad(x, (self.pad, 0))).chunk(2, dim=1)
        h = torch.tanh(filtered) * torch.sigmoid(gate)
        return (x + self.res_conv(h)) * math.sqrt(0.5), self.skip_conv(h)


class WaveNet(nn.Module):
    """Autoregressive audio model with gated residuals and summed skips, WaveNet (van den Oord et al., 2016)."""

    def __init__(self, quantize: int, width: int, layers: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.quantize = quantize
        self.causal = nn.Conv1d(quantize, width, kernel_size=2)
        self.layers = nn.ModuleList(
            [WaveNetLayer(width, 2 * width, 2**i) for _ in range(blocks) for i in range(layers)]
        )
        self.layers[-1].res_conv = nn.Identity()
        self.post1 = nn.Conv1d(2 * width, 2 * width, 1)
        self.post2 = nn.Conv1d(2 * width, quantize, 1)

    def forward(self, samples: Tensor) -> Tensor:
        x = F.one_hot(samples, self.quantize).float().transpose(1, 2)
        x = self.causal(F.pad(x, (1, 0)))
        skips: Tensor | float = 0.0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        return self.post2(F.relu(self.post1(F.relu(skips))))


@register
def wavenet(width: int) -> tuple[nn.Module, Any]:
    return WaveNet(quantize=61, width=width), torch.randint(0, 61, (2, 23))


class ConformerFeedForward(nn.Sequential):
    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
            nn.Dropout(dropout),
        )


class ConvolutionModule(nn.Module):
    def __init__(self, dim: int, kernel_size: int = 7, dropout: float = 0.1) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.sequential = nn.Sequential(
            nn.Conv1d(dim, 2 * dim, 1),
            nn.GLU(dim=1),
            nn.Conv1d(dim, dim, kernel_size, padding=(kernel_size - 1) // 2, groups=dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.SiLU(),
            nn.Conv1d(dim, dim, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(self.layer_norm(x).transpose(1, 2)).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ffn1 = ConformerFeedForward(dim)
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)
        self.conv = ConvolutionModule(dim)
        self.ffn2 = ConformerFeedForward(dim)
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        h = self.attn_norm(x)
        x = x + self.attn(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.conv(x)
        return self.final_norm(x + 0.5 * self.ffn2(x))


class Conformer(nn.Module):
    """Speech encoder with convolution-augmented attention and a CTC head, Conformer (Gulati et al., 2020)."""

    def __init__(self, mels: int, dim: int, vocab: int, depth: int = 2) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, dim, 3, stride=2), nn.ReLU(), nn.Conv2d(dim, dim, 3, stride=2))
        freq = ((mels - 1) // 2 - 1) // 2
        self.input_linear = nn.Linear(dim * freq, dim)
        self.layers = nn.ModuleList([ConformerBlock(dim, dim // HEAD_SIZE) for _ in range(depth)])
        self.ctc = nn.Linear(dim, vocab)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.subsample(mel.unsqueeze(1)))
        b, c, t, f = x.size()
        x = self.input_linear(x.transpose(1, 2).reshape(b, t, c * f))
        lengths = ((lengths - 1) // 2 - 1) // 2
        padding = torch.arange(t, device=x.device)[None, :] >= lengths[:, None]
        for layer in self.layers:
            x = layer(x, padding)
        return F.log_softmax(self.ctc(x), dim=-1), lengths


@register
def conformer(width: int) -> tuple[nn.Module, Any]:
    return Conformer(mels=23, dim=width, vocab=41), (torch.randn(2, 37, 23), torch.tensor([37, 29]))


class S4DKernel(nn.Module):
    def __init__(self, d_model: int, N: int = 10, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        log_dt = torch.rand(d_model) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        C = torch.randn(d_model, N // 2, dtype=torch.cfloat)
        self.C = nn.Parameter(torch.view_as_real(C))
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(d_model, N // 2)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(N // 2).repeat(d_model, 1))

    def forward(self, L: int) -> Tensor:
        dt = torch.exp(self.log_dt)
        C = torch.view_as_complex(self.C)
        A = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dtA = A * dt.unsqueeze(-1)
        K = dtA.unsqueeze(-1) * torch.arange(L, device=A.device)
        C = C * (torch.exp(dtA) - 1.0) / A
        return 2 * torch.einsum("hn,hnl->hl", C, torch.exp(K)).real


class S4DBlock(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x).transpose(-1, -2)
        L = u.size(-1)
        k_f = torch.fft.rfft(self.kernel(L), n=2 * L)
        u_f = torch.fft.rfft(u, n=2 * L)
        y = torch.fft.irfft(u_f * k_f, n=2 * L)[..., :L]
        y = F.gelu(y + u * self.D.unsqueeze(-1))
        return x + self.output_linear(y).transpose(-1, -2)


class S4D(nn.Module):
    """Sequence classifier of diagonal state spaces with FFT convolution, S4D (Gu et al., 2022)."""

    def __init__(self, d_input: int, d_output: int, d_model: int, n_layers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(d_input, d_model)
        self.layers = nn.ModuleList([S4DBlock(d_model) for _ in range(n_layers)])
        self.decoder = nn.Linear(d_model, d_output)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for layer in self.layers:
            x = layer(x)
        return self.decoder(x.mean(dim=1))


@register
def s4d(width: int) -> tuple[nn.Module, Any]:
    return S4D(d_input=3, d_output=7, d_model=width), torch.randn(2, 19, 3)


class MambaBlock(nn.Module):
    def __init__(self, d_model: int, d_state: int = 7, d_conv: int = 3, expand: int = 2) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + d_state * 2, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        A = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(self.d_inner, 1)
        self.A_log = nn.Parameter(torch.log(A))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, length, _ = x.shape
        x, res = self.in_proj(x).split([self.d_inner, self.d_inner], dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[:, :, :length].transpose(1, 2))
        return self.out_proj(self.ssm(x) * F.silu(res))

    def ssm(self, x: Tensor) -> Tensor:
        A = -torch.exp(self.A_log.float())
        delta, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        return self.selective_scan(x, delta, A, B, C) + x * self.D

    def selective_scan(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        b, length, d_in = u.shape
        deltaA = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
        deltaB_u = torch.einsum("bld,bln,bld->bldn", delta, B, u)
        x = torch.zeros((b, d_in, self.d_state), device=deltaA.device)
        ys = []
        for i in range(length):
            x = deltaA[:, i] * x + deltaB_u[:, i]
            ys.append(torch.einsum("bdn,bn->bd", x, C[:, i]))
        return torch.stack(ys, dim=1)


class Mamba(nn.Module):
    """Language model of selective state spaces with a sequential scan, Mamba (Gu and Dao, 2023)."""

    def __init__(self, vocab: int, d_model: int, n_layer: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.layers = nn.ModuleList([MambaBlock(d_model) for _ in range(n_layer)])
        self.norms = nn.ModuleList([RMSNorm(d_model) for _ in range(n_layer)])
        self.norm_f = RMSNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(norm(x)) + x
        return self.lm_head(self.norm_f(x))


@register
def mamba(width: int) -> tuple[nn.Module, Any]:
    return Mamba(vocab=101, d_model=width), torch.randint(0, 101, (2, 9))


# reinforcement learning ---------------------------------------------------------------------------------


class DuelingDQN(nn.Module):
    """Value and advantage streams over stacked frames, dueling network (Wang et al., 2016)."""

    def __init__(self, frames: int, actions: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(frames, width // 2, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, stride=1),
            nn.ReLU(),
        )
        self.fc_val = nn.Sequential(nn.Linear(width * 2 * 2, 8 * width), nn.ReLU(), nn.Linear(8 * width, 1))
        self.fc_adv = nn.Sequential(nn.Linear(width * 2 * 2, 8 * width), nn.ReLU(), nn.Linear(8 * width, actions))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255.0
        x = self.conv(x)
        x = x.view(x.size(0), -1)
        val = self.fc_val(x)
        adv = self.fc_adv(x)
        return val + adv - adv.mean(dim=1, keepdim=True)


@register
def dueling_dqn(width: int) -> tuple[nn.Module, Any]:
    return DuelingDQN(frames=5, actions=6, width=width), torch.randint(0, 256, (2, 5, 44, 44), dtype=torch.uint8)


def layer_init(layer: nn.Linear, std: float = math.sqrt(2), bias_const: float = 0.0) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


class ActorCritic(nn.Module):
    """Gaussian policy and value on a shared trunk, evaluated on given actions, PPO (Schulman et al., 2017)."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            layer_init(nn.Linear(obs_dim, hidden)), nn.Tanh(), layer_init(nn.Linear(hidden, hidden)), nn.Tanh()
        )
        self.actor_mean = layer_init(nn.Linear(hidden, act_dim), std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, act_dim))
        self.critic = layer_init(nn.Linear(hidden, 1), std=1.0)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(obs)
        mean = self.actor_mean(features)
        dist = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        return dist.log_prob(action).sum(dim=-1), dist.entropy().sum(dim=-1), self.critic(features).squeeze(-1)


@register
def actor_critic(width: int) -> tuple[nn.Module, Any]:
    return ActorCritic(obs_dim=11, act_dim=3, hidden=width), (torch.randn(7, 11), torch.randn(7, 3))


# recommenders and pairs ---------------------------------------------------------------------------------


class Tower(nn.Sequential):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class TwoTower(nn.Module):
    """User and item towers that meet in a dot product, with in-batch negatives (Yi et al., 2019)."""

    def __init__(self, users: int, items: int, item_features: int, width: int) -> None:
        super().__init__()
        self.user_embedding = nn.Embedding(users, width)
        self.history_embedding = nn.EmbeddingBag(items, width, mode="mean")
        self.item_embedding = nn.Embedding(items, width)
        self.user_tower = Tower(2 * width, 2 * width, width)
        self.item_tower = Tower(width + item_features, 2 * width, width)
        self.item_bias = nn.Embedding(items, 1)

    def forward(self, user: Tensor, history: Tensor, offsets: Tensor, item: Tensor, features: Tensor) -> Tensor:
        bag = self.history_embedding(history, offsets)
        u = self.user_tower(torch.cat([self.user_embedding(user), bag], dim=-1))
        v = self.item_tower(torch.cat([self.item_embedding(item), features], dim=-1))
        return u @ v.T + self.item_bias(item).squeeze(-1)


@register
def two_tower(width: int) -> tuple[nn.Module, Any]:
    example = {
        "user": torch.tensor([3, 41, 17]),
        "history": torch.randint(0, 59, (10,)),
        "offsets": torch.tensor([0, 4, 7]),
        "item": torch.tensor([5, 8, 50]),
        "features": torch.randn(3, 5),
    }
    return TwoTower(users=43, items=59, item_features=5, width=width), example


class DeepFM(nn.Module):
    """Factorization machine and deep network on shared field embeddings, DeepFM (Guo et al., 2017)."""

    def __init__(self, field_dims: list[int], embed_dim: int, mlp_dims: list[int]) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *field_dims[:-1]]).cumsum(0))
        self.embedding = nn.Embedding(sum(field_dims), embed_dim)
        self.linear = nn.Embedding(sum(field_dims), 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.xavier_uniform_(self.embedding.weight)
        layers: list[nn.Module] = []
        inputs = len(field_dims) * embed_dim
        for dim in mlp_dims:
            layers += [nn.Linear(inputs, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Dropout(p=0.2)]
            inputs = dim
        layers.append(nn.Linear(inputs, 1))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.offsets.unsqueeze(0)
        embed_x = self.embedding(x)
        square_of_sum = torch.sum(embed_x, dim=1) ** 2
        sum_of_square = torch.sum(embed_x**2, dim=1)
        fm = 0.5 * (square_of_sum - sum_of_square).sum(dim=1, keepdim=True)
        linear = self.linear(x).sum(dim=1) + self.bias
        deep = self.mlp(embed_x.flatten(1))
        return torch.sigmoid((linear + fm + deep).squeeze(1))


@register
def deep_fm(width: int) -> tuple[nn.Module, Any]:
    fields = [7, 13, 5, 11]
    x = torch.stack([torch.randint(0, n, (6,)) for n in fields], dim=1)
    return DeepFM(fields, embed_dim=width // 2, mlp_dims=[2 * width, width]), x


class DLRM(nn.Module):
    """Dense features and embedding bags with pairwise interactions, DLRM (Naumov et al., 2019)."""

    def __init__(self, dense: int, tables: list[int], width: int) -> None:
        super().__init__()
        embed = width // 2
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(n, embed, mode="sum") for n in tables])
        for n, table in zip(tables, self.emb_l, strict=True):
            nn.init.uniform_(table.weight, -math.sqrt(1 / n), math.sqrt(1 / n))
        self.bot_l = nn.Sequential(nn.Linear(dense, width), nn.ReLU(), nn.Linear(width, embed), nn.ReLU())
        features = len(tables) + 1
        rows, cols = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("rows", rows)
        self.register_buffer("cols", cols)
        self.top_l = nn.Sequential(
            nn.Linear(embed + features * (features - 1) // 2, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1)
        )

    def forward(self, dense_x: Tensor, sparse: list[Tensor]) -> Tensor:
        x = self.bot_l(dense_x)
        ly = [table(indices) for table, indices in zip(self.emb_l, sparse, strict=True)]
        T = torch.cat([x, *ly], dim=1).view(x.size(0), -1, x.size(1))
        Z = torch.bmm(T, T.transpose(1, 2))
        R = torch.cat([x, Z[:, self.rows, self.cols]], dim=1)
        return torch.sigmoid(self.top_l(R))


@register
def dlrm(width: int) -> tuple[nn.Module, Any]:
    tables = [19, 7, 23]
    sparse = [torch.randint(0, n, (5, 2)) for n in tables]
    return DLRM(dense=13, tables=tables, width=width), (torch.randn(5, 13), sparse)


class TextEncoder(nn.Module):
    def __init__(self, vocab: int, width: int, embed_dim: int, max_len: int = 17) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.empty(max_len, width))
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD_SIZE, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1], device=text.device)
        x = self.ln_final(self.transformer(x, mask=mask, is_causal=True))
        return x[torch.arange(x.shape[0], device=x.device), text.argmax(dim=-1)] @ self.text_projection


class ImageEncoder(nn.Module):
    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        self.projection = nn.Linear(2 * width, embed_dim, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.projection(self.features(image).flatten(1))


class CLIP(nn.Module):
    """Contrastive image and text encoders with a learned temperature, CLIP (Radford et al., 2021)."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.visual = ImageEncoder(width, width)
        self.textual = TextEncoder(vocab, width, width)
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image_features = self.visual(image)
        text_features = self.textual(text)
        image_features = image_features / image_features.norm(dim=1, keepdim=True)
        text_features = text_features / text_features.norm(dim=1, keepdim=True)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()


@register
def clip(width: int) -> tuple[nn.Module, Any]:
    return CLIP(vocab=109, width=width), (torch.randn(3, 3, 21, 21), torch.randint(0, 109, (3, 13)))


class HyperNet(nn.Module):
    """Weights of a main network generated from a task embedding, hypernetwork (Ha et al., 2017)."""

    def __init__(self, tasks: int, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.sizes = [(inputs, width), (width, width), (width, outputs)]
        self.task_embedding = nn.Embedding(tasks, width)
        self.trunk = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.weight_heads = nn.ModuleList([nn.Linear(width, n_in * n_out) for n_in, n_out in self.sizes])
        self.bias_heads = nn.ModuleList([nn.Linear(width, n_out) for _, n_out in self.sizes])
        for head, (n_in, _) in zip(self.weight_heads, self.sizes, strict=True):
            nn.init.normal_(head.weight, std=0.1 / math.sqrt(width * n_in))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        z = self.trunk(self.task_embedding(task))
        for i, (n_in, n_out) in enumerate(self.sizes):
            weight = self.weight_heads[i](z).view(-1, n_in, n_out)
            bias = self.bias_heads[i](z).unsqueeze(1)
            x = torch.bmm(x, weight) + bias
            if i < len(self.sizes) - 1:
                x = F.relu(x)
        return x


@register
def hypernetwork(width: int) -> tuple[nn.Module, Any]:
    return HyperNet(tasks=7, inputs=5, outputs=3, width=width), (torch.randn(2, 11, 5), torch.tensor([6, 1]))
