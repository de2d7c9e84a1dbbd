"""Output files appear complete or not at all."""

import os

import pytest

from msconv_deploy.errors import BadInputError, about
from msconv_deploy.files import atomic_write, check_outputs, check_writable, write_text


def test_writes_and_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "deep" / "er" / "a.json", "hello")
    assert (tmp_path / "deep" / "er" / "a.json").read_text() == "hello"
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail_half_way():
        with atomic_write(path, force=True) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_existing_files_are_replaced_only_with_force(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "one")
    with pytest.raises(BadInputError, match="--force"):
        write_text(path, "two")
    assert path.read_text() == "one"
    write_text(path, "two", force=True)
    assert path.read_text() == "two"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.json"

    def race():
        with atomic_write(path) as temporary:
            temporary.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(BadInputError, match="appeared"):
        race()
    assert path.read_text() == "theirs"


def test_the_temporary_name_has_the_suffix(tmp_path):
    with atomic_write(tmp_path / "a.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"")


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(BadInputError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot create its folder"):
        check_writable(tmp_path / "file" / "a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BadInputError, match="not writable"):
            check_writable(tmp_path / "a.json")
    finally:
        tmp_path.chmod(0o700)


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(BadInputError, match="cannot be written"), atomic_write(tmp_path / "a.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_outputs_replace_no_input_and_not_each_other(tmp_path):
    one, two, new = tmp_path / "one", tmp_path / "two", tmp_path / "new"
    one.touch()
    two.touch()
    (tmp_path / "link").symlink_to(one)
    for force in (False, True):
        with pytest.raises(BadInputError, match="two: belongs to the input"):
            check_outputs([one, two], [new, two], force)
        with pytest.raises(BadInputError, match="link: belongs to the input"):
            check_outputs([one], [new, tmp_path / "link"], force)
        with pytest.raises(BadInputError, match="new: is named for two outputs"):
            check_outputs([one], [new, None, tmp_path / "folder" / ".." / "new"], force)
        with pytest.raises(BadInputError, match="two: belongs to the input"):
            check_outputs([one, two], [new], force, possible=[two])
        with pytest.raises(BadInputError, match="cannot be the folder"):
            check_outputs([one], [new / "deep" / "a", new], force)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "one", "two"]


def test_the_original_is_replaced_where_that_is_asked_for(tmp_path):
    one = tmp_path / "one"
    one.touch()
    with pytest.raises(BadInputError, match="one: is the input; it is replaced only with --force"):
        check_outputs([one], [one], original=one)
    check_outputs([one], [one, tmp_path / "report"], True, original=one)
    with pytest.raises(BadInputError, match="one: is named for two outputs"):
        check_outputs([one], [one, one], True, original=one)


def test_an_error_about_another_file_gets_the_name_in_front():
    for text, expected in (("m: bad", "m: bad"), ("node of m.onnx", "m: node of m.onnx")):
        with pytest.raises(BadInputError, match=f"^{expected}$"), about("m"):
            raise BadInputError(text)
