"""Scenes whose mood shows: faces, hills, a plant, a home, a boat, a town, each drawn in any of three moods."""

import colorsys
import math
import random
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from pipeline.demo.pen import Colour, Pen, Point

POSITIVE, NEUTRAL, NEGATIVE = 1, 0, -1  # moods
INK, WHITE = (48, 40, 44), (250, 250, 246)

SKIES = {  # pairs of top and bottom
    POSITIVE: ([(88, 168, 236), (216, 240, 250)], [(255, 160, 99), (255, 230, 176)], [(99, 204, 236), (255, 240, 212)]),
    NEUTRAL: ([(150, 174, 192), (222, 226, 226)], [(190, 182, 170), (228, 222, 212)]),
    NEGATIVE: ([(44, 48, 64), (100, 104, 120)], [(58, 46, 74), (114, 98, 120)], [(66, 74, 82), (132, 136, 138)]),
}  # fmt: skip
SKINS = ((255, 224, 196), (241, 194, 155), (214, 160, 116), (166, 112, 76), (112, 72, 50), (255, 214, 70))
HAIRS = ((50, 36, 30), (96, 62, 36), (170, 110, 50), (226, 186, 100), (150, 60, 40), (130, 130, 136), (70, 60, 120))
FURS = ((236, 160, 80), (150, 150, 156), (90, 84, 88), (236, 226, 206))
RAINBOW = ((232, 84, 84), (246, 164, 70), (250, 226, 96), (106, 196, 110), (90, 150, 226), (150, 110, 206))


def _near(rng: random.Random, colour: Colour, spread: int = 16) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def any_hue(rng: random.Random, saturation: float = 0.65, value: float = 0.95) -> Colour:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), saturation, value))
    return red, green, blue


def _spokes(count: int, r: float) -> list[Point]:
    return [(r * math.cos(math.tau * step / count), r * math.sin(math.tau * step / count)) for step in range(count)]


def _clouds(pen: Pen, rng: random.Random, fill: Colour) -> None:
    for _ in range(rng.randint(2, 4)):
        cloud = pen.at(rng.uniform(0, pen.w), rng.uniform(0.06, 0.28), rng.uniform(0.07, 0.13))
        colour = _near(rng, fill, 10)
        for x, y, r in ((-0.9, 0.1, 0.55), (0.0, -0.2, 0.8), (0.9, 0.1, 0.6), (0.3, 0.25, 0.6), (-0.4, 0.25, 0.55)):
            cloud.disc(x, y, r, colour, 0.8)


def _sky(pen: Pen, rng: random.Random, mood: int) -> None:
    top, bottom = rng.choice(SKIES[mood if rng.random() < 0.85 else NEUTRAL])
    pen.wash(_near(rng, top), _near(rng, bottom))
    if mood == POSITIVE:
        sun = pen.at(rng.choice((0.16, 0.84)) * pen.w, rng.uniform(0.16, 0.22), rng.uniform(0.08, 0.12))
        gold = _near(rng, (255, 214, 70))
        sun.disc(0, 0, 1, gold)
        for x, y in _spokes(12, 1.25):
            sun.line([(x, y), (1.35 * x, 1.35 * y)], gold, 0.14)
    elif mood == NEUTRAL:
        _clouds(pen, rng, (236, 238, 238))
        for _ in range(rng.randint(3, 6)):
            gull = pen.at(rng.uniform(0.1, pen.w), rng.uniform(0.1, 0.4), 0.03)
            gull.line([(-1, -0.5), (-0.4, -0.7), (0, 0), (0.4, -0.7), (1, -0.5)], INK, 0.2)


def _storm(pen: Pen, rng: random.Random) -> None:
    _clouds(pen, rng, (62, 64, 78))
    slant = rng.uniform(-0.05, 0.05)
    for _ in range(40):
        x, y = rng.uniform(0, pen.w), rng.uniform(0.1, pen.h)
        pen.line([(x, y), (x + slant, y + 0.07)], (150, 166, 186), 0.005)
    if rng.random() < 0.6:
        bolt = [(0.0, 0.0), (-0.07, 0.24), (-0.01, 0.22), (-0.05, 0.44), (0.08, 0.17), (0.02, 0.19), (0.06, 0.0)]
        pen.at(rng.uniform(0.2, 0.8) * pen.w, 0.1, 1).shape(bolt, (255, 240, 150))


def _fence(pen: Pen, y: float, fill: Colour) -> None:
    for rail in (0.03, 0.08):
        pen.line([(0, y + rail), (pen.w, y + rail)], fill, 0.012)
    for step in range(round(pen.w * 14)):
        pen.box(step / 14 + 0.02, y, 0.026, 0.13, fill)


def _blossom(pen: Pen, x: float, y: float, r: float, petal: Colour) -> None:
    flower = pen.at(x, y, r)
    for petal_x, petal_y in _spokes(6, 1):
        flower.disc(petal_x, petal_y, 0.62, petal)
    flower.disc(0, 0, 0.55, (255, 214, 80))


def _face(pen: Pen, rng: random.Random, mood: int) -> None:
    """A person's or a cat's face of radius 1 around the pen's origin."""
    skin, hair, cat = _near(rng, rng.choice(SKINS), 8), _near(rng, rng.choice(HAIRS), 10), rng.random() < 0.25
    if cat:
        skin = _near(rng, rng.choice(FURS), 10)
        for side in (-1, 1):
            pen.shape([(side * 0.95, -1.25), (side * 0.2, -0.85), (side * 0.95, -0.2)], skin)
    else:
        pen.box(-0.9, 1.05, 1.8, 2, any_hue(rng, 0.5, 0.8), 0.4)
        pen.disc(0, -0.12, 1.08, hair)
        pen.box(-1.08, -0.12, 2.16, rng.choice((0.2, 0.5, 1.1)), hair, 0.1)
    pen.disc(0, 0, 1, skin)
    if not cat and rng.random() < 0.7:
        pen.bowl(0, -0.1, 0.97, (200, 340), hair)
    laughing = mood == POSITIVE and rng.random() < 0.4
    brow, tilt = {POSITIVE: (-0.5, -0.03), NEUTRAL: (-0.42, 0.0), NEGATIVE: (-0.42, -0.13)}[mood]
    for side in (-1, 1):
        if laughing:
            pen.arc(side * 0.38, -0.06, 0.16, (180, 360), INK, 0.07)
        else:
            pen.disc(side * 0.38, -0.12, 0.17, WHITE, 1.15)
            pen.disc(side * 0.38, -0.08 if mood == NEGATIVE else -0.12, 0.1, INK)
        pen.line([(side * 0.2, brow + tilt), (side * 0.56, brow - tilt)], INK, 0.06)
        for whisker in (0.1, 0.33) if cat else ():
            pen.line([(side * 0.3, 0.3), (side * 1.15, whisker)], WHITE, 0.025)
        if mood == POSITIVE:
            pen.disc(side * 0.66, 0.24, 0.13, (244, 130, 130), 0.8)
        elif mood == NEGATIVE and rng.random() < 0.7:
            pen.disc(side * 0.42, 0.28, 0.1, (96, 176, 236), 1.7)
    pen.disc(0, 0.16, 0.08, _near(rng, (226, 130, 120), 20))
    if mood == NEUTRAL:
        lean = rng.uniform(-0.05, 0.05)
        pen.line([(-0.32, 0.5 + lean), (0.32, 0.5 - lean)], INK, 0.08)
    elif mood == NEGATIVE:
        pen.arc(0, 0.85, 0.44, (205, 335), INK, 0.08)
    elif rng.random() < 0.6:
        pen.bowl(0, 0.3, 0.5, (0, 180), (150, 40, 50))
        pen.box(-0.36, 0.3, 0.72, 0.12, WHITE)
    else:
        pen.arc(0, 0.2, 0.5, (20, 160), INK, 0.08)


def faces(pen: Pen, rng: random.Random, mood: int) -> None:
    wall = any_hue(rng, rng.uniform(0.15, 0.5), rng.uniform(0.6, 0.95))
    pen.wash(wall, _near(rng, wall, 30))
    for _ in range(rng.choice((0, 14))):  # wallpaper
        pen.disc(rng.uniform(0, pen.w), rng.uniform(0, pen.h), rng.uniform(0.02, 0.05), _near(rng, wall, 24))
    count = rng.choice((1, 1, 1, 2)) if pen.w < 1.2 else rng.choice((1, 1, 2, 2, 3))
    r = rng.uniform(0.27, 0.36) if count == 1 else min(0.3, 0.4 * pen.w / count)
    for i in range(count):
        x, y = pen.w * (i + 0.5) / count + rng.uniform(-0.04, 0.04), pen.h * rng.uniform(0.46, 0.56)
        _face(pen.at(x, y, r * rng.uniform(0.9, 1.0)), rng, mood)


def hills(pen: Pen, rng: random.Random, mood: int) -> None:
    _sky(pen, rng, mood)
    if mood == POSITIVE and rng.random() < 0.5:
        for step, colour in enumerate(RAINBOW):
            pen.arc(pen.w / 2, 0.8 * pen.h, 0.62 * pen.h - 0.03 * step, (180, 360), colour, 0.032)
    grass = {POSITIVE: (112, 190, 84), NEUTRAL: (136, 158, 112), NEGATIVE: (74, 84, 72)}[mood]
    for shift, colour in ((0.0, _near(rng, grass)), (0.14, _near(rng, grass))):
        pen.disc(rng.uniform(0.1, 0.9) * pen.w, pen.h * 0.62 + shift + 0.9, 0.9 * pen.w, colour, 0.9 / pen.w)
        pen.box(0, pen.h * 0.72 + shift, pen.w, pen.h, colour)
    for _ in range(rng.randint(7, 12)):
        growth = pen.at(rng.uniform(0.04, pen.w), pen.h * rng.uniform(0.74, 0.96), 0.1)
        if mood == POSITIVE:
            growth.line([(0, 0), (0, 0.5)], (60, 130, 60), 0.08)
            _blossom(growth, 0, 0, 0.22, any_hue(rng, 0.55))
        elif mood == NEUTRAL:
            growth.shape([(-0.4, 0), (0, -1.3), (0.4, 0)], _near(rng, (84, 116, 90)))
        else:  # a bare bush
            for lean in (-0.35, 0.0, 0.3):
                growth.line([(0, 0), (0, -0.6), (lean, -1.2)], (40, 34, 34), 0.08)
    if mood == NEUTRAL:
        _fence(pen, 0.8 * pen.h, _near(rng, (150, 126, 104)))
    elif mood == NEGATIVE:
        _storm(pen, rng)


def plant(pen: Pen, rng: random.Random, mood: int) -> None:
    wall = any_hue(rng, rng.uniform(0.08, 0.35), rng.uniform(0.65, 0.95))
    pen.wash(wall, _near(rng, wall))
    pen.box(0, 0.82 * pen.h, pen.w, pen.h, _near(rng, (176, 132, 92), 30))
    pen = pen.at(pen.w * rng.uniform(0.35, 0.65), 0.72 * pen.h, rng.uniform(0.9, 1.15))
    green = _near(rng, (126, 116, 70) if mood == NEGATIVE else (84, 150, 82))
    for lean in (-0.16, 0.02, 0.17):
        tall, droop = rng.uniform(0.28, 0.42), math.copysign(0.15, lean)
        if mood == NEGATIVE:  # the stem bends over, the head hangs, a petal has fallen
            bend = (lean + 0.6 * droop, -tall - 0.02)
            pen.line([(0, 0), (0.5 * lean, -tall), bend, (lean + droop, 0.12 - tall)], green, 0.016)
            brown = _near(rng, (120, 84, 70))
            pen.disc(lean + droop, 0.15 - tall, 0.04, brown, 1.3)
            pen.disc(1.6 * lean + rng.uniform(-0.2, 0.2), 0.19, 0.025, brown, 0.5)
            continue
        pen.line([(0, 0), (lean, -tall)], green, 0.016)
        for side in (-1, 1):
            pen.disc(lean / 2 + side * 0.05, -tall / 2, 0.05, green, 0.45)
        if mood == POSITIVE:
            _blossom(pen, lean, -tall, 0.062, any_hue(rng, 0.6))
        else:
            pen.disc(lean, -tall, 0.07, green, 1.3)
    pot = any_hue(rng, 0.4, 0.75)
    pen.shape([(-0.15, -0.02), (0.15, -0.02), (0.11, 0.18), (-0.11, 0.18)], pot)
    pen.box(-0.17, -0.05, 0.34, 0.06, _near(rng, pot, 12), 0.01)
    if mood == NEGATIVE:
        pen.line([(-0.05, -0.04), (0.01, 0.04), (-0.04, 0.09), (0.02, 0.17)], INK, 0.01)


def _house(pen: Pen, rng: random.Random, mood: int) -> None:
    """A house of width 1 that stands on the pen's origin."""
    dim = 0.65 if mood == NEGATIVE else 1.0
    pane = {POSITIVE: (255, 226, 130), NEUTRAL: (190, 212, 222), NEGATIVE: (40, 44, 56)}[mood]
    pen.box(-0.5, -0.8, 1, 0.8, any_hue(rng, 0.3, 0.9 * dim))
    pen.shape([(-0.6, -0.8), (0, -1.23), (0.6, -0.8)], any_hue(rng, 0.55, 0.65 * dim))
    pen.box(-0.09, -0.36, 0.18, 0.36, _near(rng, (110, 76, 56)))
    for x in (-0.3, 0.3):
        window = pen.at(x, -0.56, 0.12)
        window.box(-1.1, -1.1, 2.2, 2.2, WHITE)
        window.box(-0.9, -0.9, 1.8, 1.8, pane)
        if mood == NEGATIVE:  # cracked, and boarded up
            for crack in _spokes(5, 1.0):
                window.line([(0.1, rng.uniform(-0.2, 0.2)), crack], WHITE, 0.1)
            window.line([(-1.4, 1), (1.4, -1)], (130, 96, 66), 0.35)
            continue
        window.line([(0, -0.9), (0, 0.9)], WHITE, 0.13)
        for flower in (-0.9, 0, 0.9) if mood == POSITIVE else ():
            _blossom(window, flower, 1.3, 0.28, any_hue(rng, 0.6))


def home(pen: Pen, rng: random.Random, mood: int) -> None:
    _sky(pen, rng, mood)
    ground = {POSITIVE: (126, 190, 92), NEUTRAL: (150, 150, 144), NEGATIVE: (86, 84, 78)}[mood]
    pen.box(0, 0.8 * pen.h, pen.w, pen.h, _near(rng, ground))
    count = 1 if pen.w < 1.25 else 2
    for i in range(count):
        x = pen.w * (i + 0.5) / count + rng.uniform(-0.03, 0.03)
        _house(pen.at(x, 0.86 * pen.h, rng.uniform(0.5, 0.58)), rng, mood)
    if mood == POSITIVE:
        flags = [(pen.w * step / 9, 0.07 + 0.06 * math.sin(math.pi * step / 9)) for step in range(10)]
        pen.line(flags, INK, 0.005)
        for x, y in flags:
            pen.shape([(x - 0.035, y), (x + 0.035, y), (x, y + 0.075)], any_hue(rng))
    elif mood == NEUTRAL:
        _fence(pen, 0.85 * pen.h, _near(rng, (196, 190, 180)))
    else:
        _storm(pen, rng)


def boat(pen: Pen, rng: random.Random, mood: int) -> None:
    _sky(pen, rng, mood)
    water = _near(rng, {POSITIVE: (52, 150, 206), NEUTRAL: (128, 156, 168), NEGATIVE: (40, 56, 74)}[mood])
    sea, mast_x = 0.62 * pen.h, pen.w * rng.uniform(0.35, 0.65)
    pen.box(0, sea, pen.w, pen.h, water)
    heel = {POSITIVE: 0.04, NEUTRAL: 0.0, NEGATIVE: 0.7}[mood] * rng.choice((-1, 1))
    cos, sin = math.cos(heel), math.sin(heel)

    def part(points: list[Point], fill: Colour) -> None:
        pen.shape([(mast_x + x * cos - y * sin, sea + 0.06 + x * sin + y * cos) for x, y in points], fill)

    part([(-0.007, 0), (-0.007, -0.42), (0.007, -0.42), (0.007, 0)], INK)
    sail = any_hue(rng, 0.5, 0.95)
    if mood == POSITIVE:
        part([(0.015, -0.42), (0.26, -0.06), (0.015, -0.06)], sail)
        part([(-0.015, -0.36), (-0.19, -0.06), (-0.015, -0.06)], WHITE)
    elif mood == NEGATIVE:  # torn
        part([(0.015, -0.42), (0.11, -0.25), (0.06, -0.24), (0.2, -0.1), (0.1, -0.14), (0.015, -0.06)], sail)
    part([(-0.26, -0.03), (0.26, -0.03), (0.17, 0.1), (-0.17, 0.1)], any_hue(rng, 0.55, 0.6))
    swell = {POSITIVE: 0.012, NEUTRAL: 0.01, NEGATIVE: 0.035}[mood]
    for row in range(5):
        y, phase = sea + 0.12 + 0.075 * row, rng.uniform(0, 6)
        crest = [(pen.w * step / 40, y + swell * math.sin(phase + step * 0.7)) for step in range(41)]
        pen.shape([*crest, (pen.w, pen.h), (0, pen.h)], _near(rng, water, 10))
        pen.line(crest, _near(rng, (176, 198, 210), 12), 0.006)
    if mood == NEGATIVE:
        _storm(pen, rng)


def town(pen: Pen, rng: random.Random, mood: int) -> None:
    night = _near(rng, (34, 38, 76), 14)
    pen.wash(night, _near(rng, (96, 84, 120), 20))
    if mood == POSITIVE:  # fireworks
        for _ in range(rng.randint(3, 5)):
            rocket = pen.at(rng.uniform(0.12, pen.w - 0.12), rng.uniform(0.12, 0.4), rng.uniform(0.09, 0.18))
            fill = any_hue(rng, 0.5)
            for x, y in _spokes(14, 1):
                rocket.line([(0.3 * x, 0.3 * y), (x, y)], fill, 0.06)
                rocket.disc(x, y, 0.08, WHITE)
    else:
        for _ in range(60 if mood == NEUTRAL else 0):
            pen.disc(rng.uniform(0, pen.w), rng.uniform(0, 0.6), 0.006, WHITE)
        moon = pen.at(rng.uniform(0.15, 0.85) * pen.w, 0.17, 0.09)
        moon.disc(0, 0, 1, (236, 232, 206))
        moon.disc(0.45, -0.2, 0.9, night)
    x = -0.05
    while x < pen.w:
        width, tower = rng.uniform(0.16, 0.26), pen.at(x, pen.h * rng.uniform(0.45, 0.65), 1)
        tower.box(0, 0, width, 1, _near(rng, (52, 50, 68), 10))
        for row, column in product(range(4), (0.2, 0.6)):
            if rng.random() < 0.6:
                tower.box(column * width, 0.05 + 0.1 * row, 0.04, 0.05, (252, 220, 130))
        for share in (0.2, 0.5, 0.8) if mood == NEGATIVE else ():  # the town burns
            flame = tower.at(share * width, 0.03, rng.uniform(0.12, 0.24))
            for size, fill in ((1.0, (226, 84, 40)), (0.55, (252, 186, 60))):
                flame.shape([(-0.35 * size, 0), (rng.uniform(-0.15, 0.15), -size), (0.35 * size, 0)], fill)
        x += width + 0.01
    if mood == NEGATIVE:
        _clouds(pen, rng, (70, 66, 72))


class Scene(NamedTuple):
    """What a picture may show: how it is drawn, and how often in comparison with the others."""

    draw: Callable[[Pen, random.Random, int], None]
    weight: int


SCENES = {
    "faces": Scene(faces, 4),
    "hills": Scene(hills, 1),
    "plant": Scene(plant, 1),
    "home": Scene(home, 1),
    "sea": Scene(boat, 1),
    "city": Scene(town, 1),
}
