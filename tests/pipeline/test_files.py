"""Files are complete under their final names, or absent."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.common.files import (
    complete_or_absent,
    regular_bytes,
    regular_text,
    sha256_of_file,
    write_json,
    write_text,
)


def test_a_failure_leaves_the_old_file_and_nothing_half_written(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"a": 1})

    def write_half():
        with complete_or_absent(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_the_final_name_appears_only_at_the_end_and_replaces_what_a_kill_left(tmp_path):
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.partial").write_text("what a killed writer left")
    with complete_or_absent(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("plant", [Path.touch, os.mkfifo, lambda path: path.symlink_to(path.parent / "precious.txt")])
def test_nothing_is_written_through_what_lies_under_the_temporary_or_the_final_name(plant, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for name in ("a.txt", "a.txt.partial"):
        plant(tmp_path / name)
        write_text(tmp_path / "a.txt", "new")
        assert precious.read_text() == "precious"
        assert not (tmp_path / "a.txt").is_symlink()
        assert (tmp_path / "a.txt").read_text() == "new"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "precious.txt"]
        (tmp_path / "a.txt").unlink()


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "a", "ü\r\n\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\r\n\n"


def test_sha256_of_the_empty_file_and_of_abc(tmp_path):
    """Values of FIPS 180-4's examples."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_blocks_has_no_end_or_is_too_large_is_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    kinds = {"pipe": errno.EINVAL, "loop": errno.ELOOP, "sparse": errno.EFBIG, ".": errno.EINVAL, "none": errno.ENOENT}
    for name, number in {**kinds, "/dev/zero": errno.EINVAL, "/dev/tty": None}.items():
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is checked below
            regular_bytes(tmp_path / name)
        assert number in (None, caught.value.errno)
        assert caught.value.filename == str(tmp_path / name)
        if number != errno.EFBIG:
            with pytest.raises(OSError):  # noqa: PT011
                sha256_of_file(tmp_path / name)


def test_a_file_may_have_as_many_bytes_as_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"h\xc3\xbc\r\n")
    assert regular_bytes(tmp_path / "a", 5) == b"h\xc3\xbc\r\n"
    assert regular_text(tmp_path / "a") == "h\u00fc\r\n"
    with pytest.raises(OSError, match="over the limit of 4 bytes"):
        regular_bytes(tmp_path / "a", 4)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no /proc here")
@pytest.mark.parametrize("name", ["/proc/self/maps", "/proc/self/pagemap", "/proc/kmsg", "/proc/self/mem"])
def test_a_file_of_the_kernel_that_claims_to_be_empty_is_refused(name):
    assert Path(name).stat().st_size == 0
    with pytest.raises(OSError):  # noqa: PT011 - without rights for it, by the kernel
        regular_bytes(Path(name))


def test_an_empty_file_is_empty(tmp_path):
    (tmp_path / "empty").touch()
    assert regular_bytes(tmp_path / "empty") == b""


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    with pytest.raises(OSError, match="a device, not a regular file"):
        write_text(tmp_path / "null", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["null"]
    assert (tmp_path / "null").is_symlink()
