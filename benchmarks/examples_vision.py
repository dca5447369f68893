"""Examples for vision and video models whose inputs no configuration tells."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

BATCH = 3


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where this module knows none."""
    config = getattr(model, "config", None)
    wanted = set(inspect.signature(model.forward).parameters)
    special = EXAMPLES.get(getattr(config, "model_type", ""))
    if special is not None and wanted & {"pixel_values", "pixel_values_videos", "flattened_patches"}:
        return special(model)
    if {"pixel_values", "input_points", "input_masks"} <= wanted:
        return _prompted(model)
    return None


def _floats(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def _image(height: int, width: int) -> Callable[[Any], dict[str, Any]]:
    """One batch of images of a size that the model can halve often enough."""
    return lambda model: {"pixel_values": _floats(BATCH, 3, height, width)}


def _pairs(model: Any) -> dict[str, Any]:
    """Two images to be matched."""
    return {"pixel_values": torch.rand(BATCH, 2, 3, 96, 128, generator=torch.Generator().manual_seed(0))}


def _clip(name: str, frames: str, side: str) -> Callable[[Any], dict[str, Any]]:
    """One batch of clips, with the names of the fields that size them."""

    def clip(model: Any) -> dict[str, Any]:
        size = getattr(model.config, side)
        return {name: _floats(BATCH, getattr(model.config, frames), 3, size, size)}

    return clip


def _masked_clip(model: Any) -> dict[str, Any]:
    """A clip of which the model restores a third of the patches."""
    config = model.config
    count = (config.num_frames // config.tubelet_size) * (config.image_size // config.patch_size) ** 2
    hidden = torch.zeros(BATCH, count, dtype=torch.bool)
    hidden[:, : count // 3] = True
    return {**_clip("pixel_values", "num_frames", "image_size")(model), "bool_masked_pos": hidden}


def _prompted(model: Any) -> dict[str, Any]:
    """An image with points of both kinds, boxes, and a mask."""
    vision = model.config.vision_config
    size = getattr(vision, "image_size", None) or model.config.prompt_encoder_config.image_size
    size = size[0] if isinstance(size, list | tuple) else size
    side = size // model.config.prompt_encoder_config.patch_size * 4
    return {
        "pixel_values": _floats(BATCH, 3, size, size),
        "input_points": _floats(BATCH, 2, 5, 2),
        "input_labels": torch.tensor([1, 0, -1, 1, 0]).expand(BATCH, 2, 5).clone(),
        "input_boxes": _floats(BATCH, 2, 4),
        "input_masks": _floats(BATCH, 1, side, side),
    }


def _positioned_patches(model: Any) -> dict[str, Any]:
    """Flat patches with the place of each, a whole number of pools."""
    side = 2 * model.config.pooling_kernel_size
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    patches = _floats(BATCH, side * side, 3 * model.config.patch_size**2)
    return {"pixel_values": patches, "pixel_position_ids": places.expand(BATCH, -1, -1).clone()}


def _packed_patches(model: Any) -> dict[str, Any]:
    """The patches of one image side by side, with its height and width in patches."""
    size = model.config.patch_size
    return {"pixel_values": _floats(1, 3, size, 64 * size), "target_sizes": torch.tensor([[8, 8]], dtype=torch.int32)}


def _square_patches(model: Any) -> dict[str, Any]:
    """Patches of one image, each an image of its own."""
    size = model.config.patch_size
    return {"pixel_values": _floats(16, 3, size, size), "grid_thw": torch.tensor([[1, 4, 4]])}


def _clip_patches(model: Any) -> dict[str, Any]:
    """Flat patches of two frames, eight by eight."""
    config = model.config
    pixels = _floats(64, config.patch_temporal * 3 * config.patch_size**2)
    return {"pixel_values": pixels, "grid_thw": torch.tensor([[1, 8, 8]])}


def _merged_patches(model: Any) -> dict[str, Any]:
    """Flat patches of an image, merged two by two."""
    pixels = _floats(16, 3 * model.config.patch_size**2)
    return {"pixel_values": pixels, "grid_thw": torch.tensor([[1, 4, 4]]), "merge_sizes": torch.tensor([2])}


def _token_patches(model: Any) -> dict[str, Any]:
    """Squares of pixels, one for a token of the language model."""
    side = model.config.patch_size * model.config.spatial_merge_size
    return {"pixel_values": _floats(15, side, side, 3), "image_grid_thw": torch.tensor([[1, 3, 5]])}


def _prompted_by_image(model: Any) -> dict[str, Any]:
    """An image, another one, and what that other one should give."""
    height, width = model.config.image_size
    names = ("pixel_values", "prompt_pixel_values", "prompt_masks")
    return {name: _floats(BATCH, 3, height // 2, width) for name in names}


def _numbered_patches(model: Any) -> dict[str, Any]:
    """Flat patches, each with its row and column in front, and the text to decode."""
    patches = _floats(BATCH, 17, 2 + model.config.vision_config.patch_embed_hidden_size)
    patches[:, :, 0] = torch.arange(17) // 5 + 1
    patches[:, :, 1] = torch.arange(17) % 5 + 1
    return {"flattened_patches": patches, "decoder_input_ids": torch.zeros(BATCH, 19, dtype=torch.long)}


def _image_and_depth(model: Any) -> dict[str, Any]:
    """An image and the depth that a sensor gave for it."""
    return {"pixel_values": _floats(BATCH, 3, 98, 70), "prompt_depth": torch.rand(BATCH, 1, 29, 23)}


def _image_and_task(model: Any) -> dict[str, Any]:
    """An image and the tokens of the task."""
    tokens = torch.zeros(BATCH, model.config.task_seq_len, dtype=torch.long)
    return {"pixel_values": _floats(BATCH, 3, 96, 128), "task_inputs": tokens}


def _image_and_trimap(model: Any) -> dict[str, Any]:
    """Three channels of an image and one of its trimap."""
    size = model.config.backbone_config.image_size
    return {"pixel_values": _floats(BATCH, model.config.backbone_config.num_channels, size, size)}


def _frames(model: Any) -> dict[str, Any]:
    """A clip of square frames."""
    return {"pixel_values_videos": _floats(BATCH, 5, 3, model.config.image_size, model.config.image_size)}


EXAMPLES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "chmv2": _image(96, 80),
    "d_fine": _image(96, 128),
    "deimv2": _image(96, 128),
    "depth_anything": _image(98, 70),
    "depth_pro": _image(336, 336),
    "efficientloftr": _pairs,
    "gemma4_vision": _positioned_patches,
    "inkling2_vision": _token_patches,
    "kimi_k25_vision": _square_patches,
    "lightglue": _pairs,
    "mask2former": _image(96, 128),
    "maskformer": _image(96, 128),
    "minicpm_ocr_vision": _packed_patches,
    "minicpmv4_7_vision": _packed_patches,
    "muse_glimmer_vision": _clip_patches,
    "muse_spark_vision": _clip_patches,
    "oneformer": _image_and_task,
    "pix2struct": _numbered_patches,
    "pp_doclayout_v2": _image(96, 128),
    "pp_doclayout_v3": _image(96, 128),
    "pp_doclayout_v4": _image(96, 128),
    "prompt_depth_anything": _image_and_depth,
    "rf_detr": _image(112, 112),
    "rt_detr": _image(96, 128),
    "rt_detr_v2": _image(96, 128),
    "seggpt": _prompted_by_image,
    "superglue": _pairs,
    "superpoint": _image(96, 128),
    "timesformer": _clip("pixel_values", "num_frames", "image_size"),
    "video_llama_3_vision": _merged_patches,
    "videomae": _masked_clip,
    "videomt": _frames,
    "videoprism_vision_model": _clip("pixel_values_videos", "num_frames", "image_size"),
    "vitmatte": _image_and_trimap,
    "vivit": _clip("pixel_values", "num_frames", "image_size"),
    "vjepa2": _clip("pixel_values_videos", "frames_per_clip", "crop_size"),
}
