"""The options of the commands that load encoders: the fields of pipeline.encoders.load.EncoderChoice."""

import click

from pipeline.common.options import PATH, all_of
from pipeline.encoders.pairs import IMAGE_POOLED, PAIRS
from pipeline.encoders.runtimes import AUTO, RUNTIMES
from pipeline.encoders.text_form import NORMALIZATIONS
from pipeline.encoders.text_vector import TEXT_POOLINGS

runtime_option = click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default=AUTO,
    help="What computes the encoders. auto: on a CPU, ONNX Runtime where it gives PyTorch's features and pays.",
)
encoder_options = all_of(
    click.option(
        "--encoders",
        "preset",
        type=click.Choice(list(PAIRS)),
        default="paper",
        help="Named pair of encoders; the options below go before its values.",
    ),
    click.option("--image-encoder", "image", help="Name of a timm model with a patch grid, or `none` for texts alone."),
    click.option("--image-weights", type=PATH, help="Image-encoder weights from a local .safetensors or .pth file."),
    click.option(
        "--image-size", type=click.IntRange(1), help="Side of the pictures in pixels, in place of the model's own."
    ),
    click.option(
        "--image-pooled",
        type=click.Choice(IMAGE_POOLED),
        help="An image's one vector: mean of its patches, class token, or what the model's own head gives.",
    ),
    click.option(
        "--views",
        type=click.IntRange(1, 6),
        default=1,
        help="Number of views of each image: centre crop, mirrored, corners.",
    ),
    click.option("--text-encoder", "text", help="Hub name or local folder of a BERT-family, CLIP or SigLIP model."),
    click.option(
        "--text-layers",
        type=click.IntRange(1),
        default=1,
        help="Use the mean of the text encoder's last K layers as tokens.",
    ),
    click.option(
        "--text-pooled",
        type=click.Choice(TEXT_POOLINGS),
        help="A text's one vector: mean of its tokens, first or last token, or the model's own pooling and projection.",
    ),
    click.option(
        "--text-normalize",
        type=click.Choice(NORMALIZATIONS),
        help="tweet: mentions become @user and links http, as models of tweets expect.",
    ),
    click.option("--text-prefix", help="Put before every text, like 'query: ' for E5."),
    click.option(
        "--max-tokens", type=int, help="Longer texts are truncated; by default 128, or as many as the encoder takes."
    ),
)
