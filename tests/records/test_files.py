"""How files are written: whole or not at all, over files alone, as the umask says."""

import os
import subprocess
import sys
import threading
import time

import pytest

from coordcheck.records import files
from coordcheck.records.files import TEMPORARY, write_text


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_what_the_umask_leaves_and_an_old_one_keeps_its_own(tmp_path, umask, mask, mode):
    umask(mask)
    write_text(tmp_path / "new.md", "a")
    assert (tmp_path / "new.md").stat().st_mode & 0o777 == mode
    (tmp_path / "new.md").chmod(0o640)
    write_text(tmp_path / "new.md", "b")
    assert (tmp_path / "new.md").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new.md").read_text() == "b"


@pytest.fixture
def device(tmp_path):
    """A link to a device: were it replaced, as root may do, only the link would be lost."""

    def linked(name):
        (tmp_path / name).symlink_to(f"/dev/{name}")
        return tmp_path / name

    return linked


def test_a_device_stays_a_device(device):
    path = device("null")
    write_text(path, "a")
    assert path.is_symlink() and path.is_char_device()


def test_a_pipe_is_written_to_and_one_without_a_reader_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe cannot be written"):
        write_text(tmp_path / "pipe", "a")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    for _ in range(100):
        try:
            write_text(tmp_path / "pipe", "a" * 200_000)
            break
        except ValueError:  # the reader has not opened it yet
            time.sleep(0.02)
    reader.join(10)
    assert read == ["a" * 200_000]
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@pytest.mark.parametrize("target", ["file", "pipe"])
def test_standard_output_is_written_to_in_order(tmp_path, device, target):
    code = (
        "import sys; from pathlib import Path; from coordcheck.records.files import write_text; print('before'); "
        "write_text(Path(sys.argv[1]), 'text\\n'); print('after')"
    )
    command = [sys.executable, "-c", code, str(device("stdout"))]
    if target == "pipe":
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        with (tmp_path / "out").open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        out = (tmp_path / "out").read_text()
    assert out.split() == ["before", "text", "after"]
    assert (tmp_path / "stdout").is_symlink()


def test_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "report.md").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "report.md", "report")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "report.md").read_text() == "report"


def test_what_a_kill_left_is_swept_when_it_is_old_and_ours(tmp_path):
    names = [f"{TEMPORARY}old.md", f"{TEMPORARY}new.md", ".other-old.md"]
    for name in names:
        (tmp_path / name).write_text("half")
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (time.time() - 2 * files.ABANDONED,) * 2)
    write_text(tmp_path / "report.md", "a")
    assert {path.name for path in tmp_path.iterdir()} == {names[1], names[2], "report.md"}


@pytest.mark.parametrize("way", ["a directory", "a file as its directory", "a full device", "too long a name"])
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, device, way):
    path = {
        "a directory": tmp_path / "report.md",
        "a file as its directory": tmp_path / "file" / "report.md",
        "a full device": device("full"),
        "too long a name": tmp_path / ("x" * 300),
    }[way]
    (tmp_path / "file").write_text("")
    if way == "a directory":
        path.mkdir()
    with pytest.raises(ValueError, match=r"cannot be written \(.+\)\. Choose a directory") as error:
        write_text(path, "a")
    assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"file", "report.md", "full"}


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "report.md", "old")
    with pytest.raises(RuntimeError, match="half"):
        files.write_atomically(tmp_path / "report.md", _half)
    assert (tmp_path / "report.md").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def _half(path):
    path.write_text("ha")
    raise RuntimeError("half")
