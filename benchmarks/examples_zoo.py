"""Examples for types whose inputs no configuration tells: images as patches with a grid, images beside their tokens."""

from __future__ import annotations

import inspect
from typing import Any

import examples_audio
import examples_multimodal
import examples_text
import examples_vision
import torch


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where autofit infers the example."""
    for known in (examples_text, examples_vision, examples_audio, examples_multimodal):
        found = known.example_for(model)
        if found is not None:
            return found
    wanted = inspect.signature(model.forward).parameters
    if "image_grid_thw" in wanted and "pixel_values" in wanted:
        return _patches(model, wanted)
    if "grid_thw" in wanted and hasattr(model.config, "patch_size"):
        pixels, grid = _grid(model.config)
        return {next(iter(wanted)): pixels, "grid_thw": grid}
    return examples_multimodal.beside_text_for(model)


def _grid(vision: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened patches of one image of two by two merged patches."""
    merge = int(getattr(vision, "spatial_merge_size", 2) or 2)
    side = 2 * merge
    channels = int(getattr(vision, "in_channels", getattr(vision, "num_channels", 3)) or 3)
    size = channels * int(getattr(vision, "temporal_patch_size", 1) or 1) * int(vision.patch_size) ** 2
    return torch.zeros(side * side, size), torch.tensor([[1, side, side]])


def _patches(model: Any, wanted: Any) -> dict[str, Any]:
    """Flat patches of an image, and speech where the model hears, each with its places among the tokens."""
    config = getattr(model.config, "vlm_config", model.config)
    vision = config.vision_config
    pixels, grid = _temporal_grid(vision) if hasattr(vision, "patch_temporal") else _grid(vision)
    ids = torch.zeros(1, 17, dtype=torch.long)
    ids[0, 3:7] = examples_multimodal.image_token(config)
    if config is not model.config:
        pixels = pixels[None]
    kinds = (ids != 0).long()
    speech = _speech(config, wanted)
    if speech:
        with torch.no_grad():
            heard = (model if hasattr(model, "get_audio_features") else model.model).get_audio_features(**speech)
        features = heard.last_hidden_state if heard.pooler_output is None else heard.pooler_output
        ids = torch.cat([ids, torch.full((1, len(features)), examples_audio.audio_token(config))], 1)
        kinds = torch.cat([kinds, torch.full((1, len(features)), 3)], 1)
    example = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    example |= {"moe_mm_token_type_ids": kinds, **speech}
    return {k: v for k, v in example.items() if k in wanted}


def _temporal_grid(vision: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened patches of two frames, of two by two merged patches."""
    return torch.zeros(16, vision.patch_temporal * 3 * vision.patch_size**2), torch.tensor([[1, 4, 4]])


def _speech(config: Any, wanted: Any) -> dict[str, torch.Tensor]:
    """Half a second of speech, as frames or as samples; nothing for a model that does not hear."""
    audio = getattr(config, "audio_config", None)
    if "feature_attention_mask" in wanted:
        mask = torch.ones(1, 53, dtype=torch.long)
        return {"input_features": torch.zeros(1, audio.num_mel_bins, 53), "feature_attention_mask": mask}
    if "input_values" in wanted and hasattr(audio, "samples_per_token"):
        return {"input_values": torch.zeros(1, 3 * audio.samples_per_token)}
    return {}
