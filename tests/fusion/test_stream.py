"""A file of posts answered: a line for a line, whatever is wrong with a line, and whenever the process is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.inference.predict_file import predict_file, unfinished
from fusion.inference.predictor import Prediction
from pipeline.common.errors import InputError
from pipeline.common.locks import hold
from tests.helpers.commands import ROOT, invoke, refused
from tests.helpers.predictions import TOLERANCE, Toy, raw, values
from tests.helpers.processes import lines_in, wait_until

POSTS = 101


def write_posts(folder: Path, posts: int = POSTS) -> Path:
    lines = []
    for number in range(posts):
        Image.new("RGB", (5, 3), (number, number, number)).save(folder / f"{number}.png")
        lines.append(json.dumps({"id": number, "text": f"number {number}", "image": f"{number}.png"}) + "\n")
    (folder / "posts.jsonl").write_text("".join(lines))
    return folder / "posts.jsonl"


def answers_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(posts: int = POSTS):
    return [
        {"id": str(n), "label": "positive", "probabilities": {"positive": float(n)}, "flags": []} for n in range(posts)
    ]


def test_every_line_gets_its_answer_in_order(tmp_path):
    report = predict_file(Toy(tmp_path), write_posts(tmp_path), tmp_path / "out.jsonl", batch_size=7, quiet=True)
    assert answers_of(tmp_path / "out.jsonl") == expected()
    assert (report.posts, report.failed, report.answered_before) == (POSTS, 0, 0)
    assert not unfinished(tmp_path / "out.jsonl").exists()


def test_a_line_that_is_no_post_gets_the_reason_in_its_place(tmp_path):
    posts = write_posts(tmp_path, 3)
    good = posts.read_bytes().splitlines(keepends=True)
    bad = [
        b"not json\n",
        b'{"id": "a"}\n',
        b'{"id": "b", "text": "t", "image": "nowhere.png"}\n',
        b'{"id": "c", "text": null, "image": "0.png"}\n',
        b'{"id": "d", "text": 5, "image": "0.png"}\n',
        b'{"id": "e", "text": "\xff", "image": "0.png"}\n',
        b'{"id": "f", "text": "a\\u0000b", "image": "0.png"}\n',
        b'{"id": "g", "text": null, "problem": "text: no UTF-8", "image": "0.png"}\n',
        b"[1]\n",
    ]
    posts.write_bytes(b"\xef\xbb\xbf" + good[0] + b"\n" + b"".join(bad[:5]) + good[1] + b"".join(bad[5:]) + good[2])
    report = predict_file(Toy(tmp_path), posts, tmp_path / "out.jsonl", batch_size=2, quiet=True)
    records = answers_of(tmp_path / "out.jsonl")
    assert [record for record in records if "reason" not in record] == expected(3)
    assert [record["id"] for record in records] == ["0", None, "a", "b", "c", "d", "1", None, "f", "g", None, "2"]
    reasons = [record.get("reason", "") for record in records]
    parts = [
        "",
        "line 3: not JSON",
        "neither text nor image",
        "No such file",
        "text: none",
        "text: must be a string, not 5",
        "",
    ]
    parts += ["line 9: not UTF-8", "NUL", "text: no UTF-8", "line 12: not a JSON object", ""]
    for reason, part in zip(reasons, parts, strict=True):
        assert part in reason
        assert bool(part) == bool(reason)
    assert report.failed == len(bad)


def test_labels_of_other_classes_are_no_matter_of_a_prediction(tmp_path):
    posts = write_posts(tmp_path, 2)
    lines = [json.loads(line) for line in posts.read_text().splitlines()]
    lines[0] |= {"label": "sarcastic", "split": "holdout", "text_label": 7}
    posts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    predict_file(Toy(tmp_path), posts, tmp_path / "out.jsonl", quiet=True)
    assert answers_of(tmp_path / "out.jsonl") == expected(2)


@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff"])
def test_the_label_names_of_a_manifest_are_no_post(before, tmp_path):
    posts = write_posts(tmp_path, 2)
    names = json.dumps({"labels": {"label": ["sarcastic", "not"]}}) + "\n"
    posts.write_text(before + names + posts.read_text(), encoding="utf-8")
    report = predict_file(Toy(tmp_path), posts, tmp_path / "out.jsonl", quiet=True)
    assert answers_of(tmp_path / "out.jsonl") == expected(2)
    assert (report.posts, report.failed) == (2, 0)
    posts.write_text(posts.read_text(encoding="utf-8") + names, encoding="utf-8")  # not in the first line
    assert predict_file(Toy(tmp_path), posts, tmp_path / "again.jsonl", quiet=True).failed == 1


@pytest.mark.parametrize("torn", [b"", b'{"id": "2", "lab', b'{"id": "2", "label": "positive"}', b"\0\0\0\0\n", b"5\n"])
def test_whole_answers_are_kept_and_a_torn_one_is_made_again(torn, tmp_path):
    posts, out = write_posts(tmp_path, 11), tmp_path / "out.jsonl"
    header = begun(tmp_path, posts, out)
    kept = [json.dumps(record) + "\n" for record in expected(2)]
    kept[1] = kept[1].replace("1.0", "77.0")  # not made again: it keeps a value that nobody would compute
    unfinished(out).write_bytes(header + "".join(kept).encode() + torn)
    report = predict_file(Toy(tmp_path), posts, out, quiet=True)
    assert report.answered_before == 2
    records = answers_of(out)
    assert records[1]["probabilities"]["positive"] == 77.0
    assert [records[0], *records[2:]] == [expected(11)[0], *expected(11)[2:]]


@pytest.mark.parametrize("torn", [b"", b'{"model_sha'])
def test_a_kill_before_the_first_answer_leaves_nothing_in_the_way(torn, tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    unfinished(out).write_bytes(torn)
    predict_file(Toy(tmp_path), posts, out, quiet=True)
    assert answers_of(out) == expected(5)


def test_unfinished_answers_behind_a_link_are_not_written(tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    for target in (mine, tmp_path / "absent"):
        unfinished(out).unlink(missing_ok=True)
        unfinished(out).symlink_to(target)
        with pytest.raises(InputError, match="unfinished: a link; delete it"):
            predict_file(Toy(tmp_path), posts, out, quiet=True)
    assert mine.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_another_file_under_the_name_of_unfinished_answers_is_left_alone(tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    for text in ("my diary", "my diary\n", '{"my": "diary"'):
        unfinished(out).write_text(text)
        with pytest.raises(InputError, match="no unfinished predictions; delete it"):
            predict_file(Toy(tmp_path), posts, out, quiet=True)
        assert unfinished(out).read_text() == text


def begun(folder, posts, out):
    """The first line of unfinished answers, as a process that fails at once leaves it."""
    toy = Toy(folder)
    toy.predict_inputs = None
    with pytest.raises(TypeError):
        predict_file(toy, posts, out, quiet=True)
    return unfinished(out).read_bytes()


def test_answers_of_another_run_or_of_other_posts_are_never_mixed(tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    begun(tmp_path, posts, out)
    other = Toy(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match="unfinished predictions by another run; overwrite=True"):
        predict_file(other, posts, out, quiet=True)
    posts.write_text(posts.read_text().replace("number 3", "number three"))
    with pytest.raises(InputError, match="unfinished predictions of other posts; overwrite=True"):
        predict_file(Toy(tmp_path), posts, out, quiet=True)
    predict_file(Toy(tmp_path), posts, out, overwrite=True, quiet=True)
    assert answers_of(out) == expected(5)


SCRIPT = """
import sys, threading
from pathlib import Path
from tests.helpers.predictions import Toy
from fusion.inference.predict_file import predict_file
from pipeline.common.errors import InputError
folder = Path(sys.argv[1])
try:
    predict_file(Toy(folder, 0.15), folder / "posts.jsonl", folder / "out.jsonl", batch_size=5, workers=1, quiet=True)
except InputError as error:
    sys.exit(str(error))
"""


def start(folder):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_lines(path, count, process):
    wait_until(lambda: lines_in(path) >= count or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_kill_and_a_stop_the_same_command_ends_with_the_same_answers(number, tmp_path):
    posts, out = write_posts(tmp_path), tmp_path / "out.jsonl"
    process = start(tmp_path)
    wait_for_lines(unfinished(out), 12, process)
    process.kill()
    process.communicate()
    assert not out.exists()
    process = start(tmp_path)
    wait_for_lines(unfinished(out), 41, process)
    process.send_signal(number)
    message = process.communicate(timeout=60)[1].splitlines()[-1]
    done = lines_in(unfinished(out)) - 1  # the first line is of what they are
    counts = f"{done} of {POSTS} posts have predictions; the same command resumes from there"
    assert message == f"stopped by {number.name}; {counts}"
    report = predict_file(Toy(tmp_path), posts, out, quiet=True)
    assert 40 <= report.answered_before < POSTS
    assert answers_of(out) == expected()
    assert not unfinished(out).exists()


def test_what_is_there_is_replaced_only_when_the_posts_can_be_read_and_nobody_writes(tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    predict_file(Toy(tmp_path), posts, out, quiet=True)
    whole = out.read_bytes()
    with pytest.raises(InputError, match="no such file"):
        predict_file(Toy(tmp_path), tmp_path / "none.jsonl", out, overwrite=True, quiet=True)
    unfinished(out).write_text("of another process\n")
    with hold(tmp_path / "out.jsonl.unfinished.lock"), pytest.raises(InputError, match="is writing"):
        predict_file(Toy(tmp_path), posts, out, overwrite=True, quiet=True)
    assert unfinished(out).read_text() == "of another process\n"
    assert out.read_bytes() == whole
    assert predict_file(Toy(tmp_path), posts, out, overwrite=True, quiet=True).answered_before == 0
    assert out.read_bytes() == whole


def test_one_process_at_a_time(tmp_path):
    posts, out = write_posts(tmp_path, 5), tmp_path / "out.jsonl"
    with (
        hold(tmp_path / "out.jsonl.unfinished.lock"),
        pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing"),
    ):
        predict_file(Toy(tmp_path), posts, out, quiet=True)
    assert not unfinished(out).exists()


def test_the_command_answers_as_one_by_one_and_counts_failures(tiny_run, predictor, drawn_posts, tmp_path):
    lines = [json.dumps({"id": post.id, "text": post.text, "image": str(post.image)}) for post in drawn_posts[:9]]
    posts, out = tmp_path / "posts.jsonl", tmp_path / "answers.jsonl"
    posts.write_text("\n".join([*lines, '{"id": "bad", "text": "t", "image": "no.jpg"}']))
    message = refused("predict", tiny_run.folder, posts, "--out", out, "--workers", 1, "--batch-size", 4, "--quiet")
    assert "1 of 10 posts got no prediction, over --max-fail-rate 0.05" in message
    records = answers_of(out)
    assert records[-1]["id"] == "bad"
    streamed = [Prediction(record["id"], record["probabilities"]) for record in records[:-1]]
    assert [answer.id for answer in streamed] == [post.id for post in drawn_posts[:9]]
    alone = predictor.predict([raw(post) for post in drawn_posts[:9]])
    assert np.abs(values(streamed) - values(alone)).max() < TOLERANCE
    before = out.read_bytes()
    assert "already exists" in refused("predict", tiny_run.folder, posts, "--out", out)
    assert out.read_bytes() == before
    output = invoke(
        *("predict", tiny_run.folder, posts, "--out", out, "--overwrite", "--max-fail-rate", 0.1),
        *("--workers", 1, "--json", tmp_path / "report.json"),
    )
    assert "10 posts, 1 of them without a prediction, each with its reason" in output
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == 1


@pytest.mark.parametrize(("text", "part"), [(None, "no such file"), ("\n \n", "no posts in it")])
def test_a_file_without_posts_is_refused_and_nothing_is_written(text, part, tmp_path):
    posts = tmp_path / "posts.jsonl"
    if text is not None:
        posts.write_text(text)
    with pytest.raises(InputError, match=part):
        predict_file(Toy(tmp_path), posts, tmp_path / "out.jsonl", quiet=True)
    assert not list(tmp_path.glob("out*"))
