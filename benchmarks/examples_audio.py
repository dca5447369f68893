"""Examples for audio, speech and time series models whose inputs no configuration tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

BATCH = 3
TOKENS = 17
FRAMES = 101


def example_for(model: Any) -> Any:
    """Arguments for one call, or ``None`` where this module knows none."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for part in FROZEN.get(kind, ()):
        model.get_submodule(part).requires_grad_(False)
    return EXAMPLES[kind](model) if kind in EXAMPLES else None


# parts ----------------------------------------------------------------------------------------------------


def _ids(*shape: int, fill: int = 0) -> torch.Tensor:
    return torch.full(shape or (BATCH, TOKENS), fill)


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _parts(value)


def _field(config: Any, *names: str) -> int:
    """First of the given fields, in the configuration or in a part of it."""
    parts = list(_parts(config))
    return next(int(getattr(p, n)) for n in names for p in parts if isinstance(getattr(p, n, None), int))


def _bins(model: Any) -> int:
    return _field(model.config, "num_mel_bins", "feature_projection_input_dim", "input_dim", "input_feat_per_channel")


# spectrograms ---------------------------------------------------------------------------------------------


def _frames(model: Any, frames: int = FRAMES) -> dict[str, Any]:
    """A spectrogram with its frequencies last."""
    return {"input_features": torch.zeros(BATCH, frames, _bins(model))}


def _many_frames(model: Any) -> dict[str, Any]:
    """Frames that a stack of eight divides."""
    return _frames(model, 136)


def _four_frames(model: Any) -> dict[str, Any]:
    """Four spectra at each place."""
    return {"input_features": torch.zeros(BATCH, FRAMES, 4 * _bins(model))}


def _frames_to_text(model: Any) -> dict[str, Any]:
    return _frames(model) | {"decoder_input_ids": _ids(BATCH, 19)}


def _bins_first(model: Any, frames: int) -> dict[str, Any]:
    """A spectrogram with its frequencies first, and which of its frames are there."""
    features = torch.zeros(BATCH, _bins(model), frames)
    return {"input_features": features, "input_features_mask": _ones(BATCH, frames)}


def _whisper(model: Any) -> dict[str, Any]:
    """As many frames as an encoder with learned positions takes."""
    return _bins_first(model, 2 * _field(model.config, "max_source_positions"))


def _stacked(model: Any) -> dict[str, Any]:
    """Frames that the feature extractor has stacked."""
    stacked = _field(model.config, "num_mel_bins") * _field(model.config, "num_stacked_frames")
    return {"input_features": torch.zeros(BATCH, TOKENS, stacked), "input_features_mask": _ones(BATCH, TOKENS)}


# speech beside text ---------------------------------------------------------------------------------------


def _beside_text(speech: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Speech whose features take places among the tokens."""
    return lambda model: _places(model, speech(model))


def audio_token(config: Any) -> int:
    """Token in whose place a feature of the speech goes."""
    return _field(config, "audio_token_id", "audio_token_index")


def _places(model: Any, speech: dict[str, Any]) -> dict[str, Any]:
    """The model's own complaint says how many places its features need."""
    token = audio_token(model.config)
    try:
        with torch.no_grad():
            model(input_ids=_ids(), **speech)
    except ValueError as error:
        found = re.search(r"features:\D*(\d+)", str(error))
        if not found:
            raise
        return _with_places(int(found[1]) // BATCH, token) | speech
    return _with_places(0, token) | speech


def _with_places(places: int, token: int) -> dict[str, Any]:
    ids = _ids(BATCH, places + 13)
    ids[:, 3 : places + 3] = token
    return {"input_ids": ids}


def _qwen2_audio(model: Any) -> dict[str, Any]:
    speech = _whisper(model)
    speech["feature_attention_mask"] = speech.pop("input_features_mask")
    example = _with_places(speech["input_features"].shape[-1] // 4, model.config.audio_token_index) | speech
    return example | {"attention_mask": torch.ones_like(example["input_ids"])}


def _voxtral(model: Any) -> dict[str, Any]:
    return _places(model, {"input_features": _whisper(model)["input_features"]})


def _voxtral_realtime(model: Any) -> dict[str, Any]:
    """One token for every eight frames."""
    return {"input_ids": _ids(), "input_features": torch.zeros(BATCH, _bins(model), 8 * TOKENS)}


def _granite_speech(model: Any) -> dict[str, Any]:
    """A few queries for every window of frames."""
    config = model.config
    places = -(-FRAMES // config.window_size) * (config.window_size // config.downsample_rate)
    return {
        **_with_places(places, config.audio_token_id),
        "input_features": torch.zeros(BATCH, FRAMES, config.encoder_config.input_dim),
        "input_features_mask": torch.ones(BATCH, places, dtype=torch.bool),
    }


def _music_flamingo(model: Any) -> dict[str, Any]:
    config = model.config
    places = 2 * _field(config, "max_source_positions") // 4
    example = _with_places(places, config.audio_token_id) | _whisper(model)
    example["input_ids"][:, 2] = config.audio_bos_token_id
    example["input_ids"][:, places + 3] = config.audio_eos_token_id
    return example


def _moss(model: Any) -> dict[str, Any]:
    return _with_places(32, model.config.audio_token_id) | _whisper(model)


def _vibevoice(model: Any) -> dict[str, Any]:
    """Seven frames of the codec; the diffusion head learns at their places."""
    config = model.config
    codec = getattr(config, "audio_config", None) or config.acoustic_tokenizer_encoder_config
    samples = 7 * int(codec.hop_length)
    example = _with_places(7, config.audio_token_id)
    example |= {"input_values": torch.zeros(BATCH, 1, samples), "padding_mask": torch.ones(BATCH, samples).bool()}
    if hasattr(config, "audio_config"):
        example |= {"labels": example["input_ids"], "acoustic_loss_mask": example["input_ids"] == config.audio_token_id}
    return example


# waveforms and codecs -------------------------------------------------------------------------------------


def _wave(samples: int, *, channels: bool = True) -> Callable[[Any], dict[str, Any]]:
    """Sound of one channel."""
    shape = (BATCH, 1, samples) if channels else (BATCH, samples)
    return lambda model: {"input_values": torch.zeros(shape)}


def _wave_to_text(model: Any) -> dict[str, Any]:
    return {"input_values": torch.zeros(BATCH, 80 * 31), "decoder_input_ids": _ids(BATCH, 19)}


def _two_views(model: Any) -> dict[str, Any]:
    """A waveform, and a spectrogram of as many frames as its codes."""
    bins = model.config.semantic_model_config.feature_projection_input_dim
    return {"input_values": torch.zeros(BATCH, 1, 320 * TOKENS), "input_features": torch.zeros(BATCH, TOKENS, bins)}


def _latents(model: Any) -> tuple[torch.Tensor]:
    return (torch.zeros(BATCH, TOKENS, model.config.hidden_size),)


def _channels_first(model: Any) -> tuple[torch.Tensor]:
    return (torch.zeros(BATCH, model.config.hidden_size, TOKENS),)


def _codes(model: Any) -> dict[str, Any]:
    """A text token and the codes of one frame at each place."""
    return {"input_ids": _ids(BATCH, TOKENS, model.config.num_codebooks + 1)}


def _csm(model: Any) -> dict[str, Any]:
    """Text, then four places of sound; the depth decoder learns from the codes of that sound."""
    ids = _ids()
    ids[:, 9:13] = model.config.audio_token_id
    cutoffs = torch.full((BATCH, 1), 4 * 1920)
    return {
        "input_ids": ids,
        "input_values": torch.zeros(BATCH, 1, 4 * 1920),
        "input_values_cutoffs": cutoffs,
        "labels": ids,
    }


def _dia(model: Any) -> dict[str, Any]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(BATCH, 19, model.config.decoder_config.num_channels)}


def _higgs(model: Any) -> dict[str, Any]:
    config = model.config
    example = _with_places(7, config.audio_token_id)
    codes = _ids(BATCH, 7, config.num_codebooks)
    return example | {"audio_input_ids": codes, "audio_input_ids_mask": torch.ones(BATCH, 7).bool()}


def _tts_latents(model: Any) -> dict[str, Any]:
    """A voice prompt of five places, its first audio place, and six latents."""
    config = model.config
    ids = _ids(BATCH, 23)
    ids[:, 1:6] = config.audio_prompt_token_id
    ids[:, 11] = config.audio_bos_token_id
    ids[:, 12:18] = config.audio_latent_token_id
    prompt = model.audio_prompt_proj.in_features
    return {
        "input_ids": ids,
        "audio_prompt_latents": torch.zeros(BATCH, 5, prompt),
        "audio_latents": torch.zeros(BATCH, 6, config.latent_dim),
    }


# one by one -----------------------------------------------------------------------------------------------


def _ast(model: Any) -> dict[str, Any]:
    return {"input_values": torch.zeros(BATCH, model.config.max_length, model.config.num_mel_bins)}


def _clap(model: Any) -> dict[str, Any]:
    return {"input_ids": _ids(), "input_features": torch.zeros(BATCH, 1, FRAMES, 64), "is_longer": _ids(BATCH, 1)}


def _clvp(model: Any) -> dict[str, Any]:
    bins = model.config.decoder_config.feature_size
    return {"input_ids": _ids(), "input_features": torch.zeros(BATCH, bins, FRAMES)}


def _fastspeech(model: Any) -> dict[str, Any]:
    """One frame for each token."""
    bins = _field(model.config, "num_mel_bins")
    return {
        "input_ids": _ids(),
        "spectrogram_labels": torch.zeros(BATCH, TOKENS, bins),
        "duration_labels": _ones(BATCH, TOKENS),
        "pitch_labels": torch.zeros(BATCH, TOKENS, 1),
        "energy_labels": torch.zeros(BATCH, TOKENS, 1),
    }


def _gemma3n(model: Any) -> dict[str, Any]:
    mel = torch.zeros(BATCH, FRAMES, model.config.input_feat_size)
    return {"audio_mel": mel, "audio_mel_mask": torch.zeros(BATCH, FRAMES, dtype=torch.bool)}


def _gemma4(model: Any) -> dict[str, Any]:
    features = torch.zeros(BATCH, FRAMES, 128)
    return {"input_features": features, "attention_mask": torch.ones(BATCH, FRAMES, dtype=torch.bool)}


def _pop2piano(model: Any) -> dict[str, Any]:
    features = torch.zeros(BATCH, TOKENS, model.config.d_model)
    return {"input_features": features, "decoder_input_ids": _ids(BATCH, 19)}


def _qwen3_asr(model: Any) -> dict[str, Any]:
    return _bins_first(model, 4 * _field(model.config, "n_window"))


def _univnet(model: Any) -> dict[str, Any]:
    noise = torch.zeros(BATCH, TOKENS, model.config.model_in_channels)
    return _frames(model, TOKENS) | {"noise_sequence": noise}


def _ultravbert(model: Any) -> dict[str, Any]:
    """One image of ones beside each text: an image of zeros counts as padding."""
    vision = model.config.vision_config
    shuffled = (vision.image_size // vision.patch_size // model.config.pixel_shuffle_factor) ** 2
    ids = _ids(BATCH, shuffled + 13)
    ids[:, 3 : shuffled + 3] = model.config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.ones(BATCH, 1, 3, vision.image_size, vision.image_size)}


def _word_timestamp(model: Any) -> dict[str, Any]:
    return {"inputs_embeds": torch.zeros(BATCH, TOKENS, model.config.hidden_size)}


# time series ----------------------------------------------------------------------------------------------


def _series(model: Any) -> dict[str, Any]:
    """The past with its lags, and the future that training predicts."""
    config = model.config
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.ones(BATCH, past),
        "past_time_features": torch.zeros(BATCH, past, config.num_time_features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.ones(BATCH, config.prediction_length),
        "future_time_features": torch.zeros(BATCH, config.prediction_length, config.num_time_features),
    }


def _patches(model: Any) -> dict[str, Any]:
    return {"past_values": torch.zeros(BATCH, model.config.context_length, model.config.num_input_channels)}


def _forecast(model: Any) -> dict[str, Any]:
    past = torch.arange(float(model.config.context_length)).repeat(BATCH, 1)
    return {"past_values": past}


FROZEN = {  # codecs and teachers that training leaves alone, and what only generation uses
    "clvp": ["speech_decoder_model.model.decoder.input_embeds_layer"],
    "csm": ["codec_model"],
    "kyutai_speech_to_text": ["codec_model"],
    "neucodec": ["semantic_encoder"],
    "pop2piano": ["mel_conditioner"],
    "vibevoice_asr": ["model.acoustic_tokenizer_encoder", "model.semantic_tokenizer_encoder"],
    "xcodec": ["semantic_model", "decoder_semantic", "fc1"],
    "xcodec2": ["semantic_encoder"],
}

EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "audio-spectrogram-transformer": _ast,
    "audioflamingo3": _beside_text(_whisper),
    "audioflamingo3_encoder": _whisper,
    "autoformer": _series,
    "canary": _frames_to_text,
    "clap": _clap,
    "clvp": _clvp,
    "cohere_asr": _frames_to_text,
    "csm": _csm,
    "dac": _wave(2048),
    "dia": _dia,
    "encodec": _wave(2003),
    "fastspeech2_conformer": _fastspeech,
    "fastspeech2_conformer_with_hifigan": _fastspeech,
    "fun_asr_nano": _beside_text(_stacked),
    "fun_asr_nano_encoder": _stacked,
    "gemma3n_audio": _gemma3n,
    "gemma4_audio": _gemma4,
    "glmasr": _beside_text(lambda model: _bins_first(model, 104)),
    "gradium_phonon_tts": _tts_latents,
    "granite_speech": _granite_speech,
    "granite_speech5_ctc": _four_frames,
    "granite_speech5_encoder": _four_frames,
    "granite_speech_plus": _granite_speech,
    "higgs_audio_v2": _higgs,
    "informer": _series,
    "kyutai_speech_to_text": _codes,
    "lasr_ctc": _frames,
    "lasr_encoder": _frames,
    "mimi": _wave(7680),
    "mimi_decoder": _channels_first,
    "mimi_encoder": _wave(7680),
    "moonshine_streaming": _wave_to_text,
    "moss_transcribe_diarize": _moss,
    "muse_spark_audio": _wave(1920 * 7, channels=False),
    "musicflamingo": _music_flamingo,
    "nemo_speechlm": _beside_text(lambda model: _many_frames(model) | {"input_features_mask": _ones(BATCH, 136)}),
    "nemotron3_5_asr": _frames_to_text,
    "nemotron3_5_transcribe_asr_audio": _many_frames,
    "nemotron3_5_transcribe_audio": _many_frames,
    "nemotron3_5_transcribe_word_timestamp": _word_timestamp,
    "nemotron3_diarization": _many_frames,
    "nemotron3_diarization_audio": _many_frames,
    "nemotron_asr_streaming": _frames_to_text,
    "nemotron_asr_streaming_encoder": _frames,
    "neucodec": _two_views,
    "parakeet_ctc": _frames,
    "parakeet_encoder": _frames,
    "parakeet_rnnt": _frames_to_text,
    "parakeet_tdt": _frames_to_text,
    "patchtsmixer": _patches,
    "patchtst": _patches,
    "pe_audio": lambda model: {"input_ids": _ids(), "input_values": torch.zeros(BATCH, 1, 1920 * 7)},
    "pe_audio_encoder": _wave(1920 * 7),
    "pocket_tts": _tts_latents,
    "pocket_tts_audio_tokenizer": _wave(7680),
    "pocket_tts_audio_tokenizer_decoder": _channels_first,
    "pocket_tts_audio_tokenizer_encoder": _wave(7680),
    "pop2piano": _pop2piano,
    "qwen2_audio": _qwen2_audio,
    "qwen3_asr": _beside_text(_qwen3_asr),
    "qwen3_asr_encoder": _qwen3_asr,
    "speech-encoder-decoder": _wave_to_text,
    "speech_to_text": _frames_to_text,
    "time_series_transformer": _series,
    "timesfm": _forecast,
    "timesfm2_5": _forecast,
    "ultravbert": _ultravbert,
    "univnet": _univnet,
    "vibevoice": _vibevoice,
    "vibevoice_acoustic_tokenizer": _wave(3200),
    "vibevoice_acoustic_tokenizer_decoder": _channels_first,
    "vibevoice_acoustic_tokenizer_encoder": lambda model: (torch.zeros(BATCH, 1, 3200),),
    "vibevoice_asr": _vibevoice,
    "voxtral": _voxtral,
    "voxtral_realtime": _voxtral_realtime,
    "wav2vec2-bert": _frames,
    "xcodec": _wave(3200),
    "xcodec2": _two_views,
}
