"""Facets: small colour images with independent, known factors, drawn from a seed and never stored.

Canvas [-1, 1]^2, x to the right, y and v downwards, one pixel ``px = 2 / side``. With half = .30 + .08 size and
centre = -.45 + .9 x / 7 (the same for y), a pixel at X has object coordinates (u, v) = R(-angle) (X - centre) / half,
so a positive angle turns the object clockwise on the screen. A signed distance d (negative inside, in units of half)
gives the coverage ``alpha = clip(.5 - d half / px, 0, 1)`` and the image ``alpha object + (1 - alpha) floor``:

    disc      |(u, v)| - 1                              square  max(|u|, |v|) - .85
    triangle  max(.866 |u| - .5 v, v) - .5              ring    ||(u, v)| - .75| - .25
    cross     min(max(|u| - .33, |v| - 1), max(|v| - .33, |u| - 1))
    heart     .5 cbrt((a^2 + b^2 - 1)^3 - a^2 b^3),  a = 1.15 u,  b = .15 - 1.15 v

Colours are hue, saturation, value: (k / 8, .85, .95) for objects, (.03 + k / 8, .35, .45) for floors.

| configuration | factors | the rest |
|---|---|---|
| ``facets_a`` | shape, floor | red, size 3 +- .5, x and y 3.5 +- .5 (one pixel at side 32), angle +- .2 rad |
| ``facets_b`` | shape, colour, floor | as A |
| ``facets_c`` | shape, colour, floor, size, x, y | each of size, x, y +- .25 about its integer, angle +- .2 rad |

Position, size and angle are continuous. (With a few angles and whole pixels, A would have only some hundred distinct
images, and nearly every held-out image would also be a training image.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from ppl_models.datasets.describe import Info, check_split, whole

SHAPES = ("disc", "square", "triangle", "cross", "heart", "ring")
COLOURS = ("red", "amber", "lime", "green", "cyan", "blue", "violet", "pink")
FLOORS = ("brown", "olive", "moss", "fern", "teal", "slate", "purple", "plum")
VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": SHAPES,
        "colour": COLOURS,
        "floor": FLOORS,
        "size": tuple("0123"),
        "x": tuple("01234567"),
        "y": tuple("01234567"),
    }
)
"""Factor -> names of its values."""

Numbers = float | int | np.number | np.ndarray | Sequence[float | int]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

MOST = 1_000_000
_BLOCK = 1024  # draws of one random stream: part of the definition of the data, never change it
_CHUNK = 128  # images rendered at once: of the size of a processor's cache, free to change
_SPLITS = MappingProxyType({"train": 10_000, "test": 2_000})


# ------------------------------------------------------------------------------------------------- rendering
def render_facets(
    shape: Numbers,
    colour: Numbers = 0,
    floor: Numbers = 0,
    size: Numbers = 3.0,
    x: Numbers = 3.5,
    y: Numbers = 3.5,
    angle: Numbers = 0.0,
    *,
    side: int = 32,
) -> UInt8[np.ndarray, "n side side 3"]:
    """Render one image for each row of factors; the factors broadcast against each other.

    ``shape`` holds integers 0..5; all others may be real, so that a factor can be traversed: ``colour`` and
    ``floor`` in [0, 8), ``size`` in [-1, 6], ``x`` and ``y`` in [-4, 11] (0 to 7 is the range of the data), ``angle``
    in radians. ``side`` is the height and width in pixels, at least 4. Raises ``ValueError`` for values outside.

        import numpy as np
        from ppl_models.datasets import render_facets
        turning = render_facets(shape=1, angle=np.linspace(0, np.pi / 2, 9))       # (9, 32, 32, 3)
    """
    side = whole(side, "side", 4)
    given = {"shape": shape, "colour": colour, "floor": floor, "size": size, "x": x, "y": y, "angle": angle}
    columns = _columns(given)
    n = len(columns["shape"])
    top, bottom = 255 * _object_rgb(columns["colour"]), 255 * _floor_rgb(columns["floor"])  # (n, 3)
    images = np.empty((n, side, side, 3), np.uint8)
    kind = columns["shape"].astype(int)
    for index, distance in enumerate(_DISTANCES):
        rows = np.flatnonzero(kind == index)
        for start in range(0, len(rows), _CHUNK):
            row = rows[start : start + _CHUNK]
            alpha = _coverage(distance, side, *(columns[key][row] for key in ("size", "x", "y", "angle")))
            paint = np.empty((*alpha.shape, 3), np.uint8)
            difference, base = (top - bottom)[row].astype("f4"), (bottom[row] + 0.5).astype("f4")
            for channel in range(3):  # + .5 above: the cast truncates, so this rounds half up
                paint[..., channel] = alpha * difference[:, channel, None, None] + base[:, channel, None, None]
            images[row] = paint
    return images


_RANGES = {"shape": (0, 5), "colour": (0, 8), "floor": (0, 8), "size": (-1, 6), "x": (-4, 11), "y": (-4, 11)}


def _columns(given: Mapping[str, Numbers]) -> dict[str, Float[np.ndarray, " n"]]:
    arrays = {key: np.atleast_1d(np.asarray(value)) for key, value in given.items()}
    for key, value in arrays.items():
        if value.ndim > 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
            raise ValueError(
                f"{key} must be a finite number or a vector of them, got {value.dtype} of shape {value.shape}"
            )
        low, high = _RANGES.get(key, (-np.inf, np.inf))
        strict = key in ("colour", "floor")  # hue is periodic: 8 would be 0 again
        wrong = (value < low) | ((value >= high) if strict else (value > high))
        if key == "shape":
            wrong |= value != np.floor(value)
        if wrong.any():
            kind = "one of the integers 0..5 " + str(SHAPES) if key == "shape" else f"between {low} and {high}"
            raise ValueError(f"{key} must be {kind}, got {value[wrong][0]}")
    try:
        columns = np.broadcast_arrays(*(value.astype(float) for value in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{key} {value.shape}" for key, value in arrays.items())
        raise ValueError(f"factors must be numbers or vectors of one length, got {shapes}") from None
    return dict(zip(arrays, columns, strict=True))


def _coverage(
    distance: Distance, side: int, size: np.ndarray, x: np.ndarray, y: np.ndarray, angle: np.ndarray
) -> Float[np.ndarray, "m side side"]:
    # Float32 on the pixels, float64 on the few numbers of an image: fast, and the same bytes on every processor.
    pixel = 2 / side
    grid = -1 + pixel * (np.arange(side) + 0.5)
    half = (0.30 + 0.08 * size)[:, None]
    across, down = ((grid - (-0.45 + 0.9 * centre[:, None] / 7)) / half for centre in (x, y))  # (m, side)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    u = (cos * across).astype("f4")[:, None, :] + (sin * down).astype("f4")[:, :, None]  # (m, rows, columns)
    v = (cos * down).astype("f4")[:, :, None] - (sin * across).astype("f4")[:, None, :]
    alpha = distance(u, v)
    alpha *= (-half / pixel).astype("f4")[:, :, None]
    alpha += np.float32(0.5)
    return np.clip(alpha, 0, 1, out=alpha)


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(1)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.85)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.float32(0.866) * np.abs(u) - np.float32(0.5) * v, v) - np.float32(0.5)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v, arm, one = np.abs(u), np.abs(v), np.float32(0.33), np.float32(1)
    return np.minimum(np.maximum(u - arm, v - one), np.maximum(v - arm, u - one))


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.float32(1.15) * u, np.float32(0.15) - np.float32(1.15) * v
    a *= a
    inside = a + b * b - np.float32(1)
    inside = inside * inside * inside - a * b * b * b
    # Float64: unlike + - * / sqrt, a cube root may differ in the last bit between C libraries.
    return (0.5 * np.cbrt(inside, dtype="f8")).astype("f4")


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.75)) - np.float32(0.25)


_DISTANCES = (_disc, _square, _triangle, _cross, _heart, _ring)  # in the order of SHAPES


def _rgb(hue: np.ndarray, saturation: float, value: float) -> Float[np.ndarray, "n 3"]:
    """Hue (in turns), saturation, value to red, green, blue, all in [0, 1]."""
    k = np.mod(np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None], 6)
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def _object_rgb(colour: np.ndarray) -> Float[np.ndarray, "n 3"]:
    return _rgb(colour / 8, 0.85, 0.95)


def _floor_rgb(floor: np.ndarray) -> Float[np.ndarray, "n 3"]:
    return _rgb(0.03 + floor / 8, 0.35, 0.45)


# --------------------------------------------------------------------------------------------------- drawing
@dataclass(frozen=True)
class Facets:
    """One configuration: which factors vary, and how far the continuous nuisances reach about the rest."""

    name: str
    stream: int
    varies: tuple[str, ...]
    jitter: float
    description: str

    def info(self, root: object = None) -> Info:
        """What the catalogue says of this configuration."""
        return Info(
            name=self.name,
            shape=(32, 32, 3),
            levels=256,
            sizes=_SPLITS,
            factors={key: VALUES[key] for key in self.varies},
            description=self.description,
            licence="generated by this package (Apache-2.0)",
            provenance="ppl_models.datasets.render_facets; deterministic in (seed, n)",
            how_to_get=("nothing to get: it is generated, in about a second for 10,000 images",),
            where=lambda: "generated",
        )

    def draw(self, split: str, n: int | None, seed: int) -> dict[str, Shaped[np.ndarray, " n"]]:
        """Draw all seven factors: the integers of those that vary, and the continuous values that are rendered."""
        info, seed = self.info(), whole(seed, "seed", 0)
        check_split(info, split)
        n = info.sizes[split] if n is None else whole(n, "n", 1)
        if n > MOST:
            raise ValueError(f"n must be at most {MOST:,} images of {self.name!r}, got {n:,}; draw several seeds")
        blocks = [self._block(list(info.sizes).index(split), i, seed) for i in range(-(-n // _BLOCK))]
        return {key: np.concatenate([block[key] for block in blocks])[:n] for key in blocks[0]}

    def _block(self, split: int, index: int, seed: int) -> dict[str, np.ndarray]:
        # A stream of its own for every (seed, configuration, split, block): n images are the first n of more, and
        # no training image can be drawn from the numbers of a test image, under any pair of seeds.
        sequence = np.random.SeedSequence(seed, spawn_key=(self.stream, split, index))
        rng = np.random.Generator(np.random.PCG64(sequence))
        level: dict[str, np.ndarray] = {key: rng.integers(len(values), size=_BLOCK) for key, values in VALUES.items()}
        for key, fixed in {"shape": 0, "colour": 0, "floor": 0, "size": 3, "x": 3.5, "y": 3.5}.items():
            if key not in self.varies:
                level[key] = np.full(_BLOCK, fixed)
        for key in ("size", "x", "y"):
            level[f"{key}_drawn"] = level[key] + rng.uniform(-self.jitter, self.jitter, _BLOCK)
        return {**level, "angle": rng.uniform(-0.2, 0.2, _BLOCK)}

    def read(
        self, split: str, n: int | None, seed: int, root: object = None
    ) -> tuple[UInt8[np.ndarray, "n 32 32 3"], dict[str, Integer[np.ndarray, " n"]]]:
        """Draw and render: images and the integer factors that vary."""
        drawn = self.draw(split, n, seed)
        images = render_facets(**_rendered(drawn), side=32)
        return images, {key: drawn[key] for key in self.varies}


def _rendered(drawn: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: drawn.get(f"{key}_drawn", drawn[key]) for key in (*VALUES, "angle")}


CONFIGURATIONS = (
    Facets("facets_a", 0, ("shape", "floor"), 0.5, "images of one object on a floor; two facets: shape, floor"),
    Facets("facets_b", 1, ("shape", "colour", "floor"), 0.5, "three facets: shape, colour, floor"),
    Facets("facets_c", 2, ("shape", "colour", "floor", "size", "x", "y"), 0.25, "hard: six factors vary"),
)


def facet_factors(
    name: str, split: str = "train", *, n: int | None = None, seed: int = 0
) -> dict[str, Shaped[np.ndarray, " n"]]:
    """Return what is rendered for ``load(name, split, n=n, seed=seed)``: the arguments of :func:`render_facets`.

    Change one column and render again to see the same images with another colour, angle, or side:

        from ppl_models.datasets import facet_factors, render_facets
        factors = facet_factors("facets_b", n=8)
        large = render_facets(**factors, side=64)                              # load("facets_b", n=8), four times finer
        cyan = render_facets(**{**factors, "colour": 4})

    Raises ``ValueError`` for a name that is not a facets configuration.
    """
    for configuration in CONFIGURATIONS:
        if configuration.name == name:
            return _rendered(configuration.draw(split, n, seed))
    raise ValueError(f"facet_factors takes one of {[c.name for c in CONFIGURATIONS]}, got {name!r}")
