"""What becomes of images of every kind, and what is only done where the session says so."""

import io
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from p2pl.data.pixels import MAX_TOLD, Encoded, decode_all
from p2pl.data.source import Pixels
from p2pl.errors import DataError, SessionFileError
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Task

GREY = Task(input=(1, 2, 2), classes=2)
COLOUR = Task(input=(3, 2, 2), classes=2)
ANY_GREY = Task(input=(1, 2, 2), classes=2, colour="convert")
ANY_COLOUR = Task(input=(3, 2, 2), classes=2, colour="convert")


def decoded(image: Image.Image, task: Task, form: str = "PNG", **how: object) -> Pixels:
    """Returns the numbers of one image that went through a file, [*input], 0..255."""
    file = io.BytesIO()
    image.save(file, form, **how)
    got: Pixels = decode_all(1, [Encoded("one", file.getvalue)], task)[0]
    return got * 255


def filled(mode: str, colour: tuple[int, ...] | int) -> Image.Image:
    """Returns an image of 2x2 pixels."""
    return Image.new(mode, (2, 2), colour)


@pytest.mark.parametrize(
    ("image", "task", "values"),
    [
        (filled("L", 51), GREY, [51]),
        (filled("1", 1), GREY, [255]),
        (filled("RGB", (1, 2, 3)), COLOUR, [1, 2, 3]),
        (filled("RGBA", (1, 2, 3, 255)), COLOUR, [1, 2, 3]),  # nothing is transparent
        (filled("LA", (9, 255)), GREY, [9]),
        (filled("RGB", (1, 2, 3)).quantize(2), COLOUR, [1, 2, 3]),  # a palette
        (filled("RGB", (7, 7, 7)).quantize(2), GREY, [7]),  # of greys
        (filled("L", 51), ANY_COLOUR, [51, 51, 51]),
        (filled("RGB", (255, 0, 0)), ANY_GREY, [76]),  # ITU-R 601-2: 0.299 of red
        (filled("RGBA", (0, 0, 0, 0)), ANY_COLOUR, [255, 255, 255]),  # paper shows through
        (filled("RGBA", (0, 0, 0, 0)), ANY_GREY, [255]),
        (filled("LA", (0, 0)), ANY_GREY, [255]),
    ],
    ids=str,
)
def test_an_image_of_each_kind_has_its_numbers(
    image: Image.Image, task: Task, values: list[int]
) -> None:
    got = decoded(image, task)
    assert got.shape == task.input
    assert got[:, 0, 0].tolist() == pytest.approx(values, abs=0.5)


def test_sixteen_bits_are_sixteen_bits() -> None:
    deep = Image.fromarray(np.array([[0, 1], [256, 65_535]], dtype=np.uint16))
    want = np.array([0, 1, 256, 65_535]) / 257  # of 255
    assert decoded(deep, GREY).ravel() == pytest.approx(want, rel=1e-6)
    assert decoded(deep, ANY_COLOUR)[2].ravel() == pytest.approx(want, rel=1e-6)


def test_cmyk_is_read_where_the_session_allows_it() -> None:
    ink = filled("CMYK", (0, 0, 0, 255))
    assert decoded(ink, ANY_COLOUR, "JPEG").max() < 8
    with pytest.raises(DataError, match="one: mode: got 'CMYK', allowed grey or RGB"):
        decoded(ink, COLOUR, "JPEG")


@pytest.mark.parametrize(
    "image",
    [
        filled("RGBA", (1, 2, 3, 254)),
        filled("LA", (9, 0)),
        filled("RGB", (1, 2, 3)),  # for a grey task
    ],
    ids=str,
)
def test_nothing_is_recoloured_unasked(image: Image.Image) -> None:
    with pytest.raises(DataError, match=r"agree on .*task.colour"):
        decoded(image, GREY)


@pytest.mark.parametrize(
    ("orientation", "top", "left"), [(1, 0.5, 1), (3, 0.5, 0), (6, 1, 0.5), (8, 0, 0.5)]
)
def test_an_image_is_turned_as_its_note_says(orientation: int, top: float, left: float) -> None:
    white_left = np.zeros((8, 8), np.uint8)
    white_left[:, :4] = 255
    image = Image.fromarray(white_left)
    noted = image.getexif()
    noted[0x0112] = orientation
    got = decoded(image, Task(input=(1, 8, 8), classes=2), "JPEG", exif=noted)[0] / 255
    assert (got[:4].mean(), got[:, :4].mean()) == pytest.approx((top, left), abs=0.02)


@pytest.mark.parametrize(
    ("resize", "shown", "rows"),
    [  # on a square of 4
        ("stretch", [[0, 255, 255, 0]] * 2, [[0, 255, 255, 0]] * 4),
        ("pad", [[0, 255, 255, 0]] * 2, [[0] * 4, *[[0, 255, 255, 0]] * 2, [0] * 4]),
        ("crop", [[0, 9, 255, 8, 7, 255, 9, 0]] * 4, [[255, 8, 7, 255]] * 4),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_an_image_comes_to_its_size_as_the_session_says(
    resize: Literal["stretch", "pad", "crop"],
    shown: list[list[int]],
    rows: list[list[int]],
    deep: bool,
) -> None:
    wide = np.array(shown, dtype=np.uint8)
    image = Image.fromarray(wide.astype(np.uint16) * 257 if deep else wide)
    got = decoded(image, Task(input=(1, 4, 4), classes=2, resize=resize))
    assert got[0].tolist() == [pytest.approx(row, abs=0.01) for row in rows]
    with pytest.raises(DataError, match=r"got \(1, ., .\), allowed \(1, 4, 4\).*task.resize"):
        decoded(image, Task(input=(1, 4, 4), classes=2))


def test_shrinking_looks_at_every_pixel() -> None:
    checks = np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255  # a chessboard
    got = decoded(Image.fromarray(checks), Task(input=(1, 2, 2), classes=2, resize="stretch"))
    assert got.ravel().tolist() == pytest.approx([127.5] * 4, abs=8)


def test_many_images_of_one_fault_are_counted_not_all_named() -> None:
    images = [Encoded(f"{number}.png", lambda: b"") for number in range(MAX_TOLD + 3)]
    with pytest.raises(DataError, match=r"11 of 11 images .*: 0\.png, .*7\.png and 3 more: unre"):
        decode_all(len(images), images, GREY)


def _pictures() -> list[bytes]:
    made = []
    for form in ("PNG", "JPEG", "BMP", "WEBP"):
        file = io.BytesIO()
        filled("RGB", (1, 2, 3)).save(file, form)
        made.append(file.getvalue())
    return made


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(_pictures()),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
)
@example(_pictures()[0], [], 30)
def test_a_damaged_file_is_an_error_of_ours(
    whole: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    raw = bytearray(whole[:length])
    for at, value in changes:
        if at < len(raw):
            raw[at] = value
    try:
        got = decode_all(1, [Encoded("one", lambda: bytes(raw))], ANY_COLOUR)
    except DataError:
        return
    assert got.shape == (1, 3, 2, 2)


def test_a_session_resizes_images_alone() -> None:
    begun = {
        "name": "s",
        "task": {"input": [4], "classes": 2, "resize": "crop"},
        "model": {"name": "logreg"},
        "training": {"learning_rate": 0.1},
        "exchange": {"rounds": 1, "cohort": 1},
    }
    with pytest.raises(SessionFileError, match=r"with task.resize or task.colour: got \(4,\)"):
        session_format.spec_of(begun)
