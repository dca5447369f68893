"""Which class of transformers makes the model that one would train from a configuration."""

from __future__ import annotations

from typing import Any

AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForCTC",
    "AutoModelForImageTextToText",
    "AutoModelForPreTraining",
    "AutoModelForObjectDetection",
    "AutoModelForUniversalSegmentation",
    "AutoModelForSemanticSegmentation",
    "AutoModelForTimeSeriesPrediction",
    "AutoModel",
)


def auto_class(config: Any) -> Any:
    """The transformers Auto class that makes the model which one would train from a configuration."""
    from transformers.models.auto import modeling_auto

    both = getattr(config, "is_encoder_decoder", False)
    order = sorted(AUTO_CLASSES, key=lambda name: both and "Seq2Seq" not in name)
    rest = sorted(name for name in vars(modeling_auto) if name.startswith("AutoModelFor") and name not in order)
    found = (getattr(modeling_auto, name) for name in (*order, *rest))
    second_best = None
    for cls in found:
        made = getattr(cls, "_model_mapping", {}).get(type(config), None)
        options = made if isinstance(made, tuple) else (made,)
        if made is not None and any(m.config_class is type(config) for m in options):
            return cls
        second_best = second_best or (cls if made is not None else None)  # borrowed, or a part of a composite
    return second_best
