"""What our loading makes of each family of timm: a small member, and the grid of its patches or why it is refused."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Grid:
    """An accepted member: side x side patches of `width` channels. `options` make a large one small enough to test."""

    member: str
    side: int
    width: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A refused member, and what the one line says of it."""

    member: str
    why: str


SHALLOW = {"depth": 2}
SMALL = {"depth": 2, "img_size": 224, "pretrained_cfg_overlay": {"input_size": (3, 224, 224)}}
SEVERAL = "gives several outputs, not one grid of patches"

# By timm's module. Of most families the member with the fewest parameters.
FAMILIES: dict[str, Grid | Refused] = {
    "beit": Grid("beit_base_patch16_224", 14, 768, SHALLOW),
    "byoanet": Grid("halonet_h1", 8, 512),
    "byobnet": Grid("test_byobnet", 5, 256),
    "cait": Grid("cait_xxs24_224", 14, 192),
    "coat": Refused("coat_tiny", SEVERAL),
    "convit": Grid("convit_tiny", 14, 192),
    "convmixer": Grid("convmixer_768_32", 32, 768),
    "convnext": Grid("test_convnext", 5, 64),
    "cpubone": Grid("cpubone_nano", 7, 192),
    "crossvit": Refused("crossvit_tiny_240", SEVERAL),
    "csatv2": Grid("csatv2", 8, 386),
    "cspnet": Grid("cs3darknet_focus_s", 8, 512),
    "cspnext": Grid("cspnext_tiny", 7, 384),
    "davit": Grid("davit_tiny", 7, 768),
    "deepseek_vit": Grid("deepseek_vit_412m", 16, 1024, SMALL),
    "deit": Grid("deit_tiny_patch16_224", 14, 192),
    "densenet": Grid("densenet121", 7, 1024),
    "dla": Grid("dla46x_c", 7, 256),
    "dpn": Grid("dpn48b", 7, 832),
    "edgenext": Grid("edgenext_xx_small", 8, 168),
    "efficientformer": Grid("efficientformer_l1", 7, 448),
    "efficientformer_v2": Grid("efficientformerv2_s0", 7, 176),
    "efficientnet": Grid("test_efficientnet", 5, 256),
    "efficientvim": Refused("efficientvim_m1", SEVERAL),
    "efficientvit_mit": Grid("efficientvit_b1", 7, 256),
    "efficientvit_msra": Grid("efficientvit_m0", 4, 192),
    "eva": Grid("vit_tiny_patch16_dinov3_qkvb", 16, 192),
    "fasternet": Grid("fasternet_t0", 7, 320),
    "fastvit": Grid("fastvit_t8", 8, 768),
    "focalnet": Grid("focalnet_tiny_srf", 7, 768),
    "gcvit": Grid("gcvit_xxtiny", 7, 512),
    "gemma4_vit": Grid("gemma4_vit_167m", 14, 768, SMALL),
    "ghostnet": Grid("ghostnet_050", 7, 480),
    "hardcorenas": Grid("hardcorenas_b", 7, 960),
    "hgnet": Grid("hgnetv2_b0", 7, 1024),
    "hiera": Grid("hiera_tiny_224", 7, 768),
    "hieradet_sam2": Grid("hieradet_small", 8, 768),
    "hrnet": Grid("hrnet_w18_small", 7, 2048),
    "iformer": Grid("iformer_t", 7, 256),
    "inception_next": Grid("inception_next_atto", 7, 320),
    "inception_resnet_v2": Grid("inception_resnet_v2", 8, 1536),
    "inception_v3": Grid("inception_v3", 8, 2048),
    "inception_v4": Grid("inception_v4", 8, 1536),
    "lcnetv2": Grid("lcnetv2_small", 7, 768),
    "levit": Grid("levit_128s", 4, 384),
    "lowformer": Grid("lowformer_b0", 7, 256),
    "mambaout": Grid("test_mambaout", 5, 64),
    "maxxvit": Grid("test_coatnet", 5, 128),
    "metaformer": Grid("poolformerv2_s12", 7, 512),
    "mlp_mixer": Grid("gmlp_ti16_224", 14, 128),
    "mobilenetv3": Grid("mobilenetv3_small_050", 7, 288),
    "mobilenetv5": Grid("mobilenetv5_base", 16, 2048),
    "mobilevit": Grid("mobilevit_xxs", 8, 320),
    "mvitv2": Grid("mvitv2_tiny", 7, 768),
    "naflexvit": Grid("naflexvit_base_patch16_parfac_gap", 14, 768, SMALL),
    "nasnet": Grid("nasnetalarge", 11, 4032),
    "nest": Grid("nest_tiny", 14, 384),
    "nextvit": Grid("nextvit_small", 7, 1024),
    "nfnet": Grid("test_nfnet", 5, 192),
    "pit": Refused("pit_ti_224", "gives 1 rows for a square picture"),
    "pnasnet": Grid("pnasnet5large", 11, 4320),
    "pvt_v2": Grid("pvt_v2_b0", 7, 256),
    "qwen3_vit": Grid("qwen3_vit_88m", 14, 768, SMALL),
    "rdnet": Grid("rdnet_tiny", 7, 1040),
    "regnet": Grid("regnetx_002", 7, 368),
    "repghost": Grid("repghostnet_050", 7, 480),
    "repvit": Grid("repvit_m1", 7, 384),
    "res2net": Grid("res2next50", 7, 2048),
    "resnest": Grid("resnest14d", 7, 2048),
    "resnet": Grid("test_resnet", 5, 96),
    "resnetv2": Grid("resnetv2_18", 7, 512),
    "rexnet": Grid("rexnet_100", 7, 1280),
    "selecsls": Grid("selecsls42", 4, 1280),
    "senet": Grid("legacy_seresnet18", 7, 512),
    "sequencer": Grid("sequencer2d_s", 16, 384),
    "shvit": Grid("shvit_s1", 4, 320),
    "sknet": Grid("skresnet18", 7, 512),
    "starnet": Grid("starnet_s050", 7, 128),
    "swiftformer": Grid("swiftformer_xs", 7, 220),
    "swin_transformer": Grid("swin_tiny_patch4_window7_224", 7, 768),
    "swin_transformer_v2": Grid("swinv2_tiny_window8_256", 8, 768),
    "swin_transformer_v2_cr": Grid("swinv2_cr_tiny_224", 7, 768),
    "tiny_vit": Grid("tiny_vit_5m_224", 7, 320),
    "tnt": Grid("tnt_s_legacy_patch16_224", 14, 384),
    "tresnet": Grid("tresnet_m", 7, 2048),
    "twins": Grid("twins_svt_small", 7, 512),
    "vgg": Grid("vgg11", 7, 512),
    "visformer": Grid("visformer_tiny", 7, 384),
    "vision_transformer": Grid("test_vit", 10, 64),
    "vision_transformer_hybrid": Grid("vit_tiny_r_s16_p8_224", 7, 192),
    "vision_transformer_relpos": Grid("test_vit_relpos", 10, 96),
    "vision_transformer_sam": Grid("samvit_base_patch16_224", 14, 768, SHALLOW),
    "vitamin": Grid("vitamin_small_224", 14, 384),
    "volo": Refused("volo_d1_224", "gives 197 rows for a square picture"),
    "vovnet": Grid("ese_vovnet19b_slim_dw", 7, 512),
    "xception": Grid("legacy_xception", 10, 2048),
    "xception_aligned": Grid("xception41p", 10, 2048),
    "xcit": Grid("xcit_nano_12_p16_224", 14, 128),
}

# Other members whose output is of another kind than that of their family's smallest one.
VARIANTS: dict[str, Grid | Refused] = {
    "a class token, of mvitv2": Grid("mvitv2_small_cls", 7, 768),
    "a class token, of vision_transformer_relpos": Grid("vit_relpos_medium_patch16_cls_224", 14, 512, SHALLOW),
    "a class token that timm does not count": Refused("coat_lite_tiny", "gives 50 rows for a square picture"),
    "two class tokens": Grid("deit_tiny_distilled_patch16_224", 14, 192),
    "two class tokens and no patch": Refused("pit_ti_distilled_224", "gives 2 rows for a square picture"),
    "a register and no class token": Grid("vit_wee_patch16_reg1_gap_256", 16, 256, SHALLOW),
    "patches merged by four": Grid("qwen3_vit_88m_merge", 7, 1024, SMALL),
    "patches merged by nine": Grid("deepseek_vit_412m_align", 6, 5120, SMALL),
    "pictures that are not square": Refused("vit_base_patch16_sapiens2", "takes pictures of 1024x768"),
}

# Their features come from layers behind the last map that timm gives out.
BEHIND_THE_MAP = {
    "deepseek_vit_412m_align",
    "fastvit_t8",
    "ghostnet_050",
    "hrnet_w18_small",
    "mobilenetv5_base",
    "qwen3_vit_88m_merge",
    "repghostnet_050",
    "rexnet_100",
    "test_efficientnet",
    "test_nfnet",
    "xception41p",
}
