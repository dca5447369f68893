"""Examples for models that take images or sound beside text, and for others with inputs of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

BATCH = 3


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where this module knows none."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return EXAMPLES[kind](model) if kind in EXAMPLES else None


def beside_text_for(model: Any) -> Any:
    """One image and its places in a text, where the configuration names a token for these."""
    wanted = inspect.signature(model.forward).parameters
    if {"pixel_values", "input_ids"} <= wanted.keys() and image_token(model.config) is not None:
        return beside_text(model, images(model))
    return None


# parts ----------------------------------------------------------------------------------------------------


def _ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape or (BATCH, 17), dtype=torch.long)


def image_token(config: Any) -> int | None:
    """Token in whose place a feature of an image goes."""
    names = ("image_token_id", "image_token_index", "image_pad_token_id", "media_placeholder_token_id")
    found = [getattr(part, name, None) for part in _configs(config) for name in names]
    found += [(getattr(part, "vocabulary_map", None) or {}).get("<image>") for part in _configs(config)]
    return next((token for token in found if isinstance(token, int)), None)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _configs(value)


def size_of(model: Any) -> tuple[int, int]:
    """Height and width of an image, in pixels."""
    found = [c.image_size for c in _configs(model.config) if getattr(c, "image_size", None)]
    size = found[0] if found else 64
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def noise(*shape: int) -> torch.Tensor:
    """Pixels; where all are zero, some models see no image."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def images(model: Any, *tiles: int, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """One image for each sample, possibly in tiles or several."""
    return {"pixel_values": noise(batch, *tiles, 3, *size_of(model))}


def sizes(model: Any, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Heights and widths of the images."""
    return {"image_sizes": torch.tensor([size_of(model)] * batch)}


def _inner(model: Any) -> Iterator[Any]:
    """A model and what it wraps."""
    yield model
    for name in ("model", "vlm"):
        if hasattr(model, name):
            yield from _inner(getattr(model, name))


def beside_text(model: Any, pictures: dict[str, torch.Tensor], batch: int = BATCH) -> dict[str, Any]:
    """Images, and text with as many places for them as the model says that they have features."""
    owner = [m for m in _inner(model) if hasattr(m, "get_image_features")][-1]
    takes = inspect.signature(owner.get_image_features).parameters
    with torch.no_grad():
        seen = owner.get_image_features(**{k: v for k, v in pictures.items() if k in takes})
    features = getattr(seen, "pooler_output", seen)
    if features is None:  # not merged, or given layer by layer
        features = seen.deepstack_features[0][1] if hasattr(seen, "deepstack_features") else seen.last_hidden_state
    features = list(features) if isinstance(features, tuple | list) else [features]
    count = sum(f.numel() // f.shape[-1] for f in features) // batch
    token = image_token(model.config)
    ids = _ids(batch, count + 13)
    ids[:, 3 : 3 + count] = token
    kinds = (ids == token).long()
    example = {"input_ids": ids, "token_type_ids": kinds, "mm_token_type_ids": kinds, **pictures}
    wanted = inspect.signature(model.forward).parameters
    return {k: v for k, v in example.items() if k in wanted}


def several(*tiles: int) -> Callable[[Any], dict[str, Any]]:
    """Text beside several images in each sample."""
    return lambda model: beside_text(model, images(model, *tiles))


def in_tiles(tiles: int) -> Callable[[Any], dict[str, Any]]:
    """Text beside images that were cut into tiles."""
    return lambda model: beside_text(model, images(model, tiles) | sizes(model))


def sized(model: Any) -> dict[str, Any]:
    """Text beside images and their sizes."""
    return beside_text(model, images(model) | sizes(model))


def _two_resolutions(model: Any) -> dict[str, Any]:
    """An image at two resolutions."""
    side = model.config.high_res_vision_config.image_size
    return beside_text(model, images(model) | {"high_res_pixel_values": noise(BATCH, 3, side, side)})


def _masked_tiles(model: Any) -> dict[str, Any]:
    """Tiles that are all there, on the finer of two routes."""
    tiles = images(model, 2) | {"pixel_attention_mask": torch.ones(BATCH, 2, dtype=torch.bool)}
    return beside_text(model, tiles | {"tile_fine_mask": torch.ones(BATCH, dtype=torch.bool)})


def _attended_images(model: Any) -> dict[str, Any]:
    """Two images, which all tokens attend to."""
    side = model.config.vision_config.image_size
    return {
        "input_ids": _ids(),
        "attention_mask": torch.ones(BATCH, 17, dtype=torch.long),
        "pixel_values": noise(BATCH, 2, 3, side, side),
        "image_attention_mask": torch.ones(BATCH, 17, 2, dtype=torch.long),
    }


def _queried(model: Any) -> dict[str, Any]:
    """An image, the instruction that queries it, and a place for each query."""
    ids = _ids(BATCH, model.config.num_query_tokens + 13)
    ids[:, 3 : 3 + model.config.num_query_tokens] = image_token(model.config)
    example = images(model) | {"qformer_input_ids": _ids(BATCH, 19), "input_ids": ids}
    return example | {"attention_mask": torch.ones_like(ids)}


def _queried_clip(model: Any) -> dict[str, Any]:
    """Two frames of a clip, the instruction that queries them, and a place for each query."""
    token = model.config.video_token_index
    ids = _ids(BATCH, 2 * model.config.num_query_tokens + 13)
    ids[:, 3 : 3 + 2 * model.config.num_query_tokens] = token
    example = images(model, 2) | {"qformer_input_ids": _ids(BATCH, 19), "input_ids": ids}
    return example | {"attention_mask": torch.ones_like(ids)}


def _decision(model: Any) -> dict[str, Any]:
    """One prompt with two questions."""
    return {
        "input_ids": _ids(1, 17),
        "marks": torch.tensor([[5, 11]]),
        "num_options": torch.tensor([[2, 2]]),
        "question_type_ids": torch.tensor([[0, 0]]),
    }


def _marked_places(model: Any) -> dict[str, Any]:
    """An image, and which tokens its features replace."""
    places = torch.zeros(BATCH, model.config.latent_query_num + 13, dtype=torch.bool)
    places[:, 3 : 3 + model.config.latent_query_num] = True
    return images(model) | {"input_ids": _ids(*places.shape), "image_embeds_position_mask": places}


def _regions(model: Any) -> dict[str, Any]:
    """Text, features of seven regions of an image, and their boxes."""
    features = torch.zeros(BATCH, 7, model.config.visual_feat_dim)
    return {"input_ids": _ids(), "visual_feats": features, "visual_pos": torch.zeros(BATCH, 7, 4)}


def _aspect_ratios(model: Any) -> dict[str, Any]:
    """Text, and an image in tiles with the number of its aspect ratio."""
    vision = model.config.vision_config
    tiles = vision.max_num_tiles
    return {
        "input_ids": _ids(),
        "pixel_values": noise(BATCH, 1, tiles, 3, vision.image_size, vision.image_size),
        "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(BATCH, 1, tiles, dtype=torch.long),
        "cross_attention_mask": torch.ones(BATCH, 17, 1, tiles, dtype=torch.long),
    }


def _flat_grid(model: Any) -> dict[str, Any]:
    """Flat patches of an image of four by four."""
    patch = model.config.vision_config.patch_size
    pictures = {"pixel_values": noise(16, 3 * patch**2), "image_grid_hw": torch.tensor([[4, 4]])}
    return beside_text(model, pictures, 1)


def _robot(model: Any) -> dict[str, Any]:
    """Images and an instruction, the robot's state, and what it did."""
    config = model.config
    seen = beside_text(model, images(model))
    return seen | {
        "pixel_values": seen["pixel_values"][:, None],
        "pixel_attention_mask": torch.ones(BATCH, 1, dtype=torch.bool),
        "state": torch.zeros(BATCH, config.max_state_dim),
        "actions": torch.zeros(BATCH, config.chunk_size, config.max_action_dim),
    }


def _masked_pair(model: Any) -> dict[str, Any]:
    """An image and a text, once whole and once masked, without a loss."""
    patches = (model.config.image_config.image_size // model.config.image_config.patch_size) ** 2
    return {
        "input_ids": _ids(),
        "input_ids_masked": _ids(),
        "attention_mask": torch.ones(BATCH, 17, dtype=torch.long),
        "pixel_values": images(model)["pixel_values"],
        "bool_masked_pos": torch.arange(patches).expand(BATCH, patches) % 3 == 0,
        "return_loss": False,
    }


def _square_patches(model: Any) -> dict[str, Any]:
    """Patches of one image, each an image of its own."""
    size = model.config.vision_config.patch_size
    return beside_text(
        model, {"pixel_values": noise(16, 3, size, size), "image_grid_thw": torch.tensor([[1, 4, 4]])}, 1
    )


def _token_patches(model: Any) -> dict[str, Any]:
    """Squares of pixels, one for a token."""
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    return beside_text(
        model, {"pixel_values": noise(15, side, side, 3), "image_grid_thw": torch.tensor([[1, 3, 5]])}, 1
    )


def _patches_and_sound(model: Any) -> dict[str, Any]:
    """Squares of two frames, one for a token, and seven frames of a sound that is tokens of its own."""
    config = model.config
    side, frames = config.vision_config.patch_size, config.vision_config.temporal_patch_size
    seen = beside_text(model, {"pixel_values": noise(4, frames, side, side, 3)}, 1)
    heard = torch.full((1, 7), config.audio_token_id)
    sound = torch.zeros(1, 7, config.audio_config.n_mel_bins, dtype=torch.long)
    return seen | {"input_ids": torch.cat([seen["input_ids"], heard], 1), "audio_input_ids": sound}


def _merged_patches(model: Any) -> dict[str, Any]:
    """Flat patches of an image, merged two by two."""
    vision = model.config.vision_config
    grid = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "image_merge_sizes": torch.tensor([2])}
    return beside_text(model, {"pixel_values": noise(16, 3 * vision.patch_size**2)} | grid, 1)


def _pooled_patches(model: Any) -> dict[str, Any]:
    """Flat patches of one crop, of which every four make a token."""
    count = model.config.vision_config.num_position_embeddings
    pictures = {
        "pixel_values": noise(1, count, 3 * model.config.vision_config.patch_size**2),
        "image_token_pooling": torch.arange(count).view(-1, 4),
        "image_grids": torch.tensor([[0, 0, 1, count // 4]]),
    }
    return beside_text(model, pictures, 1)


def _image_and_clip(model: Any) -> dict[str, Any]:
    """A text with places for an image and for a clip of eight frames."""
    vision, config = model.config.vision_config, model.config
    count = (vision.image_size // vision.patch_size) ** 2
    ids = _ids(BATCH, 9 * count + 21)
    ids[:, 3 : 3 + count] = config.image_token_index
    ids[:, 5 + count : 5 + count + 8 * (count + 1)] = config.video_token_index
    side = vision.image_size
    return {
        "input_ids": ids,
        "pixel_values_images": noise(BATCH, 3, side, side),
        "pixel_values_videos": noise(BATCH, 8, 3, side, side),
    }


def _shaped_patches(model: Any) -> dict[str, Any]:
    """Flat patches of each image, which of them count, and its height and width in patches."""
    vision = getattr(model.config, "vision_config", model.config)
    pictures = {
        "pixel_values": noise(BATCH, 36, 3 * vision.patch_size**2),
        "pixel_attention_mask": torch.ones(BATCH, 36, dtype=torch.long),
        "spatial_shapes": torch.tensor([[6, 6]] * BATCH),
    }
    takes = inspect.signature(model.forward).parameters
    if "input_ids" not in takes:
        return pictures
    return beside_text(model, pictures) if image_token(model.config) else pictures | {"input_ids": _ids()}


def _frames_and_text(name: str, frames: Callable[[Any], int], batch: int = BATCH) -> Callable[[Any], dict[str, Any]]:
    """A clip and a sentence about it."""

    def clip(model: Any) -> dict[str, Any]:
        return {"input_ids": _ids(batch, 17), name: noise(batch, frames(model.config), 3, *size_of(model))}

    return clip


def _page(model: Any) -> dict[str, Any]:
    """Words, where they are on the page, its picture, and the text to decode."""
    return images(model) | {
        "input_ids": _ids(),
        "bbox": torch.zeros(BATCH, 17, 4),
        "decoder_input_ids": _ids(BATCH, 19),
    }


def _pixels_and_text(model: Any) -> dict[str, Any]:
    """An image and a text, each on its own."""
    return images(model) | {"input_ids": _ids()}


def _queries(model: Any) -> dict[str, Any]:
    """Queries, and what an image encoder gives."""
    config = model.config
    return {
        "query_embeds": torch.zeros(BATCH, 7, config.hidden_size),
        "encoder_hidden_states": torch.zeros(BATCH, 19, config.encoder_hidden_size),
    }


def _with_places(places: int, token: int) -> torch.Tensor:
    """Tokens of which a run stands for the features of something else."""
    ids = _ids(BATCH, places + 13)
    ids[:, 3 : places + 3] = token
    return ids


# sound and text -------------------------------------------------------------------------------------------


def _text(model: Any) -> dict[str, Any]:
    """Tokens alone."""
    return {"input_ids": _ids()}


def _music(model: Any) -> dict[str, Any]:
    """A description and the codes of a piece, with the codec frozen: training leaves it alone."""
    model.audio_encoder.requires_grad_(False)
    return {"input_ids": _ids(), "decoder_input_ids": _ids(BATCH * model.config.decoder.num_codebooks, 19)}


def _music_and_melody(model: Any) -> dict[str, Any]:
    """Music whose melody is given, as the strengths of the tones."""
    return _music(model) | {"input_features": torch.zeros(BATCH, 13, model.config.num_chroma)}


def _backbone_states(model: Any) -> dict[str, Any]:
    """A token's embedding and last state in the backbone side by side, and the keys and values of the backbone."""
    text = model.config.text_config
    shape = (BATCH, 1, 17, text.head_dim)
    shared = {kind: (torch.zeros(shape), torch.zeros(shape)) for kind in text.layer_types}
    return {
        "inputs_embeds": torch.zeros(BATCH, 17, 2 * model.config.backbone_hidden_size),
        "shared_kv_states": shared,
    }


# images ---------------------------------------------------------------------------------------------------


def _flat_patches(model: Any) -> dict[str, Any]:
    """Text beside four patches whose pixels are one axis."""
    ids = _ids()
    ids[:, 3:7] = image_token(model.config)
    return {"input_ids": ids, "pixel_values": noise(BATCH, 4, 3 * model.config.patch_size**2)}


def _halved_image(model: Any) -> dict[str, Any]:
    """An image that can be halved five times."""
    return {"pixel_values": torch.zeros(BATCH, 3, 96, 128)}


def _boxed(model: Any) -> dict[str, Any]:
    """An image, the words for what is looked for in it, and boxes of both kinds."""
    size = model.config.vision_config.image_size
    return {
        "pixel_values": torch.zeros(BATCH, 3, size, size),
        "input_ids": _ids(),
        "attention_mask": torch.ones_like(_ids()),
        "input_boxes": torch.full((BATCH, 5, 4), 0.5),
        "input_boxes_labels": torch.tensor([1, 0, 1, 1, 0]).repeat(BATCH, 1),
    }


# images beside text ---------------------------------------------------------------------------------------


def _packed_images(model: Any) -> dict[str, Any]:
    """The patches of all images side by side; two mergers leave one place of four by four patches."""
    side, size = 8, model.config.vision_config.patch_size
    return {
        "input_ids": _with_places((side // 4) ** 2, model.config.image_token_id),
        "pixel_values": torch.zeros(1, 3, size, BATCH * side**2 * size),
        "target_sizes": torch.full((BATCH, 2), side, dtype=torch.int32),
    }


def _positioned_images(model: Any) -> dict[str, Any]:
    """Packed images, and the place of every token in time, height and width."""
    example = _packed_images(model)
    places = torch.arange(example["input_ids"].shape[1])
    return example | {"position_ids": places.expand(3, BATCH, -1).clone()}


def _placed_patches(model: Any) -> dict[str, Any]:
    """Flat patches with the place of each, pooled to four places among the tokens, and a canvas to be denoised."""
    vision, text = model.config.vision_config, model.config.text_config
    side = 2 * vision.pooling_kernel_size
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    return {
        "input_ids": _with_places(4, model.config.image_token_id),
        "pixel_values": torch.zeros(BATCH, side**2, 3 * vision.patch_size**2),
        "image_position_ids": places.expand(BATCH, -1, -1).clone(),
        "decoder_input_ids": _ids(BATCH, 19),
        "self_conditioning_logits": torch.zeros(BATCH, 19, text.vocab_size),
    }


def _patches_and_chunks(model: Any) -> dict[str, Any]:
    """An image of two by two merged patches, and a chunk of sound, beside each text."""
    config = model.config
    vision, audio = config.vision_config, config.audio_config
    side, heard = 2 * vision.spatial_merge_size, 5
    spoken = torch.full((BATCH, heard), config.audio_token_id)
    frames = heard * audio.samples_per_token // audio.hop_length
    return {
        "input_ids": torch.cat([_with_places(4, config.image_token_id), spoken], 1),
        "pixel_values": torch.zeros(BATCH * side**2, 3 * vision.patch_size**2),
        "image_grid_thw": torch.tensor([1, side, side]).repeat(BATCH, 1),
        "input_features": torch.zeros(BATCH, audio.feature_size, frames),
        "chunk_sample_lengths": torch.full((BATCH,), heard * audio.samples_per_token),
    }


def _crops_and_sound(model: Any) -> dict[str, Any]:
    """An image as one small view and two crops side by side, and a spectrogram, beside each text."""
    vision, audio = model.config.vision_config, model.config.audio_config
    size, frames = vision.crop_size, 101
    patches = size // vision.patch_size
    side, heard = patches // 2, -(-frames // audio.time_reduction)
    seen = side * (2 * side + 1) + 1 + side * (side + 1)
    spoken = torch.full((BATCH, heard), audio.audio_token_id)
    return {
        "input_ids": torch.cat([_with_places(seen, vision.image_token_id), spoken], 1),
        "image_pixel_values": torch.zeros(BATCH, 3, 3, size, size),
        "image_sizes": torch.tensor([size, 2 * size]).repeat(BATCH, 1),
        "image_attention_mask": torch.ones(BATCH, 3, patches, patches),
        "audio_input_features": torch.zeros(BATCH, frames, audio.input_size),
        "audio_embed_sizes": torch.full((BATCH,), heard),
    }


EXAMPLES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "blip_2_qformer": _queries,
    "colmodernvbert": several(1),
    "emu3": sized,
    "fuyu": _flat_patches,
    "granite4_vision": in_tiles(5),
    "deepseek_vl_hybrid": _two_resolutions,
    "diffusion_gemma": _placed_patches,
    "dots3_note": _patches_and_chunks,
    "flava": _masked_pair,
    "gemma4_unified_assistant": _backbone_states,
    "granite_docling": _masked_tiles,
    "idefics": _attended_images,
    "idefics2": several(1),
    "idefics3": several(1),
    "inkling2": _token_patches,
    "inkling_mm_model": _patches_and_sound,
    "instructblip": _queried,
    "instructblipvideo": _queried_clip,
    "jev": _decision,
    "kimi_k25": _square_patches,
    "kosmos-2": _marked_places,
    "kosmos-2.5": _marked_places,
    "lfm2_vl": _shaped_patches,
    "lighton_ocr": sized,
    "llava_next": in_tiles(5),
    "llava_next_video": in_tiles(3),
    "llava_onevision": in_tiles(3),
    "lxmert": _regions,
    "minicpm_ocr": _packed_images,
    "minicpmv4_6": _packed_images,
    "minicpmv4_7": _positioned_images,
    "mistral3": sized,
    "mllama": _aspect_ratios,
    "modernvbert": several(1),
    "molmo2": _pooled_patches,
    "musicgen": _music,
    "musicgen_melody": _music_and_melody,
    "nemotron_h_omni": _flat_grid,
    "paddleocr_vl": _square_patches,
    "phi4_multimodal": _crops_and_sound,
    "pi0": _robot,
    "pp_ocrv5_mobile_det": _halved_image,
    "pp_ocrv5_server_det": _halved_image,
    "pp_ocrv6_medium_det": _halved_image,
    "pp_ocrv6_small_det": _halved_image,
    "sam3": _boxed,
    "sam3_lite_text": _boxed,
    "siglip2": _shaped_patches,
    "siglip2_vision_model": _shaped_patches,
    "smolvlm": several(1),
    "tvp": _frames_and_text("pixel_values", lambda config: config.num_frames, batch=1),
    "udop": _page,
    "video_llama_3": _merged_patches,
    "video_llava": _image_and_clip,
    "videoprism": _frames_and_text("pixel_values_videos", lambda config: config.vision_config.num_frames),
    "vision-text-dual-encoder": _pixels_and_text,
    "vits": _text,
    "xclip": _frames_and_text("pixel_values", lambda config: config.vision_config.num_frames),
}
