"""Films of what happens in an environment, as mp4 or GIF, without a screen.

MuJoCo renders on the GPU or in software through EGL, or in software through OSMesa; which of them works depends on the
machine. :func:`backend` tries them in this order, each in a process of its own, since a library that fails to load
cannot be tried again otherwise. Where neither works a drawing from above by matplotlib takes their place; what was used
is in ``Recorder.backend`` and, where it is not what was asked for, ``Recorder.reason`` says why.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzmix.compose.errors import MissingExtra
from boltzmix.planners.environments.base import Environment

if TYPE_CHECKING:
    import numpy as np

_PROBE = "import mujoco; mujoco.GLContext(32, 32).make_current()"


@functools.cache
def backend() -> tuple[str | None, str]:
    """The first renderer that works here, "egl" or "osmesa", or None; and what went wrong with the others.

    Sets ``MUJOCO_GL`` to it. A ``MUJOCO_GL`` that is set already is the only one tried.
    """
    wanted = os.environ.get("MUJOCO_GL")
    failures = []
    for name in (wanted,) if wanted else ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": name}
        ended = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, check=False)
        if ended.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return name, "; ".join(failures)
        lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        failures.append(f"{name}: {lines[-1][:160]}")
    return None, "; ".join(failures)


class Recorder:
    """Takes a frame of an environment as often as ``fps`` needs, and writes the film when the context ends.

    Args:
        environment: that is filmed; its ``step`` and ``reset`` take the frames.
        path: ends in .mp4 or .gif.
        fps: frames per second of the film, which runs at the environment's own speed.
        view: "camera" renders with MuJoCo, "top" draws from above.
        size: width and height in pixels, multiples of 16 for mp4.

    Attributes:
        backend: "egl", "osmesa" or "top", what the frames were made with.
        reason: why it is not the camera that was asked for; empty if it is.
        frames: how many were taken.

    Raises:
        MissingExtra: imageio is not installed.
        ValueError: another ending, another view, an environment that is being filmed already.
    """

    def __init__(
        self,
        environment: Environment,
        path: str | os.PathLike[str],
        *,
        fps: int = 25,
        view: str = "camera",
        size: tuple[int, int] = (320, 320),
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".mp4", ".gif"):
            raise ValueError(f"a film is an .mp4 or a .gif, got {self.path.name!r}")
        if view not in ("camera", "top"):
            raise ValueError(f'view is "camera" or "top", got {view!r}')
        if environment._recorder is not None:
            raise ValueError("this environment is being filmed already")
        try:
            import imageio.v2  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra('films need imageio: pip install "boltzmix[planning]"') from error
        self.environment, self.fps, self.size = environment, fps, size
        self.every = max(1, round(1.0 / (fps * environment.dt)))
        self.backend, self.reason = "top", ""
        if view == "camera":
            if environment.env is None:
                self.reason = f"{environment.name} has no simulator with a camera"
            else:
                works, self.reason = backend()
                self.backend = works or "top"
        self._frames: list[Any] = []
        self._trail: list[tuple[float, float]] = []
        self._steps = 0

    @property
    def frames(self) -> int:
        """How many frames were taken."""
        return len(self._frames)

    def __enter__(self) -> "Recorder":
        self.environment._recorder = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.environment._recorder = None
        if kind is None:
            self.write()

    def step(self) -> None:
        """What the environment calls after each of its steps."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.take()

    def take(self) -> None:
        """Take a frame now."""
        state = self.environment.state
        if self.environment.steps == 0:
            self._trail = []
        self._trail.append((float(state[0]), float(state[1])))
        if self.backend != "top":
            try:
                self._frames.append(self.environment.env.render())
                return
            except Exception as error:  # whatever a graphics library raises
                if self._frames:
                    raise
                self.reason = f"{self.backend}: {type(error).__name__}: {error}"
                self.backend = "top"
        self._frames.append(top_view(self.environment, self._trail, self.size))

    def write(self) -> Path:
        """Write the film; its path.

        Raises:
            ValueError: no frames, since nothing was reset or stepped.
        """
        if not self._frames:
            raise ValueError("no frames were taken: call reset and step inside the context")
        import imageio.v2 as imageio  # pyright: ignore[reportMissingImports]

        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}{self.path.suffix}")
        fps = 1.0 / (self.every * self.environment.dt)
        options: dict[str, Any] = {"fps": fps, "macro_block_size": 16} if self.path.suffix.lower() == ".mp4" else {}
        options = options or {"duration": 1000.0 / fps, "loop": 0}
        try:
            library: Any = imageio
            library.mimsave(temporary, self._frames, **options)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.path


def top_view(
    environment: Environment, trail: list[tuple[float, float]] | None = None, size: tuple[int, int] = (320, 320)
) -> "np.ndarray":
    """The environment from above, uint8 ``(height, width, 3)``: walls, the ball, where it was, and the goal."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for obstacle in environment.obstacles:
        axes.add_patch(obstacle.patch(environment.steps * environment.dt, color="#8a8f98"))
    state, goal, radius = environment.state, environment.goal, environment.radius
    if trail:
        axes.plot(*zip(*trail, strict=True), color="#2f6fb2", linewidth=1.0)
    axes.add_patch(Circle(goal, environment.goal_radius, color="#c8553d", alpha=0.25))
    axes.plot(goal[0], goal[1], marker="*", color="#c8553d", markersize=8)
    axes.add_patch(Circle((float(state[0]), float(state[1])), radius, color="#1d3f66"))
    (x_low, x_high), (y_low, y_high) = environment.bounds
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high), aspect="equal")
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
