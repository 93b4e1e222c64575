import os
import zipfile
from pathlib import Path

import pytest
from raw_folders import put

from emo_r3.data import archive as records
from emo_r3.data.archive import Record, open_raw
from emo_r3.errors import DataError


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_folder_and_zip_list_and_read_the_same(tmp_path: Path) -> None:
    files = {"b/2.jpg": b"two", "b/1.jpg": b"one", "a.txt": b"text"}
    for name, data in {**files, ".DS_Store": b"", "b/._1.jpg": b"", ".git/x": b"", "__MACOSX/a.txt": b""}.items():
        put(tmp_path / "raw" / name, data)
    zip_of(tmp_path / "raw.zip", {**files, "__MACOSX/._a.txt": b"", "b/.hidden": b""})
    for path in (tmp_path / "raw", tmp_path / "raw.zip"):
        with open_raw(path) as raw:
            assert raw.names == ("a.txt", "b/1.jpg", "b/2.jpg")
            assert [raw.file(name).read() for name in raw.names] == [b"text", b"one", b"two"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "b/../../secret", "missing", ".hidden"])
def test_only_what_is_listed_is_read(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret", b"secret")
    put(tmp_path / "raw/b/1.jpg", b"one")
    put(tmp_path / "raw/.hidden", b"hidden")
    zip_of(tmp_path / "raw.zip", {"b/1.jpg": b"one", ".hidden": b"hidden"})
    for path in (tmp_path / "raw", tmp_path / "raw.zip"):
        with open_raw(path) as raw, pytest.raises(DataError, match="no file"):
            raw.read(name)


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "secret/x.jpg", b"secret")
    put(tmp_path / "raw/b/1.jpg", b"one")
    os.symlink(tmp_path / "secret/x.jpg", tmp_path / "raw/b/out.jpg")
    os.symlink(tmp_path / "secret", tmp_path / "raw/folder")
    os.symlink(tmp_path / "raw/b/1.jpg", tmp_path / "raw/b/in.jpg")
    os.symlink(tmp_path / "raw/b/none.jpg", tmp_path / "raw/b/dangling.jpg")
    os.symlink(tmp_path / "raw", tmp_path / "linked")
    for path in (tmp_path / "raw", tmp_path / "linked"):
        with open_raw(path) as raw:
            assert raw.names == ("b/1.jpg", "b/in.jpg")
            assert raw.refused == ("b/dangling.jpg", "b/out.jpg", "folder")


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a/../../x.jpg", "C:\\x.jpg", "..\\x.jpg", ".//x.jpg"])
def test_zip_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    zip_of(tmp_path / "raw.zip", {"a/1.jpg": b"one", name: b"out"})
    with pytest.raises(DataError, match="leads out"), open_raw(tmp_path / "raw.zip"):
        pass


@pytest.mark.parametrize("name", ["a\x1b[2Jb.jpg", "a\nb.jpg", "a\udcffb.jpg", "a\u202eb.jpg"])
def test_names_are_text(tmp_path: Path, name: str) -> None:
    put(tmp_path / "raw" / name, b"x")
    put(tmp_path / "raw/\xe9 \u611b.jpg", b"x")
    paths = [tmp_path / "raw"]
    if "\udcff" not in name:
        paths.append(zip_of(tmp_path / "raw.zip", {name: b"x", "\xe9 \u611b.jpg": b"x"}))
    for path in paths:
        with open_raw(path) as raw:
            assert raw.names == ("\xe9 \u611b.jpg",) and raw.refused == (ascii(name),)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_every_kind(tmp_path: Path, method: int) -> None:
    with open_raw(zip_of(tmp_path / "raw.zip", {"a/": b"", "a\\1.jpg": b"one", "./a/2.jpg": b"two"}, method)) as raw:
        assert [(name, raw.read(name)) for name in raw.names] == [("a/1.jpg", b"one"), ("a/2.jpg", b"two")]


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "raw.zip", {"a/1.jpg": b"one", "a\\1.jpg": b"two"})
    with pytest.raises(DataError, match=r"'a/1\.jpg' is there twice"), open_raw(path):
        pass


def test_zips_with_a_password_can_not_be_read(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "raw.zip", {"a.jpg": b"one"})
    data = bytearray(path.read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(start) + flags] |= 1
    path.write_bytes(data)
    with open_raw(path) as raw, pytest.raises(DataError, match=r"a\.jpg: can't be read .*encrypted"):
        raw.read("a.jpg")


def test_zip_links_are_not_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        link = zipfile.ZipInfo("a.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("b.jpg", b"b")
    with open_raw(tmp_path / "raw.zip") as raw:
        assert raw.names == ("b.jpg",) and raw.refused == ("a.jpg",)


def test_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMALL_ZIP", 2**20)
    zip_of(tmp_path / "bomb.zip", {"a.jpg": bytes(8 * 2**20)})
    with pytest.raises(DataError, match="zip bomb"), open_raw(tmp_path / "bomb.zip"):
        pass
    zip_of(tmp_path / "fair.zip", {"a.jpg": bytes(2**19)})
    with open_raw(tmp_path / "fair.zip") as raw:
        assert len(raw.read("a.jpg")) == 2**19
        with pytest.raises(DataError, match="larger than 1,000 bytes"):
            raw.read("a.jpg", max_bytes=1000)


def test_zip_that_lies_about_a_size_is_cut_off(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "raw.zip", {"a.jpg": bytes(100_000)})
    size = (100_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with open_raw(path) as raw, pytest.raises(DataError, match=r"a\.jpg"):
        raw.read("a.jpg")


def test_damaged_zips_say_so(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "raw.zip", {"a.jpg": bytes(range(256)) * 9, "b.jpg": b"b"}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(bytes(range(256)), bytes(256), 1))
    with open_raw(path) as raw:
        assert raw.read("b.jpg") == b"b"
        with pytest.raises(DataError, match=r"a\.jpg.*download it again"):
            raw.read("a.jpg")
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match="neither a folder nor a zip"), open_raw(path):
        pass


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    put(tmp_path / "raw.7z", b"7z")
    for name, message in (("missing", "no such folder"), ("raw.7z", "neither a folder nor a zip")):
        with pytest.raises(DataError, match=message), open_raw(tmp_path / name):
            pass


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["x.json"], ""),
        (["A/x.json", "A/b/x.json"], "A/"),
        (["y.json", "A/yx.json"], None),
        (["x.json", "B/x.json"], ""),
    ],
)
def test_root_is_the_highest_folder_with_the_marker(tmp_path: Path, names: list[str], root: str | None) -> None:
    for name in names:
        put(tmp_path / name, b"{}")
    with open_raw(tmp_path) as raw:
        assert raw.root("x.json") == root


def test_two_roots_are_one_too_many(tmp_path: Path) -> None:
    put(tmp_path / "A/x.json", b"{}")
    put(tmp_path / "B/x.json", b"{}")
    with open_raw(tmp_path) as raw, pytest.raises(DataError, match="'A/' and in 'B/'"):
        raw.root("x.json")


@pytest.mark.parametrize(
    ("data", "message"), [(b"{", "not valid JSON"), (b"\xff", "not UTF-8"), (b"[" * 10**5, "JSON")]
)
def test_broken_text_says_where(tmp_path: Path, data: bytes, message: str) -> None:
    put(tmp_path / "x.json", data)
    with open_raw(tmp_path) as raw, pytest.raises(DataError, match=rf"x\.json.*{message}"):
        raw.json("x.json")


def test_text_may_begin_with_a_mark(tmp_path: Path) -> None:
    put(tmp_path / "x.json", b"\xef\xbb\xbf[1]")
    with open_raw(tmp_path) as raw:
        assert raw.json("x.json") == [1]


@pytest.mark.parametrize(
    ("source", "name"),
    [("a/b/1.jpg", "1.jpg"), ("https://h/i/2.jpg?size=3/4", "2.jpg"), ("", "the-id"), ("a\\3.jpg", "3.jpg")],
)
def test_record_names_its_image(source: str, name: str) -> None:
    assert Record("the-id", "joy", Path("x"), source=source).file_name == name


def test_record_reads_regular_files_only(tmp_path: Path) -> None:
    put(tmp_path / "1.jpg", b"one")
    os.mkfifo(tmp_path / "pipe")
    assert (
        Record("1", "joy", tmp_path / "1.jpg").read() == Record("1", "joy", str(tmp_path / "1.jpg")).read() == b"one"
    )
    for name, message in (("none.jpg", "there is no such file; check the path"), ("pipe", "not a regular file")):
        with pytest.raises(DataError, match=message):
            Record("1", "joy", tmp_path / name).read()
