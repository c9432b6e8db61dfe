import os
import signal

import pytest

from files.regular_file import read_regular_file, require_regular_file


@pytest.fixture(autouse=True)
def _no_endless_wait():
    signal.alarm(10)
    yield
    signal.alarm(0)


def both(path, max_bytes):
    require_regular_file(path, max_bytes)
    return read_regular_file(path, max_bytes)


def test_a_file_is_read_whole_below_a_linked_folder_too(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("folder")

    assert both(tmp_path / "link" / "file", 5) == b"12345"


@pytest.mark.parametrize("reader", [require_regular_file, read_regular_file])
def test_what_is_no_file_is_refused_with_its_name(tmp_path, reader):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, said in {
        "link": "symbolic link",
        "dangling": "symbolic link",
        "pipe": "not a regular file",
        "folder": "not a regular file",
        "file": "it holds 5 bytes, more than the 4",
    }.items():
        with pytest.raises(OSError, match=said) as caught:
            reader(tmp_path / name, 4)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "absent", 4)


def test_a_device_without_an_end_is_refused():
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file("/dev/zero", 4)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1234")
    honest = os.fstat

    def grow(descriptor):
        status = honest(descriptor)
        with (tmp_path / "file").open("ab") as file:
            file.write(b"5")
        return status

    monkeypatch.setattr(os, "fstat", grow)

    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular_file(tmp_path / "file", 4)
