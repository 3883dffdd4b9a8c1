"""Pictures of a reconstruction as SVG sheets that carry their pixels: three planes, side by side, and the axis order.

Slices are hung as in radiology: the patient's right on the left, the front (or head) on top; the letters at the edges
say so. Every sheet has its window in words, and says that it is not for clinical use.
"""

from __future__ import annotations

import base64
import html
import struct
import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from scidiff.domains.medical.card import NOT_CLINICAL
from scidiff.domains.medical.result import Reconstruction
from scidiff.domains.medical.volume import PLANES, Volume, closest

MOST = 256  # pixels along a side of a picture
WIDTH, GAP, HEAD = 168, 10, 22
LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))  # ends of the world axes: where they grow to, where they come from
FONT = 'font-family="sans-serif" font-size="12"'
ERROR = ((0.13, 0.40, 0.67), (1.0, 1.0, 1.0), (0.70, 0.09, 0.17))
HEAT = ((0.0, 0.0, 0.0), (0.85, 0.35, 0.10), (1.0, 1.0, 0.85))
Colours = Sequence[tuple[float, float, float]]


def png(pixels: np.ndarray) -> bytes:
    """PNG of uint8 pixels [rows, columns] (grey) or [rows, columns, 3]."""
    rows, columns = pixels.shape[:2]
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], 1)  # no filter in any line

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + \
        chunk(b"IEND", b"")


def grey(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8, low black and high white."""
    return np.rint(255 * np.clip((x - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)


def coloured(x: np.ndarray, low: float, high: float, colours: Colours) -> np.ndarray:
    """Values as colours [..., 3] uint8 between those given at equal steps."""
    place = np.clip((x - low) / max(high - low, 1e-12), 0, 1) * (len(colours) - 1)
    table = np.asarray(colours)
    mixed = np.stack([np.interp(place, np.arange(len(colours)), table[:, k]) for k in range(3)], -1)
    return np.rint(255 * mixed).astype(np.uint8)


@dataclass(frozen=True)
class Hanging:
    """How slices across one tensor axis (0: z, 1: y, 2: x) are hung: the axis up and the one across, all mirrored."""

    across: int
    up: int
    along: int
    name: str
    edges: tuple[str, str, str, str]  # left, right, top, bottom

    def slice(self, x: Tensor, place: int) -> np.ndarray:
        """The picture [rows, columns] of a volume [Z, 1, Y, X]."""
        cut = x[:, 0].select(self.across, place)
        rest = [a for a in range(3) if a != self.across]
        turned = cut if rest == [self.up, self.along] else cut.T
        return np.flip(turned.numpy(), (0, 1))


def hangings(volume: Volume) -> list[Hanging]:
    """Of the three planes, axial first."""
    world = [closest(volume.affine)[0][k] for k in (2, 1, 0)]  # of tensor axes z, y, x
    sign = [closest(volume.affine)[1][k] for k in (2, 1, 0)]
    found = []
    for name, normal in (("axial", PLANES["axial"]), ("coronal", PLANES["coronal"]), ("sagittal", PLANES["sagittal"])):
        across = world.index(normal)
        rest = [a for a in range(3) if a != across]
        along, up = sorted(rest, key=lambda a: world[a])  # the axis of lower order lies flat: R, then A
        (left, right), (top, bottom) = (LETTERS[world[a]] if sign[a] > 0 else LETTERS[world[a]][::-1]
                                        for a in (along, up))
        found.append(Hanging(across, up, along, name, (left, right, top, bottom)))
    return found


def pictures(found: Reconstruction) -> dict[str, str | bytes]:
    """Caption -> SVG: one sheet a plane, and the order of the axes."""
    volume, out = found.scene.volume, {}
    if found.notes:
        out["What to mind"] = sentences(found.notes)
    for hanging in hangings(volume):
        place = int(found.mean.shape[(0, 2, 3)[hanging.across]]) // 2
        caption = f"{hanging.name.capitalize()} slice {place}: {', '.join(n.lower() for n, *_ in _columns(found))}"
        out[caption] = sheet(found, hanging, place)
    out["Axis order of the volume and of its file"] = axes(volume)
    return out


def _columns(found: Reconstruction) -> list[tuple[str, Tensor, Callable[[np.ndarray], np.ndarray], str]]:
    """(title, volume, its colours, its window) of a sheet."""
    scene = found.scene
    unit = " HU" if scene.scale.unit == "HU" else ""
    window = f"{scene.scale.low:.4g} to {scene.scale.high:.4g}{unit}"
    out = []
    if scene.truth is not None:
        out.append(("Truth", scene.truth, lambda v: grey(v, 0, 1), window))
    out += [(name, x, lambda v: grey(v, 0, 1), window) for name, x in found.rivals.items()]
    out.append((found.method, found.mean, lambda v: grey(v, 0, 1), window))
    if scene.truth is not None:
        error = found.mean - scene.truth
        top = max(float(_top(error.abs())), 1e-6)
        out.append(("Error", error, lambda v: coloured(v, -top, top, ERROR), f"+-{top * scene.scale.width:.3g}{unit}"))
    if found.std is not None:
        spread, most = found.std, max(float(_top(found.std)), 1e-6)
        out.append(("Std", spread, lambda v: coloured(v, 0, most, HEAT), f"0 to {most * scene.scale.width:.3g}{unit}"))
    elif found.invented is not None:
        part = found.invented
        size = max(float(_top(part.abs())), 1e-6)
        out.append(("Invented", part, lambda v: coloured(v, -size, size, ERROR),
                    f"+-{size * scene.scale.width:.3g}{unit}"))
    return out


def _top(x: Tensor, share: float = 0.995) -> Tensor:
    flat = x.flatten()[:: max(x.nelement() // (1 << 20), 1)].float()
    return flat.quantile(share)


def sheet(found: Reconstruction, hanging: Hanging, place: int) -> str:
    """One slice of every volume, side by side."""
    edges = found.scene.volume.spacing
    columns = _columns(found)
    shape = hanging.slice(found.mean, place).shape
    height = WIDTH * shape[0] * edges[hanging.up] / (shape[1] * edges[hanging.along])
    height = float(min(max(height, 24.0), 3 * WIDTH))
    total = GAP + len(columns) * (WIDTH + GAP)
    left, right, top, bottom = hanging.edges
    parts = []
    for i, (title, x, colours, window) in enumerate(columns):
        at = GAP + i * (WIDTH + GAP)
        pixels = colours(_thinned(hanging.slice(x.float(), place)))
        uri = base64.b64encode(png(pixels)).decode()
        middle = at + WIDTH / 2
        parts += [
            f'<text x="{middle}" y="15" text-anchor="middle" font-weight="bold" {FONT}>{html.escape(title)}</text>',
            f'<image x="{at}" y="{HEAD}" width="{WIDTH}" height="{height:.1f}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{uri}"/>',
            _letter(at + 8, HEAD + height / 2 + 4, left), _letter(at + WIDTH - 8, HEAD + height / 2 + 4, right),
            _letter(middle, HEAD + 13, top), _letter(middle, HEAD + height - 5, bottom),
            f'<text x="{middle}" y="{HEAD + height + 14:.1f}" text-anchor="middle" fill="#555" {FONT}>'
            f"{html.escape(window)}</text>",
        ]
    under = HEAD + height + 32
    parts.append(f'<text x="{GAP}" y="{under:.1f}" fill="#a4432f" {FONT}>{html.escape(NOT_CLINICAL)}</text>')
    return _svg(total, under + 8, parts)


def _thinned(x: np.ndarray) -> np.ndarray:
    step = -(-max(x.shape) // MOST)
    return np.ascontiguousarray(x[::step, ::step])


def _letter(x: float, y: float, text: str) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#ffd34d" stroke="#000" stroke-width="0.3" '
            f"{FONT}>{text}</text>")


def axes(volume: Volume) -> str:
    """The box of a volume with its three axes, where they grow to, their lengths, and their order in the file."""
    z, y, x = volume.spacing
    to = volume.orientation
    shape = (len(volume.data), *volume.size)
    named = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "feet"}
    rows = [("x: columns, axis 3", to[0], shape[2], x, (60, 150, 220, 150)),
            ("y: rows, axis 2", to[1], shape[1], y, (60, 150, 130, 95)),
            ("z: slices, axis 0", to[2], shape[0], z, (60, 150, 60, 40))]
    parts = ['<defs><marker id="tip" orient="auto" markerWidth="9" markerHeight="9" refX="6" refY="3">'
             '<path d="M0,0 L7,3 L0,6 Z" fill="#1f5a8a"/></marker></defs>',
             '<path d="M60,150 L200,150 L200,55 L60,55 Z M60,55 L122,12 L262,12 L200,55 M262,12 L262,107 L200,150" '
             'fill="none" stroke="#9aa7b4"/>']
    for k, (name, letter, count, edge, (x1, y1, x2, y2)) in enumerate(rows):
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#1f5a8a" stroke-width="2" '
                     'marker-end="url(#tip)"/>')
        parts.append(f'<text x="{x2 + 6}" y="{y2 - 6}" fill="#1f5a8a" {FONT}>{name[0]} ({letter})</text>')
        parts.append(f'<text x="300" y="{40 + 24 * k}" {FONT}>{name} grows to the patient\'s {named[letter]}: '
                     f"{count} of {edge:.4g} mm</text>")
    parts.append(f'<text x="300" y="118" {FONT}>Tensors are [Z, 1, Y, X].{html.escape(_of_file(volume))}</text>')
    parts.append(f'<text x="300" y="148" fill="#a4432f" {FONT}>{html.escape(NOT_CLINICAL)}</text>')
    return _svg(860, 172, parts)


def sentences(notes: Sequence[str], columns: int = 118) -> str:
    """Notes as lines of text."""
    lines = [line for note in notes for line in textwrap.wrap(note, columns, initial_indent="- ",
                                                              subsequent_indent="  ")]
    parts = [f'<text x="{GAP}" y="{20 + 18 * k}" xml:space="preserve" {FONT}>{html.escape(line)}</text>'
             for k, line in enumerate(lines)]
    return _svg(860, 18 * len(lines) + 16, parts)


def _of_file(volume: Volume) -> str:
    pose = getattr(volume.source, "layout", None)
    if pose is None:
        return " Files are written as [x, y, z]."
    told = {axis: ("-" if flip else "+") + letter for letter, axis, flip in zip("zyx", pose.axes, pose.flips,
                                                                                strict=True)}
    return f" The file's array is [{', '.join(told[k] for k in range(3))}] (-: mirrored), written back as it was read."


def _svg(width: float, height: float, parts: list[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>')
