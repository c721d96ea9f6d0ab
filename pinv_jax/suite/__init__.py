"""Named inverse problems: forward map, prior, noise, sizes, tolerances and recipes; one file each.

Adding one: a file with an `InverseProblem`, or with a `Study` that has tables of its own, and a line in `PROBLEMS`.
"""

from collections.abc import Mapping

from ._ablation import ABLATION as ABLATION
from ._advection_diffusion2d import ADVECTION_DIFFUSION2D as ADVECTION_DIFFUSION2D
from ._allen_cahn2d import ALLEN_CAHN2D as ALLEN_CAHN2D
from ._attributes import ATTRIBUTES_STUDY as ATTRIBUTES
from ._base import SOLVER_NAMES as SOLVER_NAMES
from ._base import Dataset as Dataset
from ._base import InverseProblem as InverseProblem
from ._base import Recipe as Recipe
from ._base import Row as Row
from ._base import make_dataset as make_dataset
from ._base import mean_estimate as mean_estimate
from ._base import observed_row as observed_row
from ._base import ridge_estimate as ridge_estimate
from ._darcy2d import DARCY2D as DARCY2D
from ._digits_spnn import DIGITS_SPNN as DIGITS_SPNN
from ._folder import Options as Options
from ._heat1d import HEAT1D as HEAT1D
from ._heat1d_workshop import HEAT1D_WORKSHOP as HEAT1D_WORKSHOP
from ._heat2d import HEAT2D as HEAT2D
from ._heat3d import HEAT3D as HEAT3D
from ._imitate import IMITATE as IMITATE
from ._lens import LENS as LENS
from ._lifted_autoencoder import LIFTED_AUTOENCODER as LIFTED_AUTOENCODER
from ._lifted_autoencoder import autoencoder_study as autoencoder_study
from ._lifted_denoise import LIFTED_DENOISE as LIFTED_DENOISE
from ._lifted_perceptron import LIFTED_PERCEPTRON as LIFTED_PERCEPTRON
from ._lifted_pnn import LIFTED_PNN as LIFTED_PNN
from ._lifted_ptychography import LIFTED_PTYCHOGRAPHY as LIFTED_PTYCHOGRAPHY
from ._lifted_resnet import LIFTED_RESNET as LIFTED_RESNET
from ._lifted_shallow import LIFTED_SHALLOW as LIFTED_SHALLOW
from ._mixed import MIXED_CONSTRAINTS as MIXED_CONSTRAINTS
from ._navier_stokes2d import NAVIER_STOKES2D as NAVIER_STOKES2D
from ._oscillator import OSCILLATOR as OSCILLATOR
from ._psf import PSF as PSF
from ._report import format_table as format_table
from ._restore_features import RESTORE_FEATURES as RESTORE_FEATURES
from ._restore_logits import RESTORE_LOGITS as RESTORE_LOGITS
from ._run import run as run
from ._science import SCIENCE_DARCY as SCIENCE_DARCY
from ._science import SCIENCE_VORTICITY as SCIENCE_VORTICITY
from ._shift import SHIFT as SHIFT
from ._study import Bench as Bench
from ._study import Findings as Findings
from ._study import Study as Study
from ._style_reversal import STYLE_REVERSAL as STYLE_REVERSAL

PROBLEMS: Mapping[str, InverseProblem | Study] = {
    problem.name: problem
    for problem in (
        HEAT1D,
        HEAT1D_WORKSHOP,
        HEAT2D,
        HEAT3D,
        OSCILLATOR,
        DARCY2D,
        ADVECTION_DIFFUSION2D,
        ALLEN_CAHN2D,
        NAVIER_STOKES2D,
        ABLATION,
        SHIFT,
        DIGITS_SPNN,
        LENS,
        IMITATE,
        PSF,
        LIFTED_AUTOENCODER,
        LIFTED_DENOISE,
        LIFTED_PNN,
        LIFTED_PERCEPTRON,
        LIFTED_SHALLOW,
        LIFTED_RESNET,
        LIFTED_PTYCHOGRAPHY,
        RESTORE_LOGITS,
        RESTORE_FEATURES,
        ATTRIBUTES,
        MIXED_CONSTRAINTS,
        STYLE_REVERSAL,
        SCIENCE_DARCY,
        SCIENCE_VORTICITY,
    )
}
"""Every problem by name."""
