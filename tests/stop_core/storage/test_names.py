"""An untrusted name stays below its folder, and planted links are not followed."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stop_core.storage.atomic import appearing, hash_file, write_whole
from stop_core.storage.names import check_path, create, inside, is_the_name_of_a_file, open_lock
from stop_core.storage.paths import RemotePath

parts = st.sampled_from(
    ["a", "..", ".", "", "b.mp4", "/", "\\", "\0", " ", "...", "c d", "\n", "\x7f", "é", "\ud800"]
)
HOSTILE = (
    *("", ".", "..", "/", "/etc/passwd", "//a", "a//b", "a//home/me/x", "a/", "/a/", "./a", "a/."),
    *("a/../b", "../a", "a/..", "a\0b", "a\nb", "a\x1b[1m", "a\x9bb", "a\\b", "..\\a", "C:\\a"),
    *("x" * 256, "é" * 128, "x/" * 2500 + "x", "\ud800"),
)
FINE = ("a", "a/b", "a b/c.mp4", "...", "-x", ".hidden", "é/ü.mp4", "a:b", "~", "x" * 255, "\udcff")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_refused_with_its_origin(name: str, tmp_path: Path) -> None:
    for join in (lambda: check_path(name, "list.txt, line 3"), lambda: inside(tmp_path, name)):
        with pytest.raises(ValueError, match=r"list\.txt, line 3: the name|the name") as refusal:
            join()
        assert str(refusal.value).isprintable()
        assert len(str(refusal.value)) < 500
    with pytest.raises(ValueError, match="the name"):
        inside(RemotePath("s3", "bucket/folder"), name)
    assert not is_the_name_of_a_file(name)


@pytest.mark.parametrize("name", FINE)
def test_ordinary_name_is_accepted_unchanged(name: str, tmp_path: Path) -> None:
    assert check_path(name, "here") == name
    assert inside(tmp_path, name) == tmp_path / name
    assert inside(RemotePath("gs", "bucket"), name).key == f"bucket/{name}"
    assert is_the_name_of_a_file(name) == ("/" not in name)


@given(st.lists(parts, min_size=1, max_size=6).map("/".join))
def test_accepted_path_is_below_the_folder(path: str) -> None:
    root = Path("/root")
    try:
        joined = inside(root, path)
    except ValueError:
        return
    assert Path(os.path.normpath(joined)) == joined == Path(f"/root/{path}")
    assert joined != root


def test_number_is_not_a_name() -> None:
    for value in (None, 3, b"a", ["a"]):
        with pytest.raises(ValueError, match="is not text"):
            check_path(value, "here")


@pytest.mark.parametrize("path", ["link", "link/a", "deep/link/a/b", "link/absent/a"])
def test_link_that_leads_out_is_refused_and_other_links_are_followed(
    path: str, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "in").mkdir()
    outside.mkdir()
    link = folder / path[: path.index("link") + 4]
    link.symlink_to(folder / "in")
    assert inside(folder, path) == folder / path
    for target in (outside, os.path.relpath(outside, link.parent), tmp_path, "/"):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(ValueError, match="leads out of"):
            inside(folder, path)
    # The folder that a user gives can be a link.
    (tmp_path / "given").symlink_to(folder)
    link.unlink()
    assert inside(tmp_path / "given", path) == tmp_path / "given" / path


def test_lock_follows_no_link_and_changes_no_content(tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("precious")
    lock.symlink_to(victim)
    with pytest.raises(OSError, match=r"\.lock is a link"):
        open_lock(lock)
    assert victim.read_text() == "precious"
    lock.unlink()
    for _ in range(2):
        with open_lock(lock) as file:
            assert file.fileno() > 0
    lock.write_text("kept")
    open_lock(lock).close()
    assert lock.read_text() == "kept"
    lock.unlink()
    os.mkfifo(lock)
    for open_it in (open_lock, hash_file):
        with pytest.raises(OSError, match="not a regular file"):
            open_it(lock)


def test_existing_staging_name_is_an_error(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for name in ("victim", "link", "dangling"):
        with pytest.raises(FileExistsError):
            create(tmp_path / name)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    for umask, mode in ((0o000, 0o666), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            create(tmp_path / f"{umask}")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == mode


def test_guessed_staging_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 8)
    (tmp_path / ".a.00000000.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), appearing(tmp_path / "a") as staging:
        staging.write_text("mine")
    assert victim.read_text() == "precious"


def test_write_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    write_whole(tmp_path / "a", "mine")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


def test_a_name_is_as_long_as_file_systems_take_it_and_shown_by_its_beginning() -> None:
    whole = "/".join(["a" * 249] * 16)  # 4000 bytes with a separator for each
    for taken in ("a" * 255, whole):
        assert check_path(taken, "here") == taken
    for refused in ("a" * 256, "é" * 128, whole + "a"):
        with pytest.raises(ValueError, match="is longer than 255 bytes a part or 4000 in all"):
            check_path(refused, "here")
    for count, shown in ((77, "/" + "a" * 77), (78, "/" + "a" * 75)):
        with pytest.raises(ValueError, match="is absolute") as problem:
            check_path("/" + "a" * count, "here")
        rest = str(problem.value).removeprefix(f"here: the name '{shown}")
        assert rest.startswith("' is" if count == 77 else "... is")
