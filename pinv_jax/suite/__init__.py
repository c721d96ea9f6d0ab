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
from ._priors import PRIORS as PRIORS
from ._priors import TrainedPrior as TrainedPrior
from ._priors import trained_prior as trained_prior
from ._psf import PSF as PSF
from ._report import format_table as format_table
from ._restoration import Degradation as Degradation
from ._restoration import Observation as Observation
from ._restoration import Task as Task
from ._restoration import restoration_study as restoration_study
from ._restore_blind import RESTORE_BLIND as RESTORE_BLIND
from ._restore_coefficients import RESTORE_JPEG as RESTORE_JPEG
from ._restore_coefficients import RESTORE_LINEAR as RESTORE_LINEAR
from ._restore_features import RESTORE_FEATURES as RESTORE_FEATURES
from ._restore_learned import RESTORE_CODEC as RESTORE_CODEC
from ._restore_learned import RESTORE_PAIRS as RESTORE_PAIRS
from ._restore_logits import RESTORE_LOGITS as RESTORE_LOGITS
from ._restore_optics import RESTORE_BLUR as RESTORE_BLUR
from ._restore_optics import RESTORE_CLIP as RESTORE_CLIP
from ._restore_optics import RESTORE_FISHEYE as RESTORE_FISHEYE
from ._restore_physics import RESTORE_COLOUR as RESTORE_COLOUR
from ._restore_physics import RESTORE_CT as RESTORE_CT
from ._restore_picture import DEGRADATIONS as DEGRADATIONS
from ._restore_picture import restore_picture as restore_picture
from ._restore_video import RESTORE_VIDEO as RESTORE_VIDEO
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
        RESTORE_BLUR,
        RESTORE_FISHEYE,
        RESTORE_JPEG,
        RESTORE_CLIP,
        RESTORE_LINEAR,
        RESTORE_PAIRS,
        RESTORE_BLIND,
        RESTORE_CT,
        RESTORE_COLOUR,
        RESTORE_CODEC,
        RESTORE_VIDEO,
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
