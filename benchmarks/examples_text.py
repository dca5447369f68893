"""Examples for text models whose inputs no configuration tells."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where this module knows none."""
    wanted = inspect.signature(model.forward).parameters
    kind = getattr(model.config, "model_type", "")
    ids = torch.zeros(3, 17, dtype=torch.long)
    if kind in _BY_TYPE:
        return _BY_TYPE[kind](model.config, ids)
    if "input_ids" in wanted and getattr(model.config, "vision_config", model) is None:
        return {"input_ids": ids}
    if "bbox" in wanted and "input_ids" in wanted and "pixel_values" not in wanted:
        return {"input_ids": ids, "bbox": torch.zeros(3, 17, 4, dtype=torch.long)}
    if "visual_embeds" in wanted and "input_ids" in wanted:
        visual = torch.zeros(3, 7, model.config.visual_embedding_dim)
        return {"input_ids": ids, "visual_embeds": visual, "visual_token_type_ids": torch.ones(3, 7, dtype=torch.long)}
    return None


def _decisions(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Seventeen steps of states, actions and returns."""
    steps = ids.shape
    return {
        "states": torch.zeros(*steps, config.state_dim),
        "actions": torch.zeros(*steps, config.act_dim),
        "rewards": torch.zeros(*steps, 1),
        "returns_to_go": torch.zeros(*steps, 1),
        "timesteps": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _question(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """One question token in every sample."""
    ids = ids.clone()
    ids[:, 3] = config.question_token_id
    return {"input_ids": ids}


def _entities(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Five entities of two words each."""
    positions = torch.full((3, 5, 7), -1)
    positions[..., :2] = torch.tensor([2, 3])
    return {"input_ids": ids, "entity_ids": ids[:, :5], "entity_position_ids": positions}


def _markup(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tags and subscripts of the path to every token."""
    path = torch.zeros(*ids.shape, config.max_depth, dtype=torch.long)
    return {"input_ids": ids, "xpath_tags_seq": path, "xpath_subs_seq": path}


def _global_attention(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The first token attends to all."""
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "global_attention_mask": mask}


def _language(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tokens of the first language."""
    return {"input_ids": ids, "lang_ids": torch.zeros(3, dtype=torch.long)}


def _boxes(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eight coordinates a token, between 0 and 1."""
    return {"input_ids": ids, "bbox": torch.zeros(*ids.shape, 8)}


def _axial(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """As many tokens as the axial positions make."""
    return {"input_ids": torch.zeros(3, math.prod(config.axial_pos_shape), dtype=torch.long)}


def _noise(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """A block of noise, and what layers of the target model say about the tokens before it."""
    context = torch.zeros(*ids.shape, config.hidden_size * len(config.target_layer_ids))
    return {"noise_embeds": torch.zeros(3, config.block_size, config.hidden_size), "context_hidden_states": context}


def _patches(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Five flat patches, each in the place of a token."""
    ids = ids.clone()
    ids[0, 3:8] = config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.zeros(5, config.patch_dim)}


def _image_and_two_texts(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """An image in the encoder's text, and the text to decode."""
    encoder = config.encoder if hasattr(config, "encoder") else config
    size = encoder.vision_config.image_size
    ids = ids.clone()
    ids[:, 3 : 3 + encoder.mm_tokens_per_image] = encoder.image_token_index
    example = {"input_ids": ids, "pixel_values": torch.zeros(3, 3, size, size)}
    return example if encoder is config else {**example, "decoder_input_ids": torch.zeros(3, 19, dtype=torch.long)}


def _page(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Words, where they are on the page, and its picture."""
    image = torch.zeros(3, config.num_channels, config.input_size, config.input_size)
    return {"input_ids": ids, "bbox": torch.zeros(*ids.shape, 4, dtype=torch.long), "pixel_values": image}


def _encoded(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Text, and what an image encoder gives."""
    return {"input_ids": ids, "encoder_hidden_states": torch.zeros(3, 19, config.cross_attention_hidden_size)}


def _distinct(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tokens that differ, so that they go to different experts, and the text to decode."""
    tokens = torch.arange(3 * 19).view(3, 19)
    return {"input_ids": tokens[:, :17], "decoder_input_ids": tokens}


def _segments(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tokens of one segment."""
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}


def _image_in_rows(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Flat patches, four by six, merged two by two; a token ends each row, and one the image at either end."""
    vision = config.vision_config
    ids = ids[:1].clone()
    ids[0, 3 : 3 + 2 * (3 + 1) + 2] = config.image_token_id
    return {
        "input_ids": ids,
        "pixel_values": torch.zeros(24, 3 * vision.temporal_patch_size * vision.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
    }


def _image_and_marks(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Flat patches, four by four, merged; tokens for them and for all marks around them."""
    vision = config.vision_config
    marks = list(config.visual_indicator_token_ids)
    count = (vision.image_size // vision.patch_size // vision.hidden_stride) ** 2
    ids = torch.zeros(3, 1 + len(marks) + count + 3, dtype=torch.long)
    ids[:, 1 : 1 + len(marks)] = torch.tensor(marks)
    ids[:, 1 + len(marks) : 1 + len(marks) + count] = config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.zeros(3, 3, vision.image_size, vision.image_size)}


def _image_of_size(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """One image, its size, and the tokens for its patches, merged two by two."""
    size, merge = config.vision_config.image_size, config.vision_config.patch_size * config.spatial_merge_size
    ids = ids[:1].clone()
    ids[0, 3 : 3 + (size // merge) ** 2] = config.image_token_id
    return {
        "input_ids": ids,
        "pixel_values": torch.zeros(1, 3, size, size),
        "image_sizes": torch.tensor([[size, size]]),
    }


_BY_TYPE = {
    "bros": _boxes,
    "decision_transformer": _decisions,
    "hunyuan_vl": _image_in_rows,
    "layoutlmv3": _page,
    "longformer": _global_attention,
    "luke": _entities,
    "markuplm": _markup,
    "mistral_large4": _image_of_size,
    "muse_glimmer_assistant": _noise,
    "neomme": _patches,
    "ovis2": _image_and_marks,
    "reformer": _axial,
    "splinter": _question,
    "switch_transformers": _distinct,
    "t5gemma2": _image_and_two_texts,
    "t5gemma2_encoder": _image_and_two_texts,
    "trocr": _encoded,
    "xlnet": _segments,
    "xmod": _language,
}
