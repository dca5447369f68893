"""Architectures of timm and torchvision at two widths, for the zoo.

Every entry is a function of a width: 64 for the model and 32 for its base. The base has the same depth, head size,
patches and classes, and half of every width that the library lets one choose. They need torchvision, which pins
torch, so they live in an environment of their own: `pip install -e ".[zoo]"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
import torchvision
from timm import models as tm
from timm.layers import SEModule
from torch import nn

CLASSES = 11
SIDE = 96


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        build: function of a width that gives the model.
        example: function that gives the arguments of one call.
        base: whether the library can build it at half the width.
    """

    build: Callable[[int], nn.Module]
    example: Callable[[], Any]
    base: bool = True

    def __call__(self, width: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return self.build(width), self.example()

    @staticmethod
    def smaller(model: nn.Module) -> int:
        """Half of what the last readout contracts, or 32."""
        readouts = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.shape[0] == CLASSES]
        return readouts[-1].weight.shape[1] // 2 if readouts else 32


TIMM: dict[str, Entry] = {}
TORCHVISION: dict[str, Entry] = {}


def images(side: int = SIDE) -> Callable[[], Any]:
    """An example of five images."""
    return lambda: torch.zeros(5, 3, side, side)


def at(value: Any, width: int) -> Any:
    """A nested value of widths at 64, at another width."""
    if isinstance(value, Mapping):
        return {k: at(v, width) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(at(v, width) for v in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value * width // 64
    return value * width / 64 if isinstance(value, float) else value


def stock(name: str, side: int = SIDE, wide: Mapping[str, Any] | None = None, **fixed: Any) -> None:
    """Add a model of timm: its arguments that are widths, at 64, and those that stay."""

    def build(width: int) -> nn.Module:
        return timm.create_model(name, num_classes=CLASSES, **at(wide or {}, width), **fixed)

    TIMM[name] = Entry(build, images(side), base=wide is not None)


def direct(
    name: str, make: Callable[..., nn.Module], side: int = SIDE, *, wide: Mapping[str, Any], **fixed: Any
) -> None:
    """Add a model of timm by its class, where its function leaves no argument open."""

    def build(width: int) -> nn.Module:
        return make(num_classes=CLASSES, **at(wide, width), **fixed)

    TIMM[name] = Entry(build, images(side))


def cells(name: str, factor: float = 1.0, side: int = SIDE, heads: int = 0, **fixed: Any) -> None:
    """Add a network of timm that is a list of blocks: every block at most twice."""
    source = next(m for m in (tm.byobnet, tm.byoanet, tm.mobilevit) if name in m.model_cfgs)

    def cell(block: Any, width: int) -> Any:
        if isinstance(block, tuple):
            return tuple(cell(b, width) for b in block)
        inner = dict(block.block_kwargs or {})
        if "transformer_dim" in inner:
            inner |= {"transformer_dim": inner["transformer_dim"] * width // 64, "num_heads": 4 * width // 64}
        return replace(block, c=int(block.c * factor * width / 64), d=min(block.d, 2), block_kwargs=inner or None)

    def build(width: int) -> nn.Module:
        config = source.model_cfgs[name]
        stem = at(config.stem_chs if isinstance(config.stem_chs, tuple) else 32, width)
        blocks = tuple(cell(b, width) for b in config.blocks)
        features = int(config.num_features * factor) * width // 64
        config = replace(config, blocks=blocks, stem_chs=stem, num_features=features, **fixed)
        if heads:
            config = replace(config, self_attn_kwargs={**config.self_attn_kwargs, "num_heads": heads * width // 64})
        size = {"img_size": side} if config.fixed_input_size else {}
        return tm.byobnet.ByobNet(config, num_classes=CLASSES, **size)

    TIMM[name] = Entry(build, images(side))


def partial_stages(name: str) -> None:
    """Add a cross-stage partial network of timm, one block a stage."""

    def build(width: int) -> nn.Module:
        config = tm.cspnet.model_cfgs[name]
        stages = config.stages
        channels = at(tuple(c // 4 for c in stages.out_chs), width)
        stages = replace(stages, depth=(1,) * len(channels), out_chs=channels)
        stem = replace(config.stem, out_chs=at(config.stem.out_chs, width))
        return tm.cspnet.CspNet(replace(config, stem=stem, stages=stages), num_classes=CLASSES)

    TIMM[name] = Entry(build, images())


# timm: convolutions -------------------------------------------------------------------------------------

STAGES = (32, 64, 128, 256)
ONCE = (1, 1, 1, 1)
DEEP = {"channels": STAGES, "stem_width": 32}
QUARTER = {"attn_layer": partial(SEModule, rd_ratio=0.25)}

stock("resnet18", wide={"channels": STAGES}, layers=ONCE)
stock("resnet50d", wide=DEEP, layers=ONCE)
stock("resnetblur18", wide={"channels": STAGES}, layers=ONCE)
stock("seresnet18", wide=DEEP, stem_type="deep", layers=ONCE, block_args=QUARTER)
stock("resnext26ts")
stock("resnext50d_32x4d", wide=DEEP, layers=ONCE, cardinality=4, base_width=32)
stock("seresnext26d_32x4d", wide=DEEP, layers=ONCE, cardinality=4, base_width=32, block_args=QUARTER)
stock("ecaresnet26t", wide={"channels": (64, 128, 256, 256), "stem_width": 32}, layers=ONCE)
stock("resnetv2_50d", wide={"channels": (64, 128, 256, 512), "stem_chs": 32}, layers=ONCE)
stock("resnetv2_18", wide={"channels": STAGES, "stem_chs": 32}, layers=ONCE)
stock("res2net50d", wide=DEEP, layers=ONCE, base_width=32)
stock("resnest14d", wide={"channels": (128, 128, 256, 256), "stem_width": 32})
stock("skresnet18", wide=DEEP, stem_type="deep", layers=ONCE, block_args={"sk_kwargs": {"rd_ratio": 0.5}})
stock("legacy_seresnet18")
REGULAR = {"w0": 64, "wa": 64, "stem_width": 32}
stock("regnetx_004", wide={**REGULAR}, wm=2.0, depth=6, group_size=16)
stock("regnety_004", wide={**REGULAR}, wm=2.0, depth=6, group_size=16)
stock("regnetz_005", wide={**REGULAR, "num_features": 256}, wm=2.0, depth=6, group_size=16)
stock("regnetv_040", wide={**REGULAR}, wm=2.0, depth=6, group_size=16)
stock("densenet121", wide={"growth_rate": 32}, block_config=(2, 2, 2))
stock("densenetblur121d", wide={"growth_rate": 32}, block_config=(2, 2))
stock("dla34", wide={"channels": (32, 32, 64, 128, 256, 256)}, levels=(1, 1, 1, 2, 2, 1))
stock("dla46x_c", wide={"channels": (32, 32, 64, 64, 128, 256)}, levels=(1, 1, 1, 2, 2, 1))
stock("dla60_res2net", wide={"channels": (32, 32, 64, 64, 128, 256)}, levels=(1, 1, 1, 2, 2, 1), base_width=32)
stock("dpn48b")
PLANES = [32, "M", 64, "M", 128, "M", 128, "M", 256, "M"]
direct("vgg11", tm.vgg.VGG, side=224, wide={"cfg": PLANES}, mlp_ratio=0.125)
direct("vgg13_bn", tm.vgg.VGG, side=224, wide={"cfg": [32, *PLANES]}, mlp_ratio=0.125, norm_layer=nn.BatchNorm2d)
direct("convmixer_768_32", tm.convmixer.ConvMixer, wide={"dim": 64}, depth=3)
stock("inception_v3", side=128)
stock("inception_v4", side=128)
stock("inception_resnet_v2", side=128)
stock("legacy_xception")
stock("tresnet_m", wide={"width_factor": 1.0}, layers=ONCE)
stock("rexnet_100", wide={"width_mult": 2.0}, final_chs=192, se_ratio=0.25)
stock("rdnet_tiny", wide={"num_init_features": 64, "growth_rates": (64,) * 7}, num_blocks_list=(1,) * 7)
stock(
    "ese_vovnet19b_dw",
    wide={"stem_chs": [32, 32, 32], "stage_conv_chs": [32, 64, 64, 64], "stage_out_chs": [64, 128, 256, 256]},
)
stock(
    "vovnet39a",
    wide={"stem_chs": [32, 32, 64], "stage_conv_chs": [32, 64, 64, 64], "stage_out_chs": [64, 128, 256, 256]},
    block_per_stage=[1, 1, 1, 1],
    layer_per_block=2,
)
stock("nf_resnet26", wide={"channels": (64, 128, 256, 512), "stem_chs": 32}, depths=ONCE)
stock(
    "nf_regnet_b0",
    wide={"channels": (64, 64, 128, 256), "num_features": 256},
    depths=ONCE,
    width_factor=1.0,
    bottle_ratio=2.0,
)
stock(
    "eca_nfnet_l0",
    wide={"channels": (64, 256, 256, 256), "num_features": 256, "stem_chs": 64},
    depths=ONCE,
    group_size=16,
    bottle_ratio=0.5,
)
stock(
    "dm_nfnet_f0",
    wide={"channels": (64, 128, 256, 256), "num_features": 256, "stem_chs": 64},
    depths=ONCE,
    group_size=16,
)
stock("nasnetalarge", wide={"num_features": 1536, "stem_size": 32})
stock("convnext_tiny", wide={"dims": STAGES}, depths=ONCE)
stock("convnextv2_tiny", wide={"dims": STAGES}, depths=ONCE)
stock("convnext_tiny_hnf", wide={"dims": STAGES}, depths=ONCE)
stock("inception_next_tiny", wide={"dims": STAGES}, depths=ONCE)
stock("mambaout_tiny", wide={"dims": STAGES}, depths=ONCE, expansion_ratio=2)
stock("starnet_s1", wide={"base_dim": 32}, depths=ONCE)
stock("fasternet_t0", wide={"embed_dim": 32, "feature_dim": 256}, depths=ONCE)
stock("cspnext_tiny", wide={"channels": STAGES}, depths=ONCE, widen_factor=1.0)
stock("lcnetv2_base", wide={"scale": 1.0, "head_hidden_size": 256}, depths=ONCE)
stock("csatv2", side=512, wide={"dims": STAGES}, depths=(1, 1, 2, 2), transformer_depths=(0, 0, 1, 1))

# timm: searched and mobile networks ---------------------------------------------------------------------


def generated(name: str, make: Callable[..., nn.Module], multiplier: float, features: int = 0, **fixed: Any) -> None:
    """Add a network that timm generates from a table of blocks: a multiplier that no rounding disturbs."""

    def build(width: int) -> nn.Module:
        head = {"num_features": features * width // 64} if features else {}
        return make(name, channel_multiplier=multiplier * width / 64, num_classes=CLASSES, **head, **fixed)

    TIMM[name] = Entry(build, images())


def small_mobilenet(width: int) -> nn.Module:
    """MobileNetV3 from blocks whose squeezed widths need no rounding."""
    blocks = [
        ["ds_r1_k3_s1_e1_c32_se0.5_nre"],
        ["ir_r1_k3_s2_e4_c32_nre", "ir_r1_k3_s1_e2_c32_nre"],
        ["ir_r1_k5_s2_e4_c64_se0.25"],
        ["cn_r1_k1_s1_c256"],
    ]
    squeeze = partial(tm._efficientnet_blocks.SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU)
    return tm.mobilenetv3.MobileNetV3(
        tm._efficientnet_builder.decode_arch_def(blocks),
        num_classes=CLASSES,
        stem_size=32,
        num_features=256 * width // 64,
        round_chs_fn=partial(tm._efficientnet_builder.round_channels, multiplier=width / 64),
        act_layer=nn.Hardswish,
        se_layer=squeeze,
    )


TIMM["mobilenetv3_small_100"] = Entry(small_mobilenet, images())
generated("efficientnet_b0", tm.efficientnet._gen_efficientnet, 1.0, channel_divisor=1)
generated("efficientnet_es", tm.efficientnet._gen_efficientnet_edge, 2.0)
stock("efficientnet_lite0")
generated("tf_efficientnetv2_b0", tm.efficientnet._gen_efficientnetv2_base, 2.0)
generated("tf_efficientnet_cc_b0_4e", tm.efficientnet._gen_efficientnet_condconv, 2.0)
generated("mnasnet_100", tm.efficientnet._gen_mnasnet_b1, 2.0, 1280)
generated("semnasnet_100", tm.efficientnet._gen_mnasnet_a1, 2.0, 1280)
generated("mobilenetv1_100", tm.efficientnet._gen_mobilenet_v1, 1.0)
generated("mobilenetv2_100", tm.efficientnet._gen_mobilenet_v2, 2.0)
generated("mixnet_s", tm.efficientnet._gen_mixnet_s, 2.0)
generated("fbnetc_100", tm.efficientnet._gen_fbnetc, 2.0)
generated("spnasnet_100", tm.efficientnet._gen_spnasnet, 2.0, 1280)
generated("lcnet_100", tm.mobilenetv3._gen_lcnet, 2.0)
stock("fbnetv3_b")
generated("mobilenetv4_conv_small", tm.mobilenetv3._gen_mobilenet_v4, 2.0)
generated("mobilenetv4_hybrid_medium", tm.mobilenetv3._gen_mobilenet_v4, 2.0)
GHOSTS = [[[3, 16, 16, 0, 1]], [[3, 64, 32, 0, 2]], [[5, 128, 64, 0.25, 2], [5, 128, 64, 0.25, 1]]]
ghost = tm.ghostnet.GhostNet
direct("ghostnet_100", ghost, wide={"width": 2.0}, cfgs=GHOSTS)
direct("ghostnetv2_100", ghost, wide={"width": 2.0}, cfgs=GHOSTS, version="v2")
direct("ghostnetv3_100", ghost, wide={"width": 2.0}, cfgs=GHOSTS, version="v3")
direct("repghostnet_100", tm.repghost.RepGhostNet, wide={"width": 2.0}, cfgs=GHOSTS)
stock("hardcorenas_a")
cells("repvgg_a0")
cells("repvgg_b1g4", 0.5)
stock("mobileone_s0", wide={"width_factor": 1.0})
cells("gernet_s")
stock("resnet51q")
cells("halonet26t", 0.5, side=256, heads=4)
cells("sehalonet33ts", 0.5, side=256, heads=4)
cells("lambda_resnet26t", 0.25, side=128)
cells("botnet26t", 0.5, side=256, heads=4)
partial_stages("cspresnet50")
partial_stages("cs3darknet_l")
partial_stages("darknet53")


def gpu_net(name: str, width: int) -> nn.Module:
    """HGNet, one block a stage."""
    config = dict(tm.hgnet.model_cfgs[name])
    for key, value in config.items():
        if key.startswith("stage"):
            config[key] = [*at(value[:3], width), 1, *value[4:]]
    config["stem_chs"] = at(config["stem_chs"], width)
    return tm.hgnet.HighPerfGpuNet(config, num_classes=CLASSES, head_hidden_size=512 * width // 64)


def parallel_net(width: int) -> nn.Module:
    """HRNet: the branches; its head has one size."""
    config = dict(tm.hrnet.cfg_cls["hrnet_w18_small"])
    for key, value in config.items():
        if key.startswith("stage"):
            config[key] = {**value, "num_channels": at(tuple(2 * c for c in value["num_channels"]), width)}
    return tm.hrnet.HighResolutionNet({**config, "stem_width": width}, num_classes=CLASSES)


def short_range(width: int) -> nn.Module:
    """SelecSLS, whose features are rows of in, skip, middle and out channels."""
    features = [(32, 0, 64, 64, True, 2), (64, 64, 64, 128, False, 1), (128, 0, 128, 128, True, 2)]
    sizes = [(32, *at(features[0][1:4], width)), *(at(f[:4], width) for f in features[1:])]
    config = {
        "block": tm.selecsls.SelecSlsBlock,
        "features": [(*s, *f[4:]) for s, f in zip(sizes, features, strict=True)],
        "head": [(*at((128, 256), width), 3, 2), (*at((256, 256), width), 1, 1)],
        "num_features": 256 * width // 64,
        "feature_info": [{"num_chs": 256 * width // 64, "reduction": 16, "module": "head.1"}],
    }
    return tm.selecsls.SelecSls(config, num_classes=CLASSES)


def aligned(width: int) -> nn.Module:
    """The pre-activated Xception; its stem gives 64 channels at any width."""
    block = {"in_chs": 128, "out_chs": 128, "stride": 1}
    last = {"in_chs": 256, "out_chs": (256, 256, 512), "stride": 1, "no_skip": True}
    blocks = [
        {"in_chs": 64, "out_chs": 128, "stride": 2},
        block,
        {"in_chs": 128, "out_chs": (128, 256, 256), "stride": 2},
        last,
    ]
    blocks = [{**b, "in_chs": at(b["in_chs"], width), "out_chs": at(b["out_chs"], width)} for b in blocks]
    blocks[0]["in_chs"] = 64
    return tm.xception_aligned.XceptionAligned(blocks, num_classes=CLASSES, preact=True)


TIMM["hgnet_tiny"] = Entry(partial(gpu_net, "hgnet_tiny"), images())
TIMM["hgnetv2_b0"] = Entry(partial(gpu_net, "hgnetv2_b0"), images())
TIMM["hrnet_w18_small"] = Entry(parallel_net, images())
TIMM["selecsls42b"] = Entry(short_range, images())
TIMM["xception41p"] = Entry(aligned, images())

# timm: transformers and mixers --------------------------------------------------------------------------

PLAIN = {"embed_dim": 64, "num_heads": 4}
HEADS = (2, 4, 8, 16)
THIN = {"embed_dims": STAGES, "num_heads": HEADS}

stock("vit_base_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_base_patch16_siglip_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_base_patch16_clip_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_base_patch16_rpn_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_medium_patch16_reg4_gap_256", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_relpos_base_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_srelpos_small_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_base_patch16_rope_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_base_patch16_rope_mixed_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_7b_patch16_dinov3", img_size=SIDE, depth=2, wide=PLAIN)
stock("vit_small_patch14_dinov2", side=98, img_size=98, depth=2, wide=PLAIN)
stock(
    "samvit_base_patch16",
    img_size=SIDE,
    depth=2,
    wide={**PLAIN, "neck_chans": 64},
    global_attn_indexes=(1,),
    window_size=3,
)
stock("naflexvit_base_patch16_gap", wide=PLAIN, depth=2)
stock("deit_base_distilled_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("deit3_small_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("beit_base_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("beit3_base_patch16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("eva02_tiny_patch14_224", side=98, img_size=98, depth=2, wide=PLAIN, mlp_ratio=4)
stock("eva_giant_patch14_224", side=98, img_size=98, depth=2, wide=PLAIN, mlp_ratio=4)
stock(
    "swin_tiny_patch4_window7_224",
    img_size=SIDE,
    window_size=3,
    depths=ONCE,
    wide={"embed_dim": 32, "num_heads": HEADS},
)
stock("swinv2_tiny_window8_256", img_size=SIDE, window_size=3, depths=ONCE, wide={"embed_dim": 32, "num_heads": HEADS})
stock("swinv2_cr_tiny_224", img_size=SIDE, depths=ONCE, window_size=3, wide={"embed_dim": 32, "num_heads": HEADS})
stock(
    "maxvit_pico_rw_256",
    img_size=SIDE,
    wide={"embed_dim": STAGES, "stem_width": (32, 32)},
    depths=ONCE,
    transformer_dim_head=16,
    transformer_window_size=3,
    transformer_grid_size=3,
)
stock(
    "maxvit_rmlp_pico_rw_256",
    img_size=SIDE,
    wide={"embed_dim": STAGES, "stem_width": (32, 32)},
    depths=ONCE,
    transformer_dim_head=16,
    transformer_window_size=3,
    transformer_grid_size=3,
)
stock(
    "coatnet_0_rw_224",
    img_size=SIDE,
    wide={"embed_dim": STAGES, "stem_width": (32, 32)},
    depths=ONCE,
    transformer_dim_head=16,
)
stock(
    "coatnext_nano_rw_224",
    img_size=SIDE,
    wide={"embed_dim": STAGES, "stem_width": (32, 32)},
    depths=ONCE,
    transformer_dim_head=16,
)
WINDOWS = {"num_heads": 8, "crpe_window": {3: 2, 5: 2, 7: 4}}
stock("coat_tiny", img_size=SIDE, wide={"embed_dims": (128,) * 4, **WINDOWS}, serial_depths=ONCE, parallel_depth=1)
stock("coat_lite_tiny", img_size=SIDE, wide={"embed_dims": (64, 128, 128, 256), **WINDOWS}, serial_depths=ONCE)
stock("cait_xxs24_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("xcit_nano_12_p16_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("xcit_tiny_12_p8_224", img_size=SIDE, depth=2, wide=PLAIN)
stock("convit_tiny", img_size=SIDE, depth=3, local_up_to_layer=2, embed_dim=16, wide={"num_heads": 4})
MIXER = {"img_size": SIDE, "num_blocks": 2, "wide": {"embed_dim": 64}}
mixer = tm.mlp_mixer
direct("mixer_s16_224", mixer.MlpMixer, **MIXER)
direct("resmlp_12_224", mixer.MlpMixer, **MIXER, mlp_ratio=4, block_layer=mixer.ResBlock, norm_layer=mixer.Affine)
direct(
    "gmlp_s16_224", mixer.MlpMixer, **MIXER, mlp_ratio=4, block_layer=mixer.SpatialGatingBlock, mlp_layer=mixer.GatedMlp
)
direct("gmixer_24_224", mixer.MlpMixer, **MIXER, mlp_ratio=(1.0, 4.0), mlp_layer=mixer.GluMlp, act_layer=nn.SiLU)
META = {"depths": ONCE, "wide": {"dims": STAGES}}
former = tm.metaformer
direct(
    "poolformer_s12",
    former.MetaFormer,
    **META,
    downsample_norm=None,
    mlp_act=nn.GELU,
    mlp_bias=True,
    norm_layers=former.GroupNorm1,
    layer_scale_init_values=1e-5,
    res_scale_init_values=None,
    use_mlp_head=False,
)
direct("poolformerv2_s12", former.MetaFormer, **META, norm_layers=former.GroupNorm1NoBias, use_mlp_head=False)
direct("convformer_s18", former.MetaFormer, **META, token_mixers=former.SepConv)
direct(
    "caformer_s18",
    former.MetaFormer,
    **META,
    token_mixers=[former.SepConv] * 2 + [former.Attention] * 2,
    norm_layers=[former.LayerNorm2dNoBias] * 2 + [former.LayerNormNoBias] * 2,
)
stock("pvt_v2_b0", wide=THIN, depths=ONCE)
stock("pvt_v2_b2_li", wide=THIN, depths=ONCE)
stock("twins_pcpvt_small", img_size=SIDE, wide=THIN, depths=ONCE)
stock("twins_svt_small", img_size=SIDE, wide=THIN, depths=(2, 2, 2, 2), wss=(3, 3, 3, 3))
stock(
    "levit_128s", img_size=SIDE, side=SIDE, wide={"embed_dim": (64, 128, 256), "num_heads": (4, 8, 16)}, depth=(1, 1, 1)
)
stock("levit_conv_128s", img_size=SIDE, wide={"embed_dim": (64, 128, 256), "num_heads": (4, 8, 16)}, depth=(1, 1, 1))
stock("efficientformer_l1", side=224, wide={"embed_dims": STAGES}, depths=(1, 1, 1, 2))
stock("efficientformerv2_s0", img_size=SIDE, wide={"embed_dims": STAGES}, depths=(1, 1, 2, 2), num_vit=1, mlp_ratios=4)
stock("edgenext_xx_small", wide={"dims": STAGES, "heads": HEADS}, depths=(1, 2, 2, 2), d2_scales=(2, 2, 2, 4))
stock("fastvit_t8", wide={"embed_dims": STAGES}, layers=ONCE)
stock("fastvit_sa12", wide={"embed_dims": STAGES}, layers=ONCE)
stock("hiera_tiny_224", img_size=(224, 224), side=224, wide={"embed_dim": 32, "num_heads": 2}, stages=(1, 1, 2, 1))
stock("hieradet_small", side=SIDE, wide={"embed_dim": 32, "num_heads": 2}, stages=(1, 1, 2, 1), global_att_blocks=(3,))
stock("tiny_vit_5m_224", side=224, wide={"embed_dims": STAGES, "num_heads": HEADS}, depths=(1, 1, 1, 1))
stock("visformer_tiny", img_size=SIDE, wide={"init_channels": 16, "embed_dim": 128, "num_heads": 8}, depth=(1, 1, 1))
direct(
    "volo_d1_224",
    tm.volo.VOLO,
    img_size=SIDE,
    wide={"embed_dims": (32, 64, 64, 64), "num_heads": (2, 4, 4, 4), "stem_hidden_dim": 32},
    layers=ONCE,
)
stock(
    "sequencer2d_s",
    side=112,
    img_size=112,
    wide={"embed_dims": (32, 64, 64, 64), "hidden_sizes": (16, 32, 32, 32)},
    layers=ONCE,
)
stock("crossvit_9_240", side=240, wide={"embed_dim": (32, 64), "num_heads": (2, 4)}, depth=((1, 1, 0),))
stock(
    "tnt_s_patch16_224",
    img_size=SIDE,
    wide={"embed_dim": 64, "inner_dim": 32, "num_heads_outer": 4, "num_heads_inner": 2},
    depth=2,
)
direct(
    "nest_tiny",
    tm.nest.Nest,
    side=112,
    img_size=112,
    wide={"embed_dims": (64, 128, 256), "num_heads": (4, 8, 16)},
    depths=(1, 1, 2),
)
stock("nextvit_small", wide={"stem_chs": (32, 16, 32)}, depths=(1, 1, 5, 1))
stock("davit_tiny", wide=THIN, depths=ONCE)
direct("focalnet_tiny_srf", tm.focalnet.FocalNet, wide={"embed_dim": 32}, depths=ONCE)
direct("focalnet_tiny_lrf", tm.focalnet.FocalNet, wide={"embed_dim": 32}, depths=ONCE, focal_levels=[3, 3, 3, 3])
direct("gcvit_xxtiny", tm.gcvit.GlobalContextVit, side=224, wide={"embed_dim": 32, "num_heads": HEADS}, depths=ONCE)
stock("swiftformer_xs", wide={"embed_dims": STAGES}, layers=ONCE)
stock("shvit_s1", side=SIDE, wide={"embed_dim": (64, 128, 256), "partial_dim": (16, 32, 64)}, depth=(1, 1, 1))
stock("repvit_m0_9", wide={"embed_dim": STAGES}, depth=(1, 1, 1, 1))
stock("iformer_t", wide={"dims": STAGES}, depths=(1, 1, 4, 3), attn_groups=(0, 0, 1, 1))
stock(
    "efficientvit_b0",
    wide={"widths": (16, 32, 64, 64, 128), "head_widths": (128, 256)},
    depths=(1, 1, 1, 1, 1),
    head_dim=16,
)
stock(
    "efficientvit_l1",
    wide={"widths": (16, 32, 64, 64, 128), "head_widths": (128, 256)},
    depths=(1, 1, 1, 1, 1),
    head_dim=16,
)
stock("efficientvit_m0", side=224, wide={"embed_dim": (64, 128, 256)}, num_heads=(2, 2, 2), depth=(1, 1, 1))
stock("efficientvim_m1", wide={"embed_dim": (64, 128, 256)}, depths=(1, 1, 1))
stock(
    "lowformer_b0", wide={"width_list": (16, 32, 128, 128, 128), "head_widths": (128, 256)}, depth_list=(1, 1, 1, 1, 1)
)
stock(
    "cpubone_b0_bfrobust",
    wide={"width_list": (16, 32, 128, 128, 128), "head_widths": (128, 256)},
    depth_list=(1, 1, 1, 1, 1),
)
TIMM["mvitv2_tiny"] = Entry(
    lambda w: tm.mvitv2.MultiScaleVit(
        tm.mvitv2.MultiScaleVitCfg(depths=ONCE, embed_dim=at(STAGES, w), num_heads=at(HEADS, w)),
        img_size=(SIDE, SIDE),
        num_classes=CLASSES,
    ),
    images(),
)
stock("pit_ti_224", img_size=SIDE, wide={"heads": (2, 4, 8)}, base_dims=(16, 16, 16), depth=(1, 1, 1))
cells("mobilevit_xxs", 2.0)
stock("mobilevitv2_050", wide={"width_factor": 1.0})
TIMM["mobilenetv5_300m_enc"] = Entry(
    lambda w: tm.mobilenetv5._gen_mobilenet_v5("mobilenetv5_300m_enc", w / 256, encoder=True), images(256)
)


# torchvision: classification ----------------------------------------------------------------------------

tv = torchvision.models


def vision(
    name: str,
    make: Callable[..., nn.Module],
    example: Callable[[], Any] | None = None,
    *,
    wide: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> None:
    """Add a model of torchvision: its arguments that are widths, at 64, and those that stay."""

    def build(width: int) -> nn.Module:
        return make(**at(wide or {}, width), **{"num_classes": CLASSES, **fixed})

    TORCHVISION[name] = Entry(build, example or images(), base=wide is not None)


def named(name: str, example: Callable[[], Any] | None = None, **fixed: Any) -> None:
    """Add a model of torchvision whose widths are not open."""
    make = partial(tv.get_model, name.rpartition("/")[2], weights=None)
    vision(name, lambda **fields: make(**fields).eval() if "/" in name else make(**fields), example, **fixed)


named("alexnet", images(128))
named("vgg11_bn")
named("googlenet", aux_logits=False, init_weights=False)
named("inception_v3", images(128), aux_logits=False, init_weights=False)
named("squeezenet1_1")
named("resnet18")
named("resnet50")
named("resnext50_32x4d", width_per_group=4)
named("wide_resnet50_2")
vision("densenet121", tv.DenseNet, wide={"growth_rate": 32, "num_init_features": 64}, block_config=(2, 2, 2))
vision("mnasnet1_0", tv.MNASNet, wide={"alpha": 2.0})
vision("mobilenet_v2", tv.MobileNetV2, wide={"width_mult": 2.0})
vision(
    "shufflenet_v2_x1_0",
    tv.ShuffleNetV2,
    wide={"stages_out_channels": [32, 64, 128, 256, 256]},
    stages_repeats=[2, 2, 2],
)
vision(
    "swin_t",
    tv.SwinTransformer,
    wide={"embed_dim": 32, "num_heads": [2, 4, 8, 16]},
    patch_size=[4, 4],
    depths=[1, 1, 2, 1],
    window_size=[3, 3],
)
vision(
    "swin_v2_t",
    tv.SwinTransformer,
    wide={"embed_dim": 32, "num_heads": [2, 4, 8, 16]},
    patch_size=[4, 4],
    depths=[1, 1, 2, 1],
    window_size=[3, 3],
    block=tv.swin_transformer.SwinTransformerBlockV2,
    downsample_layer=tv.swin_transformer.PatchMergingV2,
)
vision(
    "vit_b_16",
    tv.VisionTransformer,
    wide={"hidden_dim": 64, "num_heads": 4, "mlp_dim": 256},
    image_size=SIDE,
    patch_size=16,
    num_layers=2,
)
vision(
    "maxvit_t",
    tv.MaxVit,
    images(112),
    wide={"stem_channels": 32, "block_channels": [64, 128]},
    input_size=(112, 112),
    partition_size=7,
    block_layers=[1, 1],
    head_dim=16,
    stochastic_depth_prob=0.0,
)


def convnext(width: int) -> nn.Module:
    """ConvNeXt from its rows of blocks."""
    sizes = [*at(STAGES, width), None]
    blocks = [tv.convnext.CNBlockConfig(a, b, 1) for a, b in pairwise(sizes)]
    return tv.ConvNeXt(blocks, num_classes=CLASSES)


def mobilenet(width: int) -> nn.Module:
    """MobileNetV3 from its rows of blocks."""
    kinds = [(32, 3, 64, 32, True, "RE", 2), (32, 3, 128, 64, False, "HS", 1), (64, 5, 256, 64, True, "HS", 2)]
    blocks = [tv.mobilenetv3.InvertedResidualConfig(*kind, 1, 2 * width / 64) for kind in kinds]
    return tv.MobileNetV3(blocks, last_channel=4 * width, num_classes=CLASSES)


def efficientnet(fused: bool, width: int) -> nn.Module:
    """EfficientNet, and its second version with fused blocks."""
    kind = tv.efficientnet.FusedMBConvConfig if fused else tv.efficientnet.MBConvConfig
    sizes = at((32, 64, 128), width)
    blocks = [
        kind(1, 3, 1, sizes[0], sizes[0], 1),
        kind(4, 3, 2, sizes[0], sizes[1], 2),
        tv.efficientnet.MBConvConfig(4, 5, 2, sizes[1], sizes[2], 1),
    ]
    return tv.EfficientNet(blocks, dropout=0.0, num_classes=CLASSES, last_channel=4 * width)


def regnet(squeeze: float | None, width: int) -> nn.Module:
    """RegNet; the size of a group of channels stays."""
    params = tv.regnet.BlockParams.from_init_params(
        depth=6, w_0=width, w_a=float(width), w_m=2.0, group_width=16, se_ratio=squeeze
    )
    return tv.RegNet(params, num_classes=CLASSES, stem_width=width // 2)


TORCHVISION["convnext_tiny"] = Entry(convnext, images())
TORCHVISION["regnet_x_400mf"] = Entry(partial(regnet, None), images())
TORCHVISION["regnet_y_400mf"] = Entry(partial(regnet, 0.25), images())
TORCHVISION["mobilenet_v3_large"] = Entry(mobilenet, images())
TORCHVISION["efficientnet_b0"] = Entry(partial(efficientnet, False), images())
TORCHVISION["efficientnet_v2_s"] = Entry(partial(efficientnet, True), images())

# torchvision: video, optical flow, segmentation, detection ----------------------------------------------


def clips(frames: int = 8, side: int = SIDE) -> Callable[[], Any]:
    """An example of two clips."""
    return lambda: torch.zeros(2, 3, frames, side, side)


def multiscale(width: int) -> nn.Module:
    """MViT of three blocks."""
    sizes, heads = at((32, 64, 128), width), at((2, 2, 4), width)
    blocks = [
        tv.video.mvit.MSBlockConfig(
            num_heads=h,
            input_channels=c,
            output_channels=d,
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 2, 2] if c != d else [1, 1, 1],
            stride_kv=[1, 2, 2],
        )
        for c, d, h in zip((sizes[0], sizes[0], sizes[1]), sizes, heads, strict=True)
    ]
    return tv.video.MViT(
        spatial_size=(SIDE, SIDE),
        temporal_size=8,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
    )


def raft(width: int) -> nn.Module:
    """RAFT; heights and widths are divided by eight."""
    flow = tv.optical_flow.raft
    return flow._raft(
        feature_encoder_layers=at((32, 32, 64, 64, 128), width),
        feature_encoder_block=flow.ResidualBlock,
        feature_encoder_norm_layer=nn.InstanceNorm2d,
        context_encoder_layers=at((32, 32, 64, 64, 128), width),
        context_encoder_block=flow.ResidualBlock,
        context_encoder_norm_layer=nn.BatchNorm2d,
        corr_block_num_levels=2,
        corr_block_radius=2,
        motion_encoder_corr_layers=at((64, 64), width),
        motion_encoder_flow_layers=at((64, 32), width),
        motion_encoder_out_channels=at(64, width),
        recurrent_block_hidden_state_size=at(64, width),
        recurrent_block_kernel_size=((1, 5), (5, 1)),
        recurrent_block_padding=((0, 2), (2, 0)),
        flow_head_hidden_size=at(64, width),
        use_mask_predictor=True,
    ).eval()


def backbone(width: int) -> nn.Module:
    """Three convolutions, the way that torchvision's detectors take any backbone."""
    layers: list[nn.Module] = []
    for before, after in ((3, width // 2), (width // 2, width), (width, width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    made = nn.Sequential(*layers)
    made.out_channels = width
    return made


def regions(kind: str, width: int) -> nn.Module:
    """A detector of two stages, with its heads at the width of its backbone."""
    parts = tv.detection
    heads: dict[str, Any] = {
        "rpn_anchor_generator": parts.anchor_utils.AnchorGenerator(((16, 32, 48),)),
        "box_head": parts.faster_rcnn.TwoMLPHead(width * 49, 2 * width),
        "box_predictor": parts.faster_rcnn.FastRCNNPredictor(2 * width, CLASSES),
        "min_size": SIDE,
        "max_size": SIDE,
        # nothing is dropped for its values, so that model and base keep equally many regions
        "rpn_nms_thresh": 1.0,
        "rpn_post_nms_top_n_test": 29,
        "box_nms_thresh": 1.0,
        "box_score_thresh": 0.0,
        "box_detections_per_img": 23,
    }
    if kind == "MaskRCNN":
        heads["mask_head"] = parts.mask_rcnn.MaskRCNNHeads(width, (width, width), 1)
        heads["mask_predictor"] = parts.mask_rcnn.MaskRCNNPredictor(width, width, CLASSES)
    if kind == "KeypointRCNN":
        heads["keypoint_head"] = parts.keypoint_rcnn.KeypointRCNNHeads(width, (width, width))
        heads["keypoint_predictor"] = parts.keypoint_rcnn.KeypointRCNNPredictor(width, 5)
    return getattr(parts, kind)(backbone(width), **heads).eval()


def single_stage(kind: str, width: int) -> nn.Module:
    """A detector of one stage."""
    anchors = tv.detection.anchor_utils.AnchorGenerator(((16, 32, 48),) if kind == "RetinaNet" else ((16,),), ((1.0,),))
    sizes = {"min_size": SIDE, "max_size": SIDE, "anchor_generator": anchors}
    return getattr(tv.detection, kind)(backbone(width), CLASSES, **sizes).eval()


def photographs() -> Any:
    """An example for a detector: a list of two images."""
    return ([torch.rand(3, SIDE, SIDE), torch.rand(3, SIDE, SIDE)],)


named("video/r3d_18", clips())
named("video/mc3_18", clips())
named("video/r2plus1d_18", clips())
named("video/s3d", clips(16, 224))
vision(
    "video/swin3d_t",
    tv.video.SwinTransformer3d,
    clips(),
    wide={"embed_dim": 32, "num_heads": [2, 4, 8]},
    patch_size=[2, 4, 4],
    depths=[1, 2, 1],
    window_size=[4, 3, 3],
)
TORCHVISION["video/mvit_v2_s"] = Entry(multiscale, clips())
TORCHVISION["optical_flow/raft_large"] = Entry(
    raft, lambda: {"image1": torch.zeros(2, 3, 128, 128), "image2": torch.zeros(2, 3, 128, 128), "num_flow_updates": 2}
)
named("segmentation/fcn_resnet50", weights_backbone=None)
named("segmentation/deeplabv3_resnet50", weights_backbone=None)
named("segmentation/lraspp_mobilenet_v3_large", weights_backbone=None)
for _kind in ("FasterRCNN", "MaskRCNN", "KeypointRCNN"):
    # keypoints are read off maps that are enlarged to the size of each region
    TORCHVISION[f"detection/{_kind.lower()}"] = Entry(partial(regions, _kind), photographs, _kind != "KeypointRCNN")
for _kind in ("RetinaNet", "FCOS"):
    TORCHVISION[f"detection/{_kind.lower()}"] = Entry(partial(single_stage, _kind), photographs)
named("detection/ssd300_vgg16", photographs, weights_backbone=None)
named("detection/ssdlite320_mobilenet_v3_large", photographs, weights_backbone=None)

# transformers types with a model of timm inside ---------------------------------------------------------

FRAMES = 5


def example_for(model: Any) -> Any:
    """Arguments for one call of a transformers model that has a model of timm inside, or ``None``."""
    make = _EXAMPLES.get(model.config.model_type)
    return make(model) if make else None


def _ids(length: int = 17, batch: int = 2) -> torch.Tensor:
    return torch.zeros(batch, length, dtype=torch.long)


def _video(config: Any) -> torch.Tensor:
    side = config.vision_config.model_args["img_size"][0]
    return torch.zeros(2, FRAMES, 3, side, side)


def _image_tokens(model: Any) -> Any:
    """One image of the side that the vision tower takes, and as many places as it has patches."""
    config, arguments = model.config, model.config.vision_config.model_args
    side = arguments.get("img_size", [128])[0]
    places = (side // arguments.get("patch_size", 14 if "img_size" in arguments else 64)) ** 2
    ids = _ids(places + 13, 1)
    ids[0, 3 : places + 3] = config.image_token_id
    image = torch.zeros(1, 3, side, side)
    return {"input_ids": ids, "pixel_values": image[None] if config.model_type == "perception_lm" else image}


def _speech(model: Any) -> torch.Tensor:
    return torch.zeros(2, 1, 19_200)


def _image_and_sound(model: Any) -> Any:
    """One image and one sound, with as many places as each takes."""
    config = model.config
    ids = _ids(13 + config.vision_soft_tokens_per_image + config.audio_soft_tokens_per_image, 1)
    ids[0, 3 : 3 + config.vision_soft_tokens_per_image] = config.image_token_id
    ids[0, -config.audio_soft_tokens_per_image :] = config.audio_token_id
    return {
        "input_ids": ids,
        "pixel_values": torch.zeros(1, 3, 128, 128),
        "input_features": torch.zeros(1, 101, config.audio_config.input_feat_size),
        "input_features_mask": torch.ones(1, 101, dtype=torch.bool),
    }


def _classes(model: Any) -> Any:
    """Two images, two and three class names, a task for each."""
    names, tasks = _ids(7, 5), _ids(13)
    return {
        "pixel_values": torch.zeros(2, 3, 224, 224),
        "classes_input_ids": names,
        "classes_attention_mask": torch.ones_like(names),
        "tasks_input_ids": tasks,
        "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.tensor([2, 3]),
    }


_EXAMPLES: dict[str, Callable[[Any], Any]] = {
    "edgetam": lambda _: {"pixel_values": torch.zeros(2, 3, 128, 128)},
    "edgetam_vision_model": lambda _: {"pixel_values": torch.zeros(2, 3, 128, 128)},
    "fast_vlm": _image_tokens,
    "gemma3n": _image_and_sound,
    "perception_lm": _image_tokens,
    "omdet-turbo": _classes,
    "grounding-dino": lambda _: {"pixel_values": torch.zeros(2, 3, 128, 128), "input_ids": _ids()},
    "mm-grounding-dino": lambda _: {"pixel_values": torch.zeros(2, 3, 128, 128), "input_ids": _ids()},
    "pe_video_encoder": lambda model: {"pixel_values_videos": _video(model.config)},
    "pe_video": lambda model: {"input_ids": _ids(), "pixel_values_videos": _video(model.config.video_config)},
    "pe_audio_video_encoder": lambda model: {
        "input_values": _speech(model),
        "pixel_values_videos": _video(model.config.video_config),
    },
    "pe_audio_video": lambda model: {
        "input_ids": _ids(),
        "input_values": _speech(model),
        "pixel_values_videos": _video(model.config.audio_video_config.video_config),
    },
}
