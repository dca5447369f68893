"""Make a small model of any transformers type: one routine over configuration fields, and a file of exceptions.

Sizes are mapped by value, so that fields that are equal, or differ by a factor, stay so. Two calls with scales that
differ by two give models whose every width differs by two, at equal head size.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

WIDTH = re.compile(
    r"hidden|embed|d_model|n_embd|(^|_)dims?$|width|channels|intermediate|inner|ffn|d_ff|mlp|proj|d_kv|d_inner|planes"
    r"|stem|filters|dim_ff|units$|lru|state_dim|decoder_dim|output_dim|rank$|model_dim|_size$|_sizes$"
)
NOT_WIDTH = re.compile(
    r"vocab|image|patch|kernel|window|max_|position|token|num_|_id$|_ids$|bins|layers|head|group|stride|pool|chunk"
    r"|(?<!shared_)expert(?!_intermediate)|type|block|num_channels|in_channels|input_channels|input_dim|model_in_dim|(?<!du)ratio|factor|classes|labels|buckets|crop"
    r"|codebook_size|batch|cache|context|dropout|bias|norm|conv_dim_|grid|sample|feature_size|depth|step|memory|query_len"
    r"|state_size|d_state|d_conv|pos_emb|temporal|frame|local_|global_|attention_w|n_fft|hop|upsampl|downsampl|resolution"
)
LAYERS = re.compile(r"(^|_)(num_)?(hidden_|encoder_|decoder_)?(layers|blocks|n_layer|n_layers)$|num_.*layers$|^depth$")
HEADS = re.compile(r"num_.*heads$|n_heads?$|.*_attention_heads$|^num_heads$|_num_heads$|_heads$")
HEAD_SIZE = re.compile(r"(^|_)head_dim$|head_size$|attention_head_dim$|^d_kv$|^kv_channels$")
LATENT = ("head_dim", "qk_head_dim", "index_head_dim")
TOKEN = re.compile(r"token_id$|_token_index$|_id$")
VOCABULARY = 139
EXCEPTIONS = tomllib.loads((Path(__file__).parent / "shrink.toml").read_text())


def shrink(config: Any, width: int) -> None:
    """Shrink a configuration in place; ``width`` is 64 for the model and 32 for its base."""
    _replace_backbone(config)
    parts = list(_parts(config))
    main = max((_hidden(p) for p in parts), default=64)
    for part in parts:
        _shrink_part_by_layer(part, 64 / main, width)
    for part in parts:
        _join(part)
    for part in parts:
        for key, value in EXCEPTIONS.get(part.model_type, {}).items():
            if key != "reason":
                _assign(part, key, value, width)


def _replace_backbone(config: Any) -> None:
    """timm's backbones take no widths from a configuration; those of transformers do."""
    named = getattr(getattr(config, "backbone_config", None), "backbone", None) or ""
    if named.startswith("resnet"):
        from transformers import ResNetConfig

        config.backbone_config = ResNetConfig(out_indices=config.backbone_config.out_indices)


def _parts(config: Any) -> Any:
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _parts(value)


def _join(part: Any) -> None:
    """The output of a vision tower that names its size is as wide as the text model, whatever the defaults say."""
    text, vision = getattr(part, "text_config", None), getattr(part, "vision_config", None)
    if hasattr(text, "hidden_size") and hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = text.hidden_size


def _hidden(part: Any) -> int:
    names = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_dim", "encoder_hidden_size", "model_dim")
    values = [getattr(part, n, None) for n in names]
    return max((v for v in values if isinstance(v, int)), default=64)


def scaled(value: int, scale: float, width: int) -> int:
    """A width: a multiple of 16 in the model, half of it in the base."""
    full = max(16, round(value * scale / 16) * 16)
    return full * width // 64


def _heads(hidden: int) -> int:
    """Heads of 16 or a little more; an even number that divides the width, so that the base can have half of them."""
    return next((h for h in range(hidden // 32 * 2, 2, -2) if hidden % h == 0), 2)


def _shrink_part_by_layer(part: Any, scale: float, width: int) -> None:
    """Shrink the common fields, and those of the first and the last layer where layers have fields of their own."""
    own = vars(part).pop("_heterogeneity_spec", None)
    before, hidden = dict(vars(part)), _hidden(part)
    _shrink_part(part, scale, width)
    if own is None:
        return
    by_layer = {}
    for new, old in enumerate((0, before["num_hidden_layers"] - 1)):
        fields = {**before, **own.per_layer_overrides.get(old, {})}
        heads = int(fields.get("num_attention_heads", 0))
        by_layer[new] = {
            key: _latent_head(fields, key)
            if key in LATENT and fields.get("qk_rope_head_dim")
            else _number(key, fields[key], scale, width, hidden, heads)
            for key in own.per_layer_overrides.get(old, {})
        }
    part.per_layer_config = by_layer


def _shrink_part(part: Any, scale: float, width: int) -> None:
    fields = {k: v for k, v in vars(part).items() if not k.startswith("_")}
    layers = {v for k, v in fields.items() if isinstance(v, int) and not isinstance(v, bool) and LAYERS.search(k)}
    query_heads = max(
        (v for k, v in fields.items() if isinstance(v, int) and HEADS.search(k) and "key_value" not in k), default=0
    )
    layers -= {len(v) for k, v in fields.items() if k == "depths" and isinstance(v, list | tuple)}
    hidden = _hidden(part)
    _shrink_rotation(fields)
    if query_heads and fields.get("head_dim", 0) is None:
        _try_set(part, "head_dim", 16)
    if query_heads and fields.get("num_key_value_heads", 0) is None:
        _try_set(part, "num_key_value_heads", query_heads)
    if any(HEADS.search(k) and isinstance(v, list | tuple) for k, v in fields.items()) and "embed_dim" in fields:
        _shrink_stages(part, fields, width)
    fields = {k: v for k, v in vars(part).items() if not k.startswith("_")}
    staged = any(isinstance(v, list | tuple) and HEADS.search(k) for k, v in fields.items())
    for key, value in fields.items():
        new = value
        if isinstance(value, bool) or value is None or (staged and key in ("embed_dim", "hidden_size")):
            continue
        if LAYERS.search(key) and isinstance(value, int) and value not in layers:
            continue
        if key in LATENT and fields.get("qk_rope_head_dim"):
            new = _latent_head(fields, key)
        elif isinstance(value, int):
            new = _number(key, value, scale, width, hidden, query_heads)
        elif isinstance(value, list | tuple) and value:
            new = _sequence(key, value, scale, width, layers)
        if new is not value and new != value:
            _try_set(part, key, new)
    _shrink_features(part, fields)


def _shrink_features(part: Any, fields: dict[str, Any]) -> None:
    """A backbone of equal layers keeps as many of them as are taken from it."""
    names, taken = fields.get("stage_names"), getattr(part, "_out_indices", None)
    if not names or not taken or len(names) != fields.get("num_hidden_layers", 0) + 1:
        return
    layers = max(2, len(taken))
    part.num_hidden_layers = layers
    part.stage_names = names[: layers + 1]
    part._out_indices = list(range(layers + 1 - len(taken), layers + 1))
    part._out_features = part.stage_names[-len(taken) :]


def _latent_head(fields: dict[str, Any], key: str) -> int:
    """Head sizes beside a rotated and an unrotated part of 8 each; a size of its own stays a multiple of the first."""
    rotated = fields["qk_rope_head_dim"]
    if key == "head_dim" and fields[key] != rotated + fields.get("qk_nope_head_dim", 0):
        return int(8 * fields[key] // rotated)
    return 16


def _shrink_rotation(fields: dict[str, Any]) -> None:
    """Rotary sections of a multimodal head of 16: three parts of its half."""
    for value in fields.values():
        if isinstance(value, dict) and isinstance(value.get("mrope_section"), list):
            value["mrope_section"] = [2, 3, 3]


def _shrink_stages(part: Any, fields: dict[str, Any], width: int) -> None:
    """Hierarchical models: heads and widths by stage, heads of 16."""
    for key, value in fields.items():
        if HEADS.search(key) and isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
            heads = [max(1, v * 2 // min(value)) * width // 64 for v in value]
            _try_set(part, key, type(value)(heads))
            if isinstance(fields["embed_dim"], int):
                _try_set(part, "embed_dim", 16 * heads[0])
                if isinstance(fields.get("hidden_size"), int):
                    _try_set(part, "hidden_size", 16 * heads[-1])


def _number(key: str, value: int, scale: float, width: int, hidden: int, query_heads: int) -> int:
    if key in ("vocab_size", "text_vocab_size") or (key.endswith("vocab_size") and value > 1000):
        return VOCABULARY
    if key == "image_size" and value > 128:
        return 64 if value % 64 == 0 else value
    if key == "num_filters" or (key == "upsample_groups" and value == hidden):  # a group for every channel
        return scaled(value, scale, width)
    if key == "upsample_initial_channel":  # halved at every rate
        return width
    if TOKEN.search(key) and value > 3:
        return 3 + value % 97
    if LAYERS.search(key) and value > 2:
        return 2
    if re.search(r"rope_head_dim|nope_head_dim|v_head_dim|rotary_dim", key):
        return min(value, 8)
    if HEAD_SIZE.search(key):
        return 16 if value >= 16 else value
    if HEADS.search(key) and value > 0:
        if "linear" in key:
            return max(2, min(value, 4)) * width // 64 if value > 1 else 1
        full = _heads(scaled(hidden, scale, 64))
        if "key_value" in key or "kv_" in key:
            full = full if value >= query_heads else 1 if value == 1 else max(2, full // 2)
            return full if full == 1 else full * width // 64
        return full * width // 64
    if re.search(r"max_position|n_positions|max_seq|max_source_positions|max_target_positions", key):
        return min(value, 128)
    if re.search(r"num_.*experts$|n_routed_experts|num_local_experts", key):
        return min(value, 4)
    if re.search(r"experts_per_tok|top_k|topk_group|n_group|moe_k$|moe_topk", key):
        return min(value, 2) if "group" not in key else 1
    if WIDTH.search(key) and not NOT_WIDTH.search(key) and value >= 16:
        return scaled(value, scale, width)
    return value


def _sequence(key: str, value: Any, scale: float, width: int, layers: set[int]) -> Any:
    if re.search(r"deepstack.*(index|layer)|fullatt_block_index|full_attention_index|vision_feature_layer$", key):
        return type(value)(sorted({min(v, 1) if v >= 0 else max(v, -2) for v in value}))
    if all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        if re.search(r"^depths$|num_.*(layers|blocks)$|layers_per", key):
            value = type(value)(min(v, 2) for v in value)
        elif HEADS.search(key):
            return value
        elif WIDTH.search(key) and not NOT_WIDTH.search(key) and min(value) >= 16:
            return type(value)(scaled(v, 64 / max(value), width) for v in value)
    if len(value) in layers and len(value) > 2:
        return type(value)(value[:1]) + type(value)(value[-1:])
    return value


def _try_set(part: Any, key: str, value: Any) -> None:
    try:
        setattr(part, key, value)
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return


def _assign(config: Any, path: str, value: Any, width: int) -> None:
    *outer, last = path.split(".")
    for name in outer:
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    if isinstance(value, dict) and "64" in value:
        value = value[str(width)]
    if isinstance(config, dict):
        config[last] = value
    else:
        setattr(config, last, tuple(value) if isinstance(getattr(config, last, None), tuple) else value)
