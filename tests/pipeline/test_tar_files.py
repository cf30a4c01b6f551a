"""The reader of tars: what Python's tarfile writes is found at its place, and hostile tars cost nothing else."""

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.common.errors import InputError
from pipeline.posts import tar_files
from pipeline.posts.image_files import Member
from pipeline.posts.manifest import Post
from pipeline.posts.tar_files import DamagedTar, members, tar_member_bytes
from pipeline.posts.webdataset import read
from tests.helpers.extraction import make
from tests.helpers.image_sets import drawn_posts, tar_bytes
from tests.helpers.image_sets import write_tars as set_of

NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=150)


def found(data: bytes) -> list[tuple[str, bytes, bool]]:
    return [(one.name, data[one.start : one.start + one.size], one.ordinary) for one in members(io.BytesIO(data))]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1300)), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_of_tarfile(given, form):
    data = tar_bytes(given, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(one.name, tar.extractfile(one).read(), True) for one in tar]
    assert [(name.rstrip("/"), content, True) for name, content, _ in found(data)] == expected


@settings(deadline=None)
@given(st.data())
def test_damaged_bytes_end_in_a_message_or_in_members_within_the_file(data):
    tar = bytearray(tar_bytes([("a.jpg", b"x" * 700), ("b" * 130, b"y"), ("c.txt", b"z" * 512)], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    del tar[data.draw(st.integers(1, len(tar))) :]
    try:
        for one in members(io.BytesIO(bytes(tar))):
            assert 512 <= one.start <= one.start + one.size <= len(tar)
    except DamagedTar:
        return


def test_what_is_no_ordinary_file_is_passed_over_and_shifts_nothing():
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    start = b"".join(header(f"{kind!r}.jpg", 0, kind, linkname="/etc/passwd", devmajor=1) for kind in kinds)
    linked = header("linked.jpg", 700, tarfile.LNKTYPE, linkname="a.jpg")  # a size that has no data
    old_sparse = bytearray(header("holes.jpg", 3, tarfile.GNUTYPE_SPARSE))
    old_sparse[482] = 1
    old_sparse[148:156] = b"%06o\0 " % (sum(old_sparse) - sum(old_sparse[148:156]) + 256)
    holes = bytes(old_sparse) + bytes(504) + b"\1" + bytes(7) + bytes(512) + b"abc" + bytes(509)
    records = b"22 GNU.sparse.major=1\n"
    pax = (
        header("p", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0") + header("new.jpg", 2) + b"hi".ljust(512)
    )
    volume = header("volume.jpg", 0, b"V")
    data = start + linked + holes + pax + volume + header("/a/../b.jpg", 5) + b"whole".ljust(512, b"\0") + bytes(1024)
    assert len(records) == 22
    assert [(name, content) for name, content, ordinary in found(data) if ordinary] == [("/a/../b.jpg", b"whole")]
    assert len(found(data)) == 11


def test_names_and_sizes_that_stand_in_further_headers_are_used_once():
    name = "n" * 300 + ".jpg"
    long_name = header("././@LongLink", len(name) + 1, tarfile.GNUTYPE_LONGNAME) + (name.encode() + b"\0").ljust(
        512, b"\0"
    )
    records = b"10 size=3\n"
    pax = header("p", len(records), tarfile.XHDTYPE) + records.ljust(512, b"\0")
    data = long_name + pax + header("short", 9) + b"abc".ljust(512, b"\0") + header("next", 1) + b"d".ljust(512, b"\0")
    assert found(data) == [(name, b"abc", True), ("next", b"d", True)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no tar"),
        (b"GIF89a", "no tar"),
        (b"x" * 512, "no tar header at byte 0"),
        (header("a.jpg", 513) + bytes(512), "truncated: a member at byte 512 is said to have 513 bytes"),
        (header("a.jpg", 1 << 60), "truncated: a member at byte 512 is said to have 1152921504606846976 bytes"),
        (header("a.jpg", 512) + bytes(512) + header("b")[:300], "truncated at byte 1324"),
        (header("n", 1 << 40, tarfile.GNUTYPE_LONGNAME), "truncated: a member at byte 512 is said to have 10995"),
        (header("n", 70_000, tarfile.GNUTYPE_LONGNAME) + bytes(70_144), "name of the member after byte 512 has 70000"),
        (header("n", 9, tarfile.XHDTYPE) + b"-1 path=x".ljust(512, b"\0"), "no tar header at byte 512"),
        (header("n", 9, tarfile.XHDTYPE) + b"99 path=x".ljust(512, b"\0"), "a damaged extended header at byte 512"),
        (header("n", 9, tarfile.XHDTYPE) + b"0 pathhhx".ljust(512, b"\0"), "a damaged extended header at byte 512"),
        (header("a", 0, tarfile.GNUTYPE_SPARSE)[:482], "truncated at byte 482|no tar"),
    ],
    ids=range(12),
)
def test_damage_is_said_in_one_line(data, problem, tmp_path):
    with pytest.raises(DamagedTar, match=problem):
        found(data)
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"^{path}: .*({problem})"):
        read(path)


def test_links_and_devices_are_no_tars(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path / "pipe.tar", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            tar_member_bytes(str(path), "a.jpg")


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    """Of 5 GiB that take no disk."""
    path, most = tmp_path / "a.tar", 1 << 30
    with path.open("wb") as file:
        file.write(header("big.jpg", 5 << 30))
        file.seek(512 + (5 << 30))
        file.write(header("small.jpg", 3) + b"abc".ljust(512, b"\0") + bytes(1024))
    tracemalloc.start()
    with pytest.raises(OSError, match=f"over the limit of {most} bytes"):
        tar_member_bytes(str(path), "big.jpg")
    assert tar_member_bytes(str(path), "small.jpg") == b"abc"
    with pytest.raises(OSError, match="over the limit of 2 bytes"):
        tar_member_bytes(str(path), "small.jpg", most=2)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_headers_are_read_once_a_process_and_again_when_the_tar_is_replaced(tmp_path, monkeypatch):
    scans = []
    monkeypatch.setattr(tar_files, "members", lambda file: scans.append(file.name) or members(file))
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([(f"{number}.jpg", b"%d" % number) for number in range(9)]))
    assert [tar_member_bytes(str(path), f"{number}.jpg") for number in (8, 0, 5)] == [b"8", b"0", b"5"]
    assert len(scans) == 1
    path.write_bytes(tar_bytes([("0.jpg", b"new"), ("0.jpg", b"second")]))
    assert tar_member_bytes(str(path), "0.jpg") == b"new"  # as in `prepare`, of equal names the first
    assert len(scans) == 2


def test_of_a_tar_that_was_cut_after_it_was_prepared_the_images_before_are_read(tmp_path):
    (path,) = set_of(tmp_path / "t", drawn_posts(5), 5)
    posts = read(path).posts
    path.write_bytes(path.read_bytes()[: posts_end(path, "p002.json")])
    failed = make(posts, tmp_path / "cache").failed
    assert list(failed) == ["p003", "p004"]
    assert failed["p003"] == f"image: no such image in the tar: {path}::p003.gif"
    with pytest.raises(InputError, match=rf"^{path}: truncated"):
        read(path)


def posts_end(path: Path, name: str) -> int:
    return next(one.start for one in members(io.BytesIO(path.read_bytes())) if one.name == name)


def test_a_tar_has_no_more_headers_than_the_limit(monkeypatch):
    monkeypatch.setattr(tar_files, "MOST_HEADERS", 5)
    assert len(found(tar_bytes([(f"{number}", b"") for number in range(4)]))) == 4
    with pytest.raises(DamagedTar, match="over the limit of 5 members; divide it"):
        found(tar_bytes([(f"{number}", b"") for number in range(7)]))


@pytest.mark.long
def test_the_last_of_a_million_members_is_found(tmp_path):
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for number in range(1_000_000):
            file.write(header(f"{number}.jpg", 1) + b"x".ljust(512, b"\0"))
    with path.open("rb") as file:
        assert sum(one.ordinary for one in members(file)) == 1_000_000
    assert tar_member_bytes(str(path), "999999.jpg") == b"x"
    failed = make([Post("1", "a", Member(str(path), "999999.jpg"))], tmp_path / "cache").failed
    assert failed["1"].startswith("image: not an image")
