"""Denoiser -> samples: one file a family, and the one loop that walks a grid of times."""

from undiffuse.samplers import grid
from undiffuse.samplers.adaptive import Adaptive
from undiffuse.samplers.ancestral import Ancestral
from undiffuse.samplers.base import Sampler, State, sample, walk
from undiffuse.samplers.churn import Churn
from undiffuse.samplers.consistency import Consistency
from undiffuse.samplers.ddim import DDIM
from undiffuse.samplers.ddpm import DDPM
from undiffuse.samplers.euler_maruyama import EulerMaruyama
from undiffuse.samplers.grid import GRIDS
from undiffuse.samplers.langevin import Langevin
from undiffuse.samplers.linear import LinearSampler
from undiffuse.samplers.multistep import DEIS, IPNDM, LMS, Adams, DPMSolver, DPMSolverPlusPlus, UniPC
from undiffuse.samplers.names import SAMPLERS, named, understand
from undiffuse.samplers.pndm import PNDM
from undiffuse.samplers.restart import Restart
from undiffuse.samplers.single_step import DPMSolverPlusPlusSingle, DPMSolverSingle, Euler, Heun, Midpoint

__all__ = [
    "DDIM", "DDPM", "DEIS", "GRIDS", "IPNDM", "LMS", "PNDM", "SAMPLERS", "Adams", "Adaptive", "Ancestral", "Churn",
    "Consistency", "DPMSolver", "DPMSolverPlusPlus", "DPMSolverPlusPlusSingle", "DPMSolverSingle", "Euler",
    "EulerMaruyama", "Heun", "Langevin", "LinearSampler", "Midpoint", "Restart", "Sampler", "State", "UniPC", "grid",
    "named", "sample", "understand", "walk",
]  # fmt: skip
