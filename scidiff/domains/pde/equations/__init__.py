"""Evolution equations on periodic boxes, one a file, and the pseudo-spectral solver that integrates them.

`EQUATIONS` maps the names of the command line to classes. A new equation is a new file with a frozen dataclass (see
`equation.py` for what it has to say), and a line here.
"""

from __future__ import annotations

from scidiff.domains.pde.equations.advection_diffusion import AdvectionDiffusion
from scidiff.domains.pde.equations.allen_cahn import AllenCahn
from scidiff.domains.pde.equations.burgers import Burgers
from scidiff.domains.pde.equations.chaos import laminar, lyapunov
from scidiff.domains.pde.equations.equation import Equation, Typical
from scidiff.domains.pde.equations.gray_scott import GrayScott
from scidiff.domains.pde.equations.korteweg_de_vries import KortewegDeVries
from scidiff.domains.pde.equations.kuramoto_sivashinsky import KuramotoSivashinsky
from scidiff.domains.pde.equations.navier_stokes import NavierStokes2d
from scidiff.domains.pde.equations.spectral import BlowUp, SpectralSolver

EQUATIONS: dict[str, type[Equation]] = {
    cls.name: cls for cls in (AdvectionDiffusion, AllenCahn, Burgers, GrayScott, KortewegDeVries, KuramotoSivashinsky,
                              NavierStokes2d)
}

__all__ = [
    "EQUATIONS", "AdvectionDiffusion", "AllenCahn", "BlowUp", "Burgers", "Equation", "GrayScott", "KortewegDeVries",
    "KuramotoSivashinsky", "NavierStokes2d", "SpectralSolver", "Typical", "laminar", "lyapunov",
]
