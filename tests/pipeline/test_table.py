"""Tables of posts: the columns and their guesses, labels, splits and images, and what a bad row costs."""

import json
from pathlib import Path

import pytest

from pipeline.common.errors import InputError
from pipeline.posts.formats import ReadOptions
from pipeline.posts.manifest import Post, read_manifest, write_manifest
from pipeline.posts.prepare import prepare
from pipeline.posts.splits import split_named
from pipeline.posts.table import read
from tests.helpers.commands import invoke, refused


def file_of(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def posts_of(path: Path, **options) -> list[Post]:
    return read(path, ReadOptions(**options)).posts


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("id,text,image,label,split", {"id": "id", "text": "text", "image": "image", "label": "label"}),
        ("Tweet ID,Tweet-Text,IMG,Class,Subset", {"id": "Tweet ID", "text": "Tweet-Text", "image": "IMG"}),
        ("guid,Sentence,Image_Path,sentiment,set", {"id": "guid", "text": "Sentence", "label": "sentiment"}),
        ("image_id,caption,filename,target,fold", {"id": "image_id", "image": "filename", "split": "fold"}),
        ("tweet_id,id,title,text,path,image", {"id": "id", "text": "text", "image": "image"}),
        ("post_id,content,photo,tag,SPLIT", {"image": "photo", "label": "tag", "split": "SPLIT"}),
        ("title,file,category", {"id": "the row's number", "text": "title", "image": "file", "label": "category"}),
    ],
)
def test_columns_are_guessed_and_the_guess_is_reported(header, columns, tmp_path):
    cells = ",".join("train" for _ in header.split(","))
    reported = read(file_of(tmp_path, f"{header}\n{cells}\n")).facts["columns"]
    for field, column in columns.items():
        assert reported[field] == (column if column == "the row's number" else f"{column} (guessed)")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,title,caption", "'title' or 'caption' could be the text; say which with --columns text=title+caption"),
        ("tweet_id,image_id,text", "'tweet_id' or 'image_id' could be the id; say which with --columns id=tweet_id"),
        ("id,text,Text", "'text' or 'Text' could be the text"),
        ("id,text,sentiment,category", "could be the label; say which with --columns label=sentiment"),
        ("id,words", "no column for the text among 'id', 'words'; name it with --columns text=.."),
        ("id,text,label,label", "line 1: column 'label' occurs twice; rename or remove one"),
        ("id,text, label ,label", "line 1: column 'label' occurs twice"),
    ],
)
def test_a_header_that_could_be_read_in_two_ways_is_refused(header, message, tmp_path):
    path = file_of(tmp_path, f"{header}\n{','.join('x' for _ in header.split(','))}\n")
    line = refused("prepare", path, "--out", tmp_path / "m.jsonl")
    assert line.startswith(f"Error: {path}")
    assert message in line


def test_columns_may_be_named_in_any_case_and_texts_joined(tmp_path):
    path = file_of(tmp_path, "Title,Caption,Emotion,Sentiment\na,b,sad,no\n ,c,glad,no\nd,,sad,no\n,,sad,no\n")
    found = read(path, ReadOptions(columns={"text": "title+caption", "label": "Emotion"}))
    assert found.posts == [
        Post("1", "a b", None, "sad"),
        Post("2", "c", None, "glad"),
        Post("3", "d", None, "sad"),
        Post("4", "", None, "sad"),
    ]
    assert found.facts["columns"] == {
        "id": "the row's number",
        "text": "Title+Caption",
        "label": "Emotion",
        "image": "none",
    }
    assert found.facts["ignored"] == ["'Sentiment'"]
    plus = file_of(tmp_path, "a+b,a,b\nwhole,x,y\n")
    assert posts_of(plus, columns={"text": "a+b"})[0].text == "whole"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"text": "titel"}}, "no column 'titel' among 'id', 'title', 'TITLE', 'label'; correct columns"),
        ({"columns": {"text": "Title"}}, "no column 'Title' among"),
        ({"columns": {"words": "title"}}, "columns: 'words' is not one of id, text, image, label, split"),
        ({"columns": {"text": "title"}, "targets": ("mood",)}, "no column 'mood' among .*; correct targets"),
        ({"columns": {"text": "title"}, "targets": ("label",)}, "targets: 'label' is the post's own; leave it out"),
        ({"columns": {"text": "title"}, "targets": ("id", "id")}, "targets: 'id' is named twice"),
        ({"columns": {"text": "title"}, "targets": ("",)}, "targets: '' can't name a target"),
        ({"columns": {"text": "title"}, "image_pattern": "{nme}.jpg"}, "no column 'nme' among .*; correct image_pat"),
        ({"columns": {"text": "title"}, "image_pattern": "1.jpg"}, "image_pattern=1.jpg: must have column names in"),
        ({"columns": {"text": "title"}, "image_pattern": "{id}}.jpg"}, "must have column names in braces"),
        ({"columns": {"text": "title"}, "image_pattern": "{id.real}"}, "no column 'id.real' among"),
        ({"columns": {"text": "title", "image": "id"}, "image_pattern": "{id}"}, "names the images, and columns too"),
        ({"columns": {"text": "title"}, "template": "x"}, "template: not an option of the format table"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(options, message, tmp_path):
    path = file_of(tmp_path, "id,title,TITLE,label\n1,a,b,c\n")
    with pytest.raises(InputError, match=message):
        posts_of(path, **options)


def test_extra_columns_are_targets_or_are_named_as_ignored(tmp_path):
    path = file_of(tmp_path, "id,text,sentiment,Emotion,desire,note\n1,a,pos,joy,,x\n2,b,neg, fear ,family,y\n")
    found = read(path, ReadOptions(targets=("emotion", "desire")))
    assert [post.targets for post in found.posts] == [{"emotion": "joy"}, {"emotion": "fear", "desire": "family"}]
    assert [post.label for post in found.posts] == ["pos", "neg"]
    assert found.facts["ignored"] == ["'note'"]
    found = read(path, ReadOptions(targets=("sentiment",)))  # what is a target is not guessed as the label
    assert [(post.label, post.targets) for post in found.posts] == [
        (None, {"sentiment": "pos"}),
        (None, {"sentiment": "neg"}),
    ]


def test_spellings_that_differ_in_case_are_one_label_and_this_is_said(tmp_path):
    rows = ["Positive", "positive", "positive", "NEG", "neg", "other"]
    path = file_of(tmp_path, "id,text,label,m\n" + "".join(f"{i},t,{row},{row[:1]}\n" for i, row in enumerate(rows)))
    found = read(path, ReadOptions(targets=("m",)))
    assert [post.label for post in found.posts] == ["positive", "positive", "positive", "NEG", "NEG", "other"]
    assert [post.targets["m"] for post in found.posts] == ["p", "p", "p", "N", "N", "o"]
    assert found.facts["merged"] == {
        "label": {"Positive": "read as 'positive'", "neg": "read as 'NEG'"},
        "m": {"P": "read as 'p'", "n": "read as 'N'"},
    }
    output = invoke("prepare", path, "--out", tmp_path / "m.jsonl")
    assert "Positive: read as 'positive'" in output
    assert "id: id (guessed)" in output
    assert "ignored: 'm'" in output


def test_binary_labels_and_stars_are_classes_in_the_order_of_numbers(tmp_path):
    path = file_of(tmp_path, "text,label,stars\n" + "".join(f"t,{n % 2},{n}\n" for n in range(12)))
    found = read(path, ReadOptions(targets=("stars",)))
    assert found.names == {"label": ("0", "1"), "stars": tuple(map(str, range(12)))}
    assert [post.label for post in found.posts[:3]] == ["0", "1", "0"]


def test_five_classes_of_ones_own_are_split_in_proportion(tmp_path):
    names = ("rain", "sun", "snow", "fog", "wind")
    path = file_of(tmp_path, "id,text,label\n" + "".join(f"{n},text {n},{names[n % 5]}\n" for n in range(100)))
    prepared = prepare(path)
    assert prepared.names == {"label": tuple(sorted(names))}
    assert prepared.summary["classes"]["val"] == dict.fromkeys(sorted(names), 2)
    assert prepare(path, labels=names).names == {"label": names}


@pytest.mark.parametrize(
    ("value", "split"),
    [
        *((word, "train") for word in ("train", "Training", "TRAIN", " train ")),
        *((word, "val") for word in ("val", "valid", "Validation", "DEV")),
        *((word, "test") for word in ("test", "Testing")),
        *((word, None) for word in ("", "tests", "0", "unlabeled", None, 1, ["train"])),
    ],
)
def test_a_split_may_have_any_of_its_names(value, split):
    assert split_named(value) == split


def test_a_column_of_splits_is_used_where_it_holds_some(tmp_path):
    path = file_of(tmp_path, "id,text,split\n1,a,Train\n2,b, dev\n3,c,TESTING\n4,d, extra \n5,e,\n")
    found = read(path)
    assert [post.split for post in found.posts] == ["train", "val", "test", None, None]
    assert found.splits_from == f"the column split of {path}"
    assert found.facts["without_split"] == {"'extra'": 1}
    path = file_of(tmp_path, "id,text,fold\n1,a,3\n2,b,4\n")
    found = read(path)
    assert found.splits_from is None
    assert found.facts["split_column"] == "fold is not used: it holds no train, val or test but '3', '4'"
    with pytest.raises(InputError, match="the column 'fold' holds no train, val or test but '3', '4'; correct columns"):
        posts_of(path, columns={"split": "fold"})


def test_images_lie_in_the_tables_folder_or_where_a_pattern_says(tmp_path):
    (tmp_path / "a.jpg").touch()
    path = file_of(tmp_path, "tweet_id,text,image,kind\n7,a, a.jpg ,x\n8,b,sub/b.jpg,y\n9,c,,\n")
    found = read(path)
    assert [post.image for post in found.posts] == [tmp_path / "a.jpg", tmp_path / "sub" / "b.jpg", tmp_path]
    assert [post.problem for post in found.posts] == [None, None, "image: none is given"]
    assert found.facts["images_missing"] == {"posts": 1, "first": str(tmp_path / "sub" / "b.jpg")}
    assert found.facts["problems"] == {"posts": 1, "first": "9: image: none is given"}
    alone = read(file_of(tmp_path, "id,text,image\n1,a,\n2,b, \n"))  # an empty column: texts alone
    assert alone.posts == [Post("1", "a", None), Post("2", "b", None)]
    assert alone.facts["images"] == "none: the column image is empty"
    path = file_of(tmp_path, "tweet_id,text,image,kind\n7,a, a.jpg ,x\n8,b,sub/b.jpg,y\n9,c,,\n")
    for pattern, names in {
        "i/{id}.jpg": ["i/7.jpg", "i/8.jpg", "i/9.jpg"],  # the post's id, whatever its column is called
        "{tweet_id}_{ROW}.png": None,
        "{Tweet_ID}-{row}.png": ["7-1.png", "8-2.png", "9-3.png"],
        "{kind}/{image}": ["x/a.jpg", "y/sub/b.jpg", None],
    }.items():
        if names is None:
            with pytest.raises(InputError, match="no column 'ROW'"):
                posts_of(path, image_pattern=pattern)
            continue
        posts = posts_of(path, image_pattern=pattern)
        assert [None if post.problem else post.image for post in posts] == [n and tmp_path / n for n in names], pattern
    assert posts[2].problem == "image: the column 'kind' is empty"
    path = file_of(tmp_path, "text\na\nb\n")
    assert [post.image for post in posts_of(path, image_pattern="{id}.jpg")] == [tmp_path / "1.jpg", tmp_path / "2.jpg"]
    two = file_of(tmp_path, "text,img,path\na,x,y\n")  # which of the two is not asked where a pattern is given
    facts = read(two, ReadOptions(image_pattern="{img}")).facts
    assert (facts["images"], facts["columns"].keys()) == ("{img}", {"id", "text", "label"})
    path = file_of(tmp_path, "text,row\na,x\n")
    assert posts_of(path, image_pattern="{row}.jpg")[0].image == tmp_path / "x.jpg"


def test_a_row_that_is_no_post_is_counted_with_its_reason(tmp_path):
    path = file_of(
        tmp_path,
        "id,text,label\n1,a,pos\n,b,pos\n3,c\n4,d,pos,x\n1,e,neg\n"
        '"6\n7",f,pos\n8,g,"a\tb"\n9,h,neg\n1,again,neg\n10,padded,neg,,\n',
    )
    found = read(path)
    assert [(post.id, post.text) for post in found.posts] == [("1", "a"), ("9", "h"), ("10", "padded")]
    assert found.rejected == {
        "no id": 1,
        "not one field for each column of the header": 2,
        "repeated id": 2,
        "the id can't be a name": 1,
        "a label can't be the name of a class": 1,
    }
    assert found.first_rejected == {
        "no id": f"{path}, line 3: no id",
        "not one field for each column of the header": (
            f"{path}, line 4: not one field for each column of the header: 2 of 3; "
            "quote texts that hold separators or line breaks"
        ),
        "repeated id": f"{path}, line 6: repeated id: '1' already occurs in line 2",
        "the id can't be a name": (
            f"{path}, line 7: the id can't be a name: must have no line breaks or control characters: '6\\n7'"
        ),
        "a label can't be the name of a class": (
            f"{path}, line 9: a label can't be the name of a class: "
            "column 'label' must have no line breaks or control characters: 'a\\tb'"
        ),
    }
    with pytest.raises(InputError, match=r"7 of 10 rows are no post, over max_fail_rate=0.05; .*line 3: no id"):
        prepare(path)
    assert prepare(path, max_fail_rate=0.7).summary["rejected"]["repeated id"]["rows"] == 2
    with pytest.raises(InputError, match=r"no post in it that can be used; .*line 2: no id"):
        prepare(file_of(tmp_path, "id,text\n,a\n"))
    with pytest.raises(InputError, match="no post in it that can be used"):
        prepare(file_of(tmp_path, "id,text\n"))


def test_a_text_that_can_not_be_read_is_one_failed_post(tmp_path):
    rows = [
        {"id": 1, "text": "a", "image": "a.jpg"},
        {"id": 2, "text": None, "image": "a.jpg"},
        {"id": 3, "image": "a.jpg"},
        {"id": 4, "text": "half \ud83d", "image": "a.jpg"},
        {"id": 5, "text": ["x"], "image": "a.jpg"},
        {"id": 6, "text": "", "image": "a.jpg"},
        {"id": 7, "text": 2015.0, "image": {"bytes": "x"}},
        {"id": 8, "text": "t", "image": "a\u0000.jpg"},
        {"id": 9, "text": "x" * (1 << 20), "image": "a.jpg"},
        {"id": 10, "text": "x" * ((1 << 20) + 1), "image": "a.jpg"},
        {"id": 11, "text": "t", "image": "\ud83d.jpg", "problem": "the picture was lost"},
    ]
    path = file_of(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")
    posts = posts_of(path)
    assert [post.problem for post in posts] == [
        None,
        "text: none is given",
        "text: none is given",
        "text: holds an unpaired surrogate, which is invalid text",
        'text: must be a string, not ["x"]',
        None,
        'image: must be a string, not {"bytes": "x"}',
        "image: must have no line breaks or control characters: 'a\\x00.jpg'",
        None,
        "text: over the limit of 1048576 characters",
        "'the picture was lost'",
    ]
    assert [post.text for post in posts[5:8]] == ["", "2015", "t"]
    assert [post.image == tmp_path for post in posts] == [False] * 6 + [True, True, False, False, True]
    write_manifest(tmp_path / "m.jsonl", posts)
    assert len(read_manifest(tmp_path / "m.jsonl").posts) == 11
    with pytest.raises(
        InputError, match=r"every post has a problem; the first is '1': text: none is given; correct col"
    ):
        posts_of(file_of(tmp_path, '{"id": 1, "text": null}\n', "t.jsonl"))


def test_a_manifest_can_be_split_here(tmp_path):
    (tmp_path / "i.jpg").write_bytes(b"x")
    others = {"scene": "sea"}
    posts = [
        Post(str(n), f"text {n}", tmp_path / "i.jpg", "ab"[n % 2], "test", others if n else {}, None) for n in range(40)
    ]
    write_manifest(tmp_path / "m.jsonl", posts, {"label": ("b", "a"), "scene": ("sky", "sea")})
    found = read(tmp_path / "m.jsonl")
    assert found.posts == posts
    assert found.names == {"label": ("b", "a"), "scene": ("sky", "sea")}
    assert found.facts["ignored"] == []
    made = prepare(tmp_path / "m.jsonl", ratios=(2, 1, 1))
    assert [sum(post.split == name for post in made.posts) for name in ("train", "val", "test")] == [20, 10, 10]
    assert made.names == {"label": ("b", "a"), "scene": ("sky", "sea")}
    lines = ['{"labels": {"label": ["b", "a"]}}', '{"id": 1, "text": "x", "label": "A"}']
    lines += ['{"id": 2, "text": "x", "label": "c", "text_label": "q"}', '{"id": 3, "text": "x", "text_label": "q"}']
    lines += ['{"id": 4, "text": "x", "targets": [1]}', '{"id": 5, "text": "x", "targets": {"-": "a"}}']
    found = read(file_of(tmp_path, "\n".join(lines), "mine.jsonl"))
    assert found.posts == [Post("1", "x", None, "a"), Post("3", "x", None, targets={"text_label": "q"})]
    assert found.facts["merged"] == {"label": {"A": "read as 'a'"}}
    assert found.first_rejected["a label is not one of the first line's"].endswith(
        "line 3: a label is not one of the first line's: label 'c'"
    )
    assert found.rejected == {
        "targets is no object": 1,
        "a target can't have this name": 1,
        "a label is not one of the first line's": 1,
    }


def test_labels_that_look_alike_are_one_class_and_that_is_said(tmp_path):
    spellings = ["café au lait"] * 3 + [
        "cafe\u0301 au lait",
        "café  au lait",
        "café\u00a0au lait",
        "Café au lait",
        "café au\u200b lait",
    ]
    path = file_of(tmp_path, "text,label\n" + "".join(f"a,{label}\n" for label in spellings))
    found = read(path)
    assert {post.label for post in found.posts} == {"café au lait"}
    assert len(found.facts["merged"]["label"]) == 5


def test_labels_that_are_given_decide_on_the_spelling(tmp_path):
    path = file_of(tmp_path, "text,label\n" + 'a,positive\na,Positive\nb,"so, so"\n' * 4)
    line = '"so, so", POSITIVE'
    invoke("prepare", path, "--out", tmp_path / "m.jsonl", "--labels", line, "--json", tmp_path / "s.json")
    manifest = read_manifest(tmp_path / "m.jsonl", images=False)
    assert manifest.names["label"] == ("so, so", "POSITIVE")
    assert [post.label for post in manifest.posts[:3]] == ["POSITIVE", "POSITIVE", "so, so"]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["merged"]["label"] == {"positive": "read as 'POSITIVE'"}


def test_a_split_file_leaves_nothing_for_ratios_and_brings_no_label_beyond_those_given(tmp_path):
    path = file_of(tmp_path, "id,text\n1,a\n2,b\n3,c\n")
    splits = file_of(tmp_path, "id,label,split\n1,x,train\n2,z,val\n3,x,test\n", "s.csv")
    for option in (("--ratios", "1:1:1"), ("--test-split", "val")):
        line = refused("prepare", path, "--out", tmp_path / "m.jsonl", "--splits", splits, *option)
        assert f"{option[0]}: --splits gives the splits; leave one of the two out" in line
    line = refused("prepare", path, "--out", tmp_path / "m.jsonl", "--splits", splits, "--labels", "x,y")
    assert "the label 'z' is not one of --labels x,y" in line
    invoke("prepare", path, "--out", tmp_path / "m.jsonl", "--splits", splits, "--json", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["unlabelled"] == 0


def test_what_a_training_or_an_extraction_would_refuse_is_said_by_prepare(tmp_path):
    path = file_of(tmp_path, "text,image,mood,split\n" + "a,1.jpg,x,train\nb,2.jpg,y,val\nc,3.jpg,x,test\n")
    printed = invoke("prepare", path, "--out", tmp_path / "m.jsonl", "--targets", "mood")
    assert "  label: none" in printed
    assert "warning: no post has a label; a table's is named with --columns label=.." in printed
    assert f"warning: no image is there, neither {tmp_path / '1.jpg'}, the first of 3; " in printed
    assert "warning: target mood: no training post is 'y'; to train on it" in printed
    without = file_of(tmp_path, "text\na\n", "u.csv")
    assert "split: none: no post has a label" in invoke("prepare", without, "--out", tmp_path / "u.jsonl")
