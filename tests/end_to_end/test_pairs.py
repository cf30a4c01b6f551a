"""Every named pair at its full size, with random weights from local files: extracted, trained, predicted and explained
by the commands. Patches, vectors, tokens and masks are those of timm's and transformers' own forward.
"""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from fusion.config import load_config
from fusion.evaluation.predict import predict_rows
from fusion.run import Run
from pipeline.cache.reader import Cache
from pipeline.encoders.load import EncoderChoice, load_image_encoder
from pipeline.encoders.pairs import PAIRS
from pipeline.encoders.text_form import TextForm
from tests.helpers.commands import ROOT, invoke
from tests.helpers.extraction import write_posts
from tests.helpers.pair_encoders import write_pair
from tests.helpers.training import CPU

QUICK = "clip-b32"
OTHERS = ("paper", "paper-tweet", "clip-l14", "siglip2-b16", "dinov2-b", "multilingual")
POSTS = 16
SMALL = ("width=16", "heads=2", "layers=1", "epochs=1", "batch_size=4")


def test_these_and_the_packaged_ones_are_all():
    assert {QUICK, *OTHERS, "packaged", "packaged-lite2"} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_the_document_has_the_pair(name):
    pair, page = PAIRS[name], (ROOT / "docs" / "encoders.md").read_text()
    mask = f"`{pair.mask_token}`" if pair.mask_token else "none"
    sizes = f"{pair.side} x {pair.side}, {pair.channels}, {pair.image_pooled_width}"
    widths, tokens = f"{pair.text_width}, {pair.text_pooled_width}", pair.max_tokens or 128
    image = f"`{pair.image}` | {pair.image_licence} | {sizes}"
    text = f"`{pair.text}` | {pair.text_licence} | {widths} | {tokens} | {mask}"
    size = f"{pair.bytes_a_post / 1024:.0f} KiB, {pair.bytes_a_token} B"
    assert f"| `{name}` | {image} | {text} | {size} |" in page.splitlines()


def test_a_pair_at_full_size(tmp_path):
    require_pair(QUICK, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_pairs_at_full_size(name, tmp_path):
    require_pair(name, tmp_path)


def require_pair(name, folder):
    pair, files = PAIRS[name], write_pair(folder / "encoders", name)
    write_manifest(folder)
    out = ("--out", folder / "cache", "--store", "float32", "--device", "cpu")
    said = invoke("extract", folder / "manifest.jsonl", "--encoders", name, *files.options, *out)
    assert f"licence of {pair.image}: {pair.image_licence}" in said
    assert ("no mask token" in said) == (not pair.mask_token)
    cache = Cache(folder / "cache")
    assert cache.ok.all()
    assert cache.patches_shape == (pair.side**2, pair.channels)
    assert (cache.image_pooled_width, cache.text_width) == (pair.image_pooled_width, pair.text_width)
    assert cache.text_pooled_width == pair.text_pooled_width
    assert cache.fingerprint["text"]["max_tokens"] == (pair.max_tokens or 128)
    assert bytes_of_features(cache) == POSTS * 2 * pair.bytes_a_post - POSTS * 4 * pair.text_pooled_width
    require_images(cache, pair, name, files)
    require_texts(cache, pair, files)
    require_commands(cache, pair, files, folder)


def write_manifest(folder):
    lines = []
    for number, post in enumerate(write_posts(folder / "posts", POSTS)):
        label, split = ("glad", "sad")[number % 2], "train" if number < 8 else "val" if number < 12 else "test"
        text = f"@ann {post.text} http://t.co/a" if number % 3 else ""
        line = {"id": post.id, "text": text, "image": str(post.image), "label": label, "split": split}
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def bytes_of_features(cache):
    """In float32, of patches, the images' vectors and the texts'."""
    rows = np.arange(len(cache))
    patches, pooled = cache.gather_images(rows)
    return patches.nbytes + pooled.nbytes + cache.gather_text_pooled(rows).nbytes


def require_images(cache, pair, name, files):
    """Of three posts, as timm computes them at the pair's size."""
    rows = np.array([0, 5, 15])
    size = pair.image_size or timm.models.get_pretrained_cfg(pair.image).input_size[-1]
    model = timm.create_model(pair.image, pretrained=False, **({"img_size": size} if pair.image_size else {})).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn if pair.image_size else lambda state, model: state
    model.load_state_dict(filtered(load_file(files.weights), model))
    encoder = load_image_encoder(EncoderChoice(preset=name, image_weights=files.weights, device="cpu"))
    assert encoder.pixels_shape == (3, size, size)
    pixels = np.stack([encoder.pixels(Image.open(files.weights.parents[1] / f"posts/{row}.jpg")) for row in rows])
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        x = (torch.from_numpy(pixels).float() / 255 - mean) / std
        features = model.forward_features(x)
        rows_of = {3: lambda: features[:, model.num_prefix_tokens :], 4: lambda: features.flatten(2).transpose(1, 2)}
        patches = rows_of[features.ndim]()
        vectors = {
            "mean": lambda: patches.mean(dim=1),
            "cls": lambda: features[:, 0],
            "model": lambda: model(x),
        }[pair.image_pooled]()
    stored = cache.gather_images(rows)
    for found, expected in zip(stored, (patches, vectors), strict=True):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * scale)
        assert np.abs(found[0] - found[1]).max() > 1e-3 * scale  # the random weights tell pictures apart


def require_texts(cache, pair, files):
    """Of all posts, as transformers computes them, each text by itself; SigLIP's padded to its 64 positions."""
    tokenizer, tower = AutoTokenizer.from_pretrained(files.text), None
    if pair.text_pooled == "model":
        tower = "CLIPTextModelWithProjection" if "clip-vit" in pair.text else "SiglipTextModel"
    kind = getattr(transformers, tower) if tower else AutoModel
    model, form = kind.from_pretrained(files.text).eval(), TextForm(pair.text_normalize, pair.text_prefix)
    assert (tokenizer.mask_token or "") == pair.mask_token or tower == "SiglipTextModel"
    longest = {"truncation": True, "max_length": pair.max_tokens or 128}
    padding = {"padding": "max_length"} if tower == "SiglipTextModel" else {}
    for row in range(POSTS):
        text = form.prefix + form.normalized(cache.texts[row])
        if pair.text_normalize == "tweet":
            assert "@ann" not in text
            assert "t.co" not in text
        ids = tokenizer(text, **longest)["input_ids"]
        with torch.inference_mode():
            output = model(**tokenizer(text, return_tensors="pt", **longest, **padding))
        tokens = output.last_hidden_state[0, : len(ids)]
        vector = tokens.mean(dim=0)
        if tower:
            vector = (output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output)[0]
        assert cache.input_ids(row).tolist() == ids
        for found, expected in ((cache.tokens(row), tokens), (cache.gather_text_pooled(np.array([row]))[0], vector)):
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * float(expected.abs().max()))


def require_commands(cache, pair, files, folder):
    """The paper's model where the pair's widths allow it, with masked words where there is a mask token."""
    model = "fusion" if pair.channels == pair.image_pooled_width else "product"
    settings = [*SMALL, f"model={model}", *([] if pair.mask_token or model != "fusion" else ["mlm=false"])]
    chosen = [part for one in settings for part in ("--set", one)]
    masks = load_config(settings=settings).mlm
    text = ("--text-encoder", files.text) if masks else ()
    invoke("train", cache.folder, *chosen, *text, "--out", folder / "run", "--device", "cpu")
    (line,) = Run(folder / "run").metrics()
    assert (line["hidden"] > 0) == masks
    image = ("--image", folder / "posts" / "5.jpg", "--text", cache.texts[5])
    answer = ("--json", folder / "answer.json", "--device", "cpu")
    invoke("predict", folder / "run", *image, *files.options, *answer)
    known = predict_rows(Run(folder / "run").load_model(CPU), cache, np.array([5]), CPU)[0]
    found = json.loads((folder / "answer.json").read_text())["probabilities"]
    np.testing.assert_allclose([found["glad"], found["sad"]], known, rtol=0, atol=1e-5)
    look = ("--out", folder / "look", "--device", "cpu")
    said = invoke("explain", folder / "run", "--ids", "4,5", *files.options, *look)
    explained = json.loads((folder / "look" / "explanations.json").read_text())["posts"]
    heats = [run["heat"] for post in explained for run in post["runs"]]
    assert all((heat is None) == (model == "product") for heat in heats)
    assert ("places are not shown" in said) == ("words are not shown" in said) == (model == "product")
    if model == "fusion":
        assert np.shape(heats[0]) == (pair.side, pair.side)
