"""Draw docs/img/axes.png, the picture of docs/conventions.md: ``python docs/make_axes_figure.py``."""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ace_em.maths.fourier import HalfPlane
from ace_em.physics.pose import relion_angles_to_rotmat

matplotlib.use("Agg")
BOX = 8
CENTRE = BOX // 2
GREY, BLUE, RED, GREEN = "0.55", "#1f5fa8", "#c0392b", "#2a7f3f"


def draw_rotation(ax) -> None:  # a 3-D axes, which matplotlib types as Axes
    """The volume's axes in grey, the image's axes (the columns of R) in colour, and the image plane."""
    rotation = relion_angles_to_rotmat(torch.tensor([-35.0, 65.0, 40.0])).numpy()
    for vector, name in zip(((1, 0, 0), (0, 1, 0), (0, 0, 1)), "xyz", strict=True):
        ax.quiver(0, 0, 0, *vector, color=GREY, arrow_length_ratio=0.08)
        ax.text(*(1.12 * v for v in vector), name, color=GREY, ha="center")
    labels = ("image x", "image y", "view")
    for column, colour, label, far in zip(rotation.T, (BLUE, GREEN, RED), labels, (1.15, 1.2, 1.3), strict=True):
        ax.quiver(0, 0, 0, *column, color=colour, arrow_length_ratio=0.08, linewidth=2)
        ax.text(*(far * column), label, color=colour, ha="center", fontsize=8)
    corners = torch.tensor([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [-1, -1, 0]]) * 0.75
    x, y, z = (corners.numpy() @ rotation.T).T
    ax.plot(x, y, z, color=BLUE, alpha=0.5, linewidth=1)
    ax.plot_trisurf(x[:4], y[:4], z[:4], triangles=[[0, 1, 2], [0, 2, 3]], color=BLUE, alpha=0.12, shade=False)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), title="columns of R, in the volume's frame\nimage = sum over z of V(R r)")
    ax.view_init(elev=22, azim=-62)
    ax.set_box_aspect((1, 1, 1), zoom=1.35)
    ax.set_axis_off()


def cells(ax: Axes, values: torch.Tensor, first: int) -> None:
    """A grid of pixels whose axes are numbered from ``first``."""
    ax.imshow(values, cmap="Blues", vmin=0, vmax=2.2, extent=(first - 0.5, first + BOX - 0.5, first + BOX - 0.5, first - 0.5))
    ticks = range(first, first + BOX)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_yticks(ticks, [str(t) for t in ticks])
    for edge in ticks[1:]:
        ax.axhline(edge - 0.5, color="0.85", linewidth=0.8)
        ax.axvline(edge - 0.5, color="0.85", linewidth=0.8)


def draw_shift(ax: Axes) -> None:
    """An image of 8 pixels: its centre, and content moved by +shift_px."""
    dy, dx = 1, 2
    values = torch.zeros(BOX, BOX)
    values[CENTRE, CENTRE], values[CENTRE + dy, CENTRE + dx] = 0.6, 2
    cells(ax, values, 0)
    ax.annotate("", (CENTRE + dx, CENTRE + dy), (CENTRE, CENTRE), arrowprops={"arrowstyle": "->", "color": RED, "lw": 2})
    ax.text(CENTRE, CENTRE - 0.75, "centre, [4, 4]", ha="center", color="0.3", fontsize=8)
    ax.text(CENTRE + dx - 0.2, CENTRE + dy + 0.85, f"shift_px = ({dy}, {dx})", ha="center", color=RED, fontsize=8)
    ax.set(xlabel="x, second index", ylabel="y, first index", title="image[y, x], box 8\ncontent moves by +shift_px")


def draw_half_plane(ax: Axes) -> None:
    """The coefficients that a half-plane keeps."""
    half_plane = HalfPlane.within(BOX)
    values = torch.zeros(BOX, BOX)
    kx, ky = half_plane.k.long().T
    values[ky + CENTRE, kx + CENTRE] = 1.2
    cells(ax, values, -CENTRE)
    ax.plot(0, 0, "o", color=RED, markersize=4)
    ax.set(
        xlabel="kx, cycles per box", ylabel="ky, cycles per box", title=f"half-plane, box 8\n{len(half_plane)} of 64 coefficients"
    )


def main() -> None:
    figure = Figure(figsize=(11.5, 4.0), dpi=130, layout="constrained")
    draw_rotation(figure.add_subplot(1, 3, 1, projection="3d"))
    draw_shift(figure.add_subplot(1, 3, 2))
    draw_half_plane(figure.add_subplot(1, 3, 3))
    target = Path(__file__).parent / "img" / "axes.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)


if __name__ == "__main__":
    main()
