"""docs/files.md against files that the commands have just written: every file, every field, every type, both ways."""

import re
import shutil
from pathlib import Path

import click
import pytest
import timm
import torch

import cli
from fusion import Config, train
from fusion.inference import export as exporting
from fusion.inference import predict_file
from fusion.training.display import Display
from pipeline.cache import hdf5
from pipeline.common.errors import Stopped
from pipeline.common.files import complete_or_absent, write_text
from pipeline.common.locks import only_writer
from pipeline.demo import dataset
from tests.helpers.commands import invoke
from tests.helpers.documented import PAGE, documents_of, read_page
from tests.helpers.text_towers import write_tower
from tests.helpers.toy import relabelled, write_cache
from tests.helpers.training import Pooled

CPU = ("--device", "cpu")
SMALL = ("width=8", "heads=2", "layers=1", "epochs=2", "batch_size=16", "mlm=false", "lr=1e-2")
MASKING = ("width=8", "heads=2", "layers=1", "epochs=1", "validate_mlm=true", "label_rule=true")
SPACE = "heads: [1, 2, 4, 8, 3]\nlr: {low: 1e-3, high: 1e-1, log: true}\n"  # 3 does not divide 8
FINGERPRINT = {
    "image": {
        **{"name": "toy", "weights_sha256": "0" * 64, "views": ["center"], "compute_dtype": "float32"},
        "transform": {
            **{"size": 7, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
            **{"mean": [0.5], "std": [0.5], "decoder": "toy"},
        },
    },
    "text": {
        **{"name": "toy", "weights_sha256": "0" * 64, "tokenizer_sha256": "0" * 64, "max_tokens": 17, "layers": [-1]},
        "compute_dtype": "float32",
    },
    "stored_dtype": "float32",
}


class Made:
    """What the commands have written: folders whose files are named as on the page, and results of --json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[tuple[str, Path]] = []

    def __call__(self, command, *arguments, variant="", code=0):
        file = self.folder / "results" / f"{len(self.results)}.json"
        self.results.append((f"{command}{variant} --json", file))
        invoke(command, *arguments, "--json", file, code=code)

    @property
    def files(self) -> list[tuple[str, Path]]:
        """The name of each file, as the page has it, beside the file."""
        scenarios = [folder for folder in self.folder.iterdir() if folder.name != "results"]
        found = [(file, folder) for folder in scenarios for file in folder.rglob("*") if file.is_file()]
        return [(file.relative_to(folder).as_posix(), file) for file, folder in found] + self.results


def settings(*given):
    return [part for text in given for part in ("--set", text)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = Made(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        drawn(made, made.folder / "drawn", patch)
        tower(made, made.folder / "drawn" / "MANIFEST.jsonl", made.folder / "tower")
        prepared(made, made.folder / "prepared")
        toy(made, made.folder / "toy", patch)
        experiments(made, made.folder / "toy" / "CACHE", made.folder / "experiments")
        moved(made, made.folder / "toy", made.folder / "moved")
        passing(made.folder / "passing")
    return made


def drawn(made, out, patch):
    """All that needs encoders: posts with good and bad texts and pictures, their cache, a run, and its predictions."""
    dataset.replace(out / "MVSA", posts=31, seed=0)
    data = out / "MVSA" / "data"
    (data / "2.txt").write_bytes(b"\xff\xff")
    (data / "3.jpg").write_bytes(b"no picture")
    (data / "4.txt").write_text("word " * 200)
    manifest, cache, run = out / "MANIFEST.jsonl", out / "CACHE", out / "RUN"
    made("prepare", out / "MVSA", "--out", manifest, "--ratios", "4:3:3")
    encoders = ("--encoders", "packaged")
    made("extract", manifest, "--out", cache, *encoders, "--workers", 1, "--max-fail-rate", 1, "--quiet", *CPU)
    made("inspect", cache, "--verify")
    made("doctor", *encoders, "--out", out)
    with patch.context() as while_parted:
        while_parted.setattr(hdf5, "SHARD_POSTS", 13)
        halves = [made.folder / f"part-{part}" / "CACHE" for part in (1, 2)]
        for part, half in enumerate(halves, start=1):
            options = ("--image-encoder", "none", "--part", f"{part}/2", "--max-fail-rate", 1, "--quiet", *CPU)
            made("extract", manifest, "--out", half, *encoders, *options)
        made("merge", *halves, "--out", made.folder / "merged" / "CACHE")
    made("train", cache, "--out", run, *settings(*MASKING), "--tensorboard", "--quiet", *CPU)
    made("evaluate", run, "--quiet", *CPU)
    made("explain", run, "--worst", 1, "--out", out / "LOOK", *CPU)
    made("explain", run, "--faithfulness", "--posts", 2, "--quiet", *CPU, variant=" --faithfulness")
    made("report", run, "--worst", 1, "--out", out / "REPORT.html", *CPU)
    made("report", run, "--worst", 0, "--out", out / "REPORT.html", "--overwrite", *CPU)
    # The graph takes ten seconds; tests/fusion/test_export.py makes it.
    patch.setattr(exporting, "_write_onnx", lambda model, run, path: float(path.write_bytes(b"")))
    made("export", run, "--onnx", "--out", out / "EXPORT")
    patch.setattr(predict_file, "complete_or_absent", copying_unfinished(made.folder / "unfinished"))
    answers = ("--out", out / "ANSWERS.jsonl", "--workers", 1, "--max-fail-rate", 1, "--quiet")
    made("predict", run, manifest, *answers, *CPU, variant=" POSTS")
    textual = made.folder / "textual" / "RUN"
    text_alone = ("modalities=text", "mask_choice=random", "class_weights={positive: 2}", *SMALL)
    invoke("train", cache, "--out", textual, *settings(*text_alone), "--quiet", *CPU)
    made("predict", textual, "--text", "What a night!", *CPU, variant=" --text")


def tower(made, manifest, out):
    """The texts by a tower of CLIP, with all that can be said of how a text is read; the class tokens of images."""
    encoder, image = write_tower(made.folder.parent / "clip", "CLIP"), made.folder.parent / "image.pth"
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), image)
    how = ("--text-pooled", "model", "--text-normalize", "tweet", "--text-prefix", "a: ", "--max-fail-rate", 1)
    images = ("--image-encoder", "test_vit", "--image-weights", image, "--image-pooled", "cls")
    options = (*images, "--text-encoder", encoder, *how, "--quiet", *CPU)
    made("extract", manifest, "--out", out / "CACHE", *options)
    made("inspect", out / "CACHE")


def copying_unfinished(folder):
    """Copies what lies there before the predictions get their final name."""

    def before_the_end(path):
        folder.mkdir()
        for file in path.parent.glob(f"{path.name}.*"):
            shutil.copy(file, folder)
        return complete_or_absent(path)

    return before_the_end


def prepared(made, out):
    """Manifests of texts alone, with a row that is none; and of a split file whose ids match some posts."""
    rows = ["id,text,label,mood,note", "1,a night,positive,joy,x", "2,a day,,,", "3,an hour,neutral,joy,", "4,a year,,"]
    rows += [f"{number},more,positive,," for number in (5, 6)] + ["7,most,Positive,,"]
    write_text(out.parent / "texts.csv", "\n".join(rows) + "\n")
    write_text(out.parent / "splits.csv", "id,split\n1,train\n2,val\n7,test\n")
    texts = out.parent / "texts.csv"
    read = ("--targets", "mood", "--max-fail-rate", 0.2)
    made("prepare", texts, "--out", out / "MANIFEST.jsonl", *read)
    options = ("--splits", out.parent / "splits.csv", "--allow-unmatched", "--overwrite", *read)
    made("prepare", texts, "--out", out / "MANIFEST.jsonl", *options)
    for file in (texts, out.parent / "splits.csv"):
        file.unlink()


def toy(made, out, patch):
    """A run of random features, finished and evaluated, one of two classes, and one stopped after its first epoch."""
    cache, run = out / "CACHE", out / "RUN"
    posts = write_cache(cache, posts=75, strength=2.0, fingerprint=FINGERPRINT)
    made("probe", cache)
    made("folds", cache, "--out", out / "FOLDS", "--k", 3)
    made("export-features", cache, "--out", out / "FEATURES")
    made("export-features", cache, "--out", out / "FEATURES", "--format", "npy", "--split", "val")
    made("train", cache, "--out", run, *settings(*SMALL), *CPU)
    made("evaluate", run, *CPU)
    some = out.parent / "some.csv"
    write_text(some, "id,split\n" + "".join(f"{posts.ids[row]},test\n" for row in posts.rows("test")[:9]))
    made("evaluate", run, "--splits", some, *CPU)
    some.unlink()

    def stopped(*_):
        raise Stopped("stopped")

    with patch.context() as while_training:
        while_training.setattr(Display, "epoch", stopped)
        invoke("train", cache, "--out", out.parent / "stopped" / "RUN", *settings(*SMALL), *CPU, code=1)
    two = out.parent / "two"
    drawn = write_cache(two / "CACHE", posts=60, strength=2.0, fingerprint=FINGERPRINT, modality_labels=False)
    relabelled(drawn, [{"label": "no" if code else "yes"} for code in drawn.labels], {"label": ("no", "yes")})
    made("train", two / "CACHE", "--out", two / "RUN", *settings(*SMALL), *CPU)
    made("evaluate", two / "RUN", *CPU)
    trained, combined = (out.parent / name / "RUN" for name in ("members", "combined"))
    made("train", cache, "--members", 2, "--out", trained, *settings(*SMALL), *CPU)
    made("ensemble", run, trained, "--out", combined, *CPU)
    made("evaluate", combined, *CPU)
    made("export", combined, "--out", out.parent / "combined" / "EXPORT")
    train(posts, Pooled(), out.parent / "own" / "RUN", "cpu", config=Config(epochs=1), quiet=True)


def experiments(made, cache, out):
    """A sweep with failed trials, and a table; and one whose trainings diverge."""
    space = out.parent / "space.yaml"
    write_text(space, SPACE)
    options = settings(*SMALL)
    made("sweep", cache, "--space", space, "--trials", 16, "--out", out / "SWEEP", *options, *CPU)
    space.unlink()
    table = ("reproduce", cache, "--table", 2, "--seeds", 1, *options, *CPU)
    made(*table, "--out", out / "TABLES")
    made("table", out / "TABLES" / "table-2.json", "--out", out / "TABLES")
    rows = "probe,concat+width=7+epochs=1"
    studied = ("--models", rows, "--ensemble", rows.split(",")[1], "--seeds", 1)
    made("study", cache, *studied, *CPU, "--out", out.parent / "studied" / "TABLES")
    made(*table, *settings("lr=1e30", "clip_norm=null"), "--out", out.parent / "diverged" / "TABLES")


def moved(made, toy, out):
    """The run's cache is gone, and another one has some of its posts: the probe cannot be trained."""
    write_cache(out / "CACHE", posts=60, strength=2.0, fingerprint=FINGERPRINT)
    (toy / "CACHE").rename(out.parent / "away")
    made("evaluate", toy / "RUN", "--split", "val", "--cache", out / "CACHE", *CPU)
    (out.parent / "away").rename(toy / "CACHE")


def passing(out):
    """What is there only while something is written."""
    folder = out / "FOLDER"
    kept = {}
    with only_writer(folder), complete_or_absent(folder / "NAME") as temporary:
        kept = {path: path.read_bytes() for path in (temporary, folder / "writer.lock")}
    (folder / "NAME").unlink()
    for path, data in kept.items():
        path.write_bytes(data)


@pytest.fixture
def page():
    return read_page(PAGE.read_text(encoding="utf-8"))


def problems(page, made):
    """What the page lacks, and what it has beyond the files."""
    found, names = [], set()
    for name, file in made.files:
        if (section := page.name_of(name)) is None:
            found.append(f"{name}: has no section")
            continue
        names.add(section)
        if section in page.sections:
            documents = documents_of(file)
            found += page.problems(section, documents, name)
            if file.suffix == ".csv":
                columns = page.columns(section, list(documents[0]))
                found += [f"{name}: has its columns in another order"] if columns != list(documents[0]) else []
    found += [f"{name}: is documented, and not made" for name in {*page.sections, *page.others} - names]
    return sorted({*found, *(f"{one}: is documented, and in no file" for one in page.unseen())})


def test_files_and_fields_are_those_of_the_page(page, made):
    assert "\n".join(problems(page, made)) == ""


def test_each_command_with_a_result_has_a_section(page):
    commands = {name: cli.cli.get_command(click.Context(cli.cli), name) for name in cli.cli.list_commands(None)}
    with_result = {name for name, command in commands.items() if "json_file" in {one.name for one in command.params}}
    assert with_result == {name.split()[0] for name in page.sections if name.endswith("--json")}


@pytest.mark.parametrize(
    ("line", "other", "problem"),
    [
        ("| `finished` | boolean |", "| `done` | boolean |", "RUN/run.json.finished: is not documented"),
        ("| `finished` | boolean |", "| `done` | boolean |", "RUN/run.json.done: is documented, and missing"),
        ("| `exported?` |", "| `exported` |", "RUN/run.json.exported: is documented, and missing"),
        ("| `reason` | string | why it failed |", "| `reason` | integer | |", "CACHE/failures.csv.reason: "),
        ("| `heads` | integer |", "| `heads` | string |", "RUN/config.yaml.heads: 2 is not string"),
        ("| `level` | number |", "| `level` | null |", "evaluate --json.interval.level: 0.95 is not null"),
        ("| `val_loss` | number |", "| `val_loss` | [number] |", "RUN/metrics.jsonl.val_loss: "),
        ("| `seed` | integer | |", "| `seed` | integer | |\n| `luck?` | number | |", "configuration: luck: "),
        ("| `id` | string | of the post |", "", "CACHE/failures.csv.id: is not documented"),
        ("### `folds --json`", "### `fold --json`", "folds --json: has no section"),
        ("### `folds --json`", "### `fold --json`", "fold --json: is documented, and not made"),
        ("| `REPORT.html` |", "| `REPORT.pdf` |", "REPORT.html: has no section"),
        ("| `REPORT.html` |", "| `REPORT.pdf` |", "REPORT.pdf: is documented, and not made"),
    ],
)
def test_what_the_page_has_wrong_is_found(made, line, other, problem):
    text = PAGE.read_text(encoding="utf-8")
    assert line in text
    assert any(one.startswith(problem) for one in problems(read_page(text.replace(line, other, 1)), made))


def test_lines_are_short_and_links_lead_somewhere():
    text = PAGE.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 100] == []
    headings = {line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
    anchors = headings | set(re.findall('<a id="([^"]+)">', text))
    for file, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
        assert (PAGE.parent / file).exists()
        assert file or anchor in anchors
