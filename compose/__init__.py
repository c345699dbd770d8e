"""Terms, the algebra over them, kernels and samplers."""

from boltzmix.compose.box import Box
from boltzmix.compose.calibration import calibrate
from boltzmix.compose.callables import term
from boltzmix.compose.constraints import Clamp, Denoised, Geometric, bounded_negation
from boltzmix.compose.diagnostics import ess, rhat
from boltzmix.compose.draw import Draw
from boltzmix.compose.errors import (
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
from boltzmix.compose.kernels import HMC, MALA, UHMC, ULA
from boltzmix.compose.mixture import mixture
from boltzmix.compose.product import guidance, negation, product
from boltzmix.compose.sample import sample
from boltzmix.compose.samplers.exact import Exact
from boltzmix.compose.samplers.mcmc import MCMC
from boltzmix.compose.samplers.reverse import Reverse
from boltzmix.compose.samplers.smc import AIS, SMC, Annealed
from boltzmix.compose.term import Normalized, Term
from boltzmix.compose.variable import Variable, integers
from boltzmix.compose.wrappers import affine

__all__ = [
    "AIS",
    "HMC",
    "MALA",
    "MCMC",
    "SMC",
    "UHMC",
    "ULA",
    "Annealed",
    "Box",
    "Clamp",
    "Denoised",
    "Draw",
    "Exponent",
    "Gaussian",
    "GaussianMixture",
    "Geometric",
    "MissingEnergy",
    "MissingExtra",
    "NonFinite",
    "Normalized",
    "NotNormalizable",
    "Exact",
    "Reverse",
    "SamplingWarning",
    "ScopeError",
    "Term",
    "Variable",
    "affine",
    "bounded_negation",
    "calibrate",
    "ess",
    "guidance",
    "integers",
    "mixture",
    "negation",
    "product",
    "ravel",
    "rhat",
    "sample",
    "term",
]
