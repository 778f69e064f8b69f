"""Files that are written whole or not at all, and never through a link."""

import pytest

from highway_jax.files import check_path, first_link, replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    for content in b"one", b"two":
        with replacing(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() != content
        assert path.read_bytes() == content
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"three")
        raise RuntimeError
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    precious, link, nowhere = (tmp_path / name for name in ("precious", "link", "nowhere"))
    precious.write_text("precious")
    link.symlink_to(precious)
    nowhere.symlink_to(tmp_path / "not there")
    for path in link, nowhere:
        with replacing(path) as file:
            file.write(b"mine")
        assert path.read_text() == "mine" and not path.is_symlink()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "not there").exists()


def test_the_first_link_below_a_directory_is_found(tmp_path):
    (tmp_path / "work/a/b").mkdir(parents=True)
    (tmp_path / "itself").symlink_to(tmp_path / "work")
    assert first_link(tmp_path / "itself") is None
    (tmp_path / "work/a/b/link").symlink_to("..")
    assert first_link(tmp_path / "itself") == tmp_path / "itself/a/b/link"
    assert first_link(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["a\\b", "a*", "a?", "[a", "a\nb", "\x7f", "gs:", "\udcff"])
def test_paths_under_which_arrays_would_be_lost_are_refused(name, tmp_path):
    for path in name, f"/x/{name}/y", tmp_path / name:
        with pytest.raises(ValueError, match="under which arrays cannot be stored"):
            check_path(path)
