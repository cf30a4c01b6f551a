"""Draws shapes in units that scale with the picture."""

from collections.abc import Iterable

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws on an image from an origin, in units of `unit` pixels; `w` and `h` are the image's sides in that unit."""

    def __init__(self, image: Image.Image, unit: float, origin: Point = (0.0, 0.0)) -> None:
        self.image, self.unit, self.origin = image, unit, origin
        self.w, self.h = image.width / unit, image.height / unit
        self._draw = ImageDraw.Draw(image)

    def at(self, x: float, y: float, scale: float) -> "Pen":
        """A pen whose origin is this pen's (x, y) and whose unit is `scale` of this pen's."""
        return Pen(self.image, self.unit * scale, self._px([(x, y)])[0])

    def _px(self, points: Iterable[Point]) -> list[Point]:
        return [(self.origin[0] + x * self.unit, self.origin[1] + y * self.unit) for x, y in points]

    def _round(self, x: float, y: float, r: float, squash: float) -> list[Point]:
        return self._px([(x - r, y - r * squash), (x + r, y + r * squash)])

    def disc(self, x: float, y: float, r: float, fill: Colour, squash: float = 1.0) -> None:
        self._draw.ellipse(self._round(x, y, r, squash), fill=fill)

    def bowl(self, x: float, y: float, r: float, span: tuple[int, int], fill: Colour) -> None:
        self._draw.chord(self._round(x, y, r, 0.95), *span, fill=fill)

    def arc(self, x: float, y: float, r: float, span: tuple[int, int], fill: Colour, width: float) -> None:
        self._draw.arc(self._round(x, y, r, 1.0), *span, fill=fill, width=max(1, round(width * self.unit)))

    def box(self, x: float, y: float, w: float, h: float, fill: Colour, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._px([(x, y), (x + w, y + h)]), radius * self.unit, fill=fill)

    def shape(self, points: Iterable[Point], fill: Colour) -> None:
        self._draw.polygon(self._px(points), fill=fill)

    def line(self, points: Iterable[Point], fill: Colour, width: float) -> None:
        self._draw.line(self._px(points), fill=fill, width=max(1, round(width * self.unit)), joint="curve")

    def wash(self, top: Colour, bottom: Colour) -> None:
        """Fill the whole image from the top colour to the bottom colour."""
        pair = Image.new("RGB", (1, 2), top)
        pair.putpixel((0, 1), bottom)
        self.image.paste(pair.resize(self.image.size, Image.Resampling.BILINEAR))
