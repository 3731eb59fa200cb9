"""What colours a picture has: all that a test can say of it."""

from pathlib import Path

from PIL import Image


def colours_in(path: Path, pixels: int = 20) -> set[tuple[int, int, int]]:
    """Returns the colours that at least so many pixels have, of a picture that opens."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
        counted = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counted is not None
    found: set[tuple[int, int, int]] = set()
    for count, colour in counted:
        assert isinstance(colour, tuple)
        red, green, blue = colour
        if count >= pixels:
            found.add((red, green, blue))
    return found


def rgb(hex_colour: str) -> tuple[int, int, int]:
    return int(hex_colour[1:3], 16), int(hex_colour[3:5], 16), int(hex_colour[5:7], 16)
