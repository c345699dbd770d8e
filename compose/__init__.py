"""Terms, the algebra over them, kernels and samplers."""

from boltzmix.compose.adaptation import BlockAdaptation, ChEES, Microcanonical, Temperatures, Windows, window_adaptation
from boltzmix.compose.box import Box
from boltzmix.compose.calibration import calibrate
from boltzmix.compose.callables import term
from boltzmix.compose.canvas import Canvas
from boltzmix.compose.compiled import compile_kernel
from boltzmix.compose.constraints import Clamp, Denoised, Geometric, bounded_negation
from boltzmix.compose.crops import Window
from boltzmix.compose.diagnostics import autocorrelation, bfmi, ess, mcse, rhat
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import (
    CompileError,
    MissingEnergy,
    MissingExtra,
    NonFinite,
    NotNormalizable,
    SamplingWarning,
    ScopeError,
)
from boltzmix.compose.exponent import Exponent
from boltzmix.compose.flat import ravel
from boltzmix.compose.gaussian import Gaussian, GaussianMixture
from boltzmix.compose.kernels import (
    GHMC,
    HMC,
    MALA,
    NUTS,
    UHMC,
    ULA,
    Barker,
    BlockGibbs,
    DiscreteLangevin,
    EllipticalSlice,
    Gibbs,
    GibbsWithGradients,
    MicrocanonicalLangevin,
    ParallelTempering,
    RandomWalk,
    Underdamped,
)
from boltzmix.compose.measurements import Measurement
from boltzmix.compose.mixture import mixture
from boltzmix.compose.product import guidance, negation, product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.exact import Exact
from boltzmix.compose.samplers.fkc import FKC
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC, Annealed
from boltzmix.compose.samplers.superdiff import SuperDiff
from boltzmix.compose.samplers.twisted import Twisted
from boltzmix.compose.term import Normalized, Term
from boltzmix.compose.variable import Variable, integers
from boltzmix.compose.wrappers import affine

__all__ = [
    "AIS",
    "FKC",
    "GHMC",
    "HMC",
    "MALA",
    "MCMC",
    "NUTS",
    "SMC",
    "UHMC",
    "ULA",
    "Annealed",
    "Barker",
    "BlockAdaptation",
    "BlockGibbs",
    "Box",
    "Canvas",
    "ChEES",
    "Clamp",
    "CompileError",
    "Denoised",
    "DiscreteLangevin",
    "Draw",
    "EllipticalSlice",
    "Exact",
    "Exponent",
    "Gaussian",
    "GaussianMixture",
    "Geometric",
    "Gibbs",
    "GibbsWithGradients",
    "Measurement",
    "Microcanonical",
    "MicrocanonicalLangevin",
    "MissingEnergy",
    "MissingExtra",
    "NonFinite",
    "Normalized",
    "NotNormalizable",
    "ParallelTempering",
    "RandomWalk",
    "Reverse",
    "SamplingWarning",
    "ScopeError",
    "SuperDiff",
    "Temperatures",
    "Term",
    "Twisted",
    "Underdamped",
    "Variable",
    "Window",
    "Windows",
    "affine",
    "autocorrelation",
    "bfmi",
    "bounded_negation",
    "calibrate",
    "compile_kernel",
    "ess",
    "guidance",
    "integers",
    "mcse",
    "mixture",
    "negation",
    "product",
    "ravel",
    "rhat",
    "sample",
    "term",
    "window_adaptation",
]
