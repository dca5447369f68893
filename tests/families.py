"""Stock transformers families, tiny, with roles written down by hand from each architecture.

The expectations say what the architecture is, for a model whose width and number of heads grow: they were
written from the model papers and module trees, not from the pass. A pattern is matched against the whole name
of a parameter; the first that matches counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NORM = r".*(norm|ln_|LayerNorm|layernorm).*"


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model: class name in transformers.
        config: config class and its fields.
        roles: ``(pattern, role)`` pairs, first match counts.
        tied: pairs of names that are one tensor.
        main: size of the main dimension.
    """

    model: str
    config: str
    fields: dict[str, Any]
    roles: tuple[tuple[str, str], ...]
    tied: tuple[tuple[str, str], ...] = ()
    main: int = 64

    def build(self, **overrides: Any) -> nn.Module:
        """Make the model."""
        config = getattr(transformers, self.config)(**(self.fields | overrides))
        model: nn.Module = getattr(transformers, self.model)(config)
        return model

    def role(self, name: str) -> str:
        """Expected role of a parameter."""
        for pattern, role in self.roles:
            if re.fullmatch(pattern, name):
                return role
        raise AssertionError(f"no expectation for {name}")


def decoder(head: str = r"lm_head\.weight") -> tuple[tuple[str, str], ...]:
    """A Llama-like decoder: norms are gains, every projection inside is hidden."""
    return (
        (r".*embed_tokens\.weight", "input"),
        (r".*(q_norm|k_norm)\.weight", "fixed"),
        (NORM, "vector"),
        (head, "output"),
        (r".*\.(q|k|v|o|qkv|gate|up|down|gate_up)_proj\.weight", "hidden"),
        (r".*\.(q|k|v)_proj\.bias", "vector"),
    )


MOE = (
    (r".*\.mlp\.gate\.weight", "output"),
    (r".*\.experts\.(gate_up|down)_proj", "hidden"),
    (r".*shared_experts\..*", "hidden"),
)
GPT2 = (
    (r"transformer\.w[tp]e\.weight", "input"),
    (NORM, "vector"),
    (r".*\.(c_attn|c_proj|c_fc)\.weight", "hidden"),
    (r".*\.bias", "vector"),
    (r"lm_head\.weight", "output"),
)
BERT = (
    (r".*embeddings\.\w+_embeddings\.weight", "input"),
    (r".*rel_embeddings\.weight", "input"),
    (NORM, "vector"),
    (r"(cls\.predictions|lm_head)\.(decoder\.)?bias", "fixed"),
    (r".*\.bias", "vector"),
    (r".*\.weight", "hidden"),
)
WHISPER = (
    (r".*embed_tokens\.weight", "input"),
    (r".*embed_positions\.weight", "input"),
    (r"model\.encoder\.conv1\.weight", "input"),
    (r"model\.encoder\.conv2\.weight", "hidden"),
    (NORM, "vector"),
    (r".*\.bias", "vector"),
    (r".*\.weight", "hidden"),
)
KV = {**SMALL, **TOKENS, "num_key_value_heads": 2}
HEAD16 = {**KV, "head_dim": 16}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, **TOKENS},
        GPT2,
        (("transformer.wte.weight", "lm_head.weight"),),
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", KV, decoder()),
    "mistral": Family("MistralForCausalLM", "MistralConfig", KV, decoder()),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", KV, decoder()),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", HEAD16, decoder()),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**HEAD16, "query_pre_attn_scalar": 16},
        decoder(),
        (("model.embed_tokens.weight", "lm_head.weight"),),
    ),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", KV, decoder()),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**SMALL, **TOKENS},
        (
            (r"gpt_neox\.embed_in\.weight", "input"),
            (NORM, "vector"),
            (r"lm_head\.weight", "output"),
            (r".*\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
    ),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, **TOKENS},
        (
            (r"transformer\.word_embeddings\.weight", "input"),
            (NORM, "vector"),
            (r".*\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
        (("transformer.word_embeddings.weight", "lm_head.weight"),),
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 99,
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 128,
            **TOKENS,
        },
        (
            (r".*embed_(tokens|positions)\.weight", "input"),
            (NORM, "vector"),
            (r".*\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
        (("model.decoder.embed_tokens.weight", "lm_head.weight"),),
    ),
    "falcon": Family(
        "FalconForCausalLM",
        "FalconConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, **TOKENS},
        (
            (r"transformer\.word_embeddings\.weight", "input"),
            (NORM, "vector"),
            (r".*\.weight", "hidden"),
        ),
        (("transformer.word_embeddings.weight", "lm_head.weight"),),
    ),
    "mpt": Family(
        "MptForCausalLM",
        "MptConfig",
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 99, **TOKENS},
        ((r"transformer\.wte\.weight", "input"), (NORM, "vector"), (r".*\.weight", "hidden")),
        (("transformer.wte.weight", "lm_head.weight"),),
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
        (
            (r"shared\.weight", "input"),
            (r".*relative_attention_bias\.weight", "input"),
            (r".*layer_norm\.weight", "vector"),
            (r".*\.weight", "hidden"),
        ),
        (("shared.weight", "lm_head.weight"),),
    ),
    "bert": Family(
        "BertForMaskedLM",
        "BertConfig",
        {**SMALL},
        BERT,
        (("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),),
    ),
    "roberta": Family(
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**SMALL, **TOKENS},
        BERT,
        (("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),),
    ),
    "deberta_v2": Family(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        BERT,
        (("deberta.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),),
    ),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 7,
        },
        (
            (r"vit\.embeddings\.cls_token", "vector"),
            (r"vit\.embeddings\.position_embeddings", "input"),
            (r"vit\.embeddings\.patch_embeddings\.projection\.weight", "input"),
            (NORM, "vector"),
            (r"classifier\.weight", "output"),
            (r"classifier\.bias", "fixed"),
            (r".*\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
    ),
    "clip": Family(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**SMALL, **TOKENS, "projection_dim": 24},
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 144,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "projection_dim": 24,
            },
            "projection_dim": 24,
        },
        (
            (r"logit_scale", "fixed"),
            (r".*(token|position)_embedding\.weight", "input"),
            (r".*patch_embedding\.weight", "input"),
            (r".*class_embedding", "vector"),
            (r"(visual|text)_projection\.weight", "output"),
            (r".*(layer_norm|layrnorm|layernorm).*", "vector"),
            (r".*\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 160,
            "decoder_ffn_dim": 160,
            "vocab_size": 99,
            "num_mel_bins": 20,
            "max_source_positions": 50,
            "max_target_positions": 40,
            "decoder_start_token_id": 1,
            **TOKENS,
        },
        WHISPER,
        (("model.decoder.embed_tokens.weight", "proj_out.weight"),),
    ),
    "mixtral": Family("MixtralForCausalLM", "MixtralConfig", {**KV, "num_local_experts": 6}, (*MOE, *decoder())),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**HEAD16, "num_experts": 6, "moe_intermediate_size": 48, "num_experts_per_tok": 2},
        (*MOE, *decoder()),
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **KV,
            "num_key_value_heads": 4,
            "kv_lora_rank": 20,
            "q_lora_rank": 28,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 48,
        },
        (
            *MOE,
            (NORM, "vector"),
            (r".*\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)\.weight", "hidden"),
            *decoder(),
        ),
    ),
    "mamba": Family(
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99, "state_size": 8, **TOKENS},
        (
            (r"backbone\.embeddings\.weight", "input"),
            (r".*(norm_f|norm)\.weight", "vector"),
            (r".*\.(A_log|D)", "vector"),
            (r".*\.conv1d\.(weight|bias)", "vector"),
            (r".*\.dt_proj\.bias", "vector"),
            (r".*\.weight", "hidden"),
        ),
        (("backbone.embeddings.weight", "lm_head.weight"),),
    ),
    "resnet": Family(
        "ResNetForImageClassification",
        "ResNetConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 24, 32, 40],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
        (
            (r"resnet\.embedder\.embedder\.convolution\.weight", "input"),
            (r".*normalization\.(weight|bias)", "vector"),
            (r".*convolution\.weight", "hidden"),
            (r"classifier\.1\.weight", "output"),
            (r"classifier\.1\.bias", "fixed"),
        ),
        main=40,
    ),
}
