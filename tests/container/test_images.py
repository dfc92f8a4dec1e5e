"""Every spelling of an image, and what a runtime would cut, execute or look for in the wrong place."""

from __future__ import annotations

import pytest

from hpclm.containers import parse_image, singularity
from hpclm.core.errors import SiteError

DIGEST = "sha256:" + "a1" * 32
NEMO = ("nvcr.io#nvidia/nemo:23.02", "docker://nvcr.io#nvidia/nemo:23.02", "docker://nvcr.io/nvidia/nemo:23.02")


@pytest.mark.parametrize(
    ("written", "pyxis", "enroot", "apptainer"),
    [
        ("nvcr.io/nvidia/nemo:23.02", *NEMO),
        ("nvcr.io#nvidia/nemo:23.02", *NEMO),
        ("docker://nvcr.io/nvidia/nemo:23.02", *NEMO),
        ("docker://nvcr.io#nvidia/nemo:23.02", *NEMO),
        ("ubuntu", "ubuntu", "docker://ubuntu", "docker://ubuntu"),
        ("ubuntu:24.04", "ubuntu:24.04", "docker://ubuntu:24.04", "docker://ubuntu:24.04"),
        ("nvidia/cuda:12.4.1", "nvidia/cuda:12.4.1", "docker://nvidia/cuda:12.4.1", "docker://nvidia/cuda:12.4.1"),
        ("host:5000/a/b:1", "host:5000#a/b:1", "docker://host:5000#a/b:1", "docker://host:5000/a/b:1"),
        ("localhost/a", "localhost#a", "docker://localhost#a", "docker://localhost/a"),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io#a/b@{DIGEST}", f"docker://ghcr.io#a/b@{DIGEST}", f"docker://ghcr.io/a/b@{DIGEST}"),
        ("$oauthtoken@nvcr.io#nvidia/nemo:23.02", "$oauthtoken@nvcr.io#nvidia/nemo:23.02",
         "docker://$oauthtoken@nvcr.io#nvidia/nemo:23.02", "docker://nvcr.io/nvidia/nemo:23.02"),
    ],
)  # fmt: skip
def test_each_runtime_gets_its_own_spelling(written: str, pyxis: str, enroot: str, apptainer: str) -> None:
    image = parse_image(written)
    assert (image.pyxis, image.enroot, image.singularity) == (pyxis, enroot, apptainer)


@pytest.mark.parametrize("path", ["/images/nemo.sqsh", "/images/nemo.sif", "/images/sandbox"])
def test_a_path_stays_a_path(path: str) -> None:
    image = parse_image(path)
    assert (image.path, image.pyxis, image.singularity) == (path, path, path)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "nemo:23.02 --rw", "a\nb", "a;touch x", "$(touch x)", "`x`", "a'b", 'a"b', "a#b#c", "a:b:c",
        "UPPER/case", "-rw", "--rw", "a@b@c", "nvcr.io/a@sha256:zz", "http://a/b", "a,b", "../a", "./a.sqsh", "a.sif",
        "/a'b.sqsh", "/a b.sqsh", "/$HOME/x.sif", "/a:b.sif", "/a,b.sqsh", "/a#b.sqsh", "/a`x`.sqsh", "\x00",
        "nvcr.io/", "/:5", "@nvcr.io#a", "host:port/a",
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_a_word_on_what_is(text: str) -> None:
    with pytest.raises(SiteError, match="image"):
        parse_image(text)


def test_two_images_never_share_a_file() -> None:
    written = ["a/b:1", "a+b:1", "a/b", "x.io/a/b:1", "x.io#a/b:2", "a-b:1", f"a/b@{DIGEST}"]
    names = []
    for text in written:
        try:
            names.append(parse_image(text).file_name(".sqsh"))
        except SiteError:
            continue
    assert len(set(names)) == len(names) >= 6
    assert parse_image("nvcr.io#a/b").file_name(".sif") == parse_image("nvcr.io/a/b").file_name(".sif")
    assert all("/" not in name and "#" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ("apptainer version 1.3.4", "apptainer"),
        ("singularity-ce version 4.1.5", "singularity"),
        ("singularity version 3.8.7-1.el8", "singularity"),
        ("zsh 5.9", None),
        ("", None),
    ],
)
def test_apptainer_and_singularity_are_told_apart_by_what_they_say(text: str, runtime: str | None) -> None:
    assert singularity.which(text) == runtime
