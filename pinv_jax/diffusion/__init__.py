"""Restoration without training for it: a diffusion prior proposes, back-projection puts it onto the observation.

- `Prior`: a network that tells an image from its noise, with the schedule of the noise: `LinearSchedule`,
  `CosineSchedule`, `ContinuousLinearSchedule`, `ContinuousCosineSchedule`, or an `AbstractSchedule` of your own.
- `DenoisingUNet`, the network of DDPM, and `flax_denoiser`, any of flax; `fit_prior` trains either, or another
  callable, with averaged weights. `io.load_ddpm` reads published weights.
- `tiled`: a prior of small images as one of large ones. `gaussian_prior`, `mixture_prior`: priors known in closed form.
- `sample`: one image, by `DDPM`, `DDIM`, `DDNM` (with time travel), `ProbabilityFlow` (an ODE) or `FixedPoint` (to a
  tolerance), from noise or from a `Start`.
- `restore`: samples of all images that an observation leaves possible, for a surjection, any callable, or pairs; also
  with a `GeneratorPrior`. It returns a `Restoration`.
- Guides, `guide(denoise, x_t, t, key) -> x0_hat`: `project_after` (non-linear back-projection, onto one or several
  surjections), `project_after_interval` (onto boxes), `published_guide`; the baselines `LinearBackProjection`,
  `ProjectNoisy`, and through the derivative of the network `DPS` and `PiGDM`.
  `step_at` and `sigmoid_within` are the published step sizes and stop; `AbstractGuide` is what a guide may be.
"""

from ._exact import gaussian_prior as gaussian_prior
from ._exact import mixture_prior as mixture_prior
from ._flax import flax_denoiser as flax_denoiser
from ._flow import FixedPoint as FixedPoint
from ._flow import ProbabilityFlow as ProbabilityFlow
from ._gradient_guides import DPS as DPS
from ._gradient_guides import PiGDM as PiGDM
from ._guides import AbstractGuide as AbstractGuide
from ._guides import LinearBackProjection as LinearBackProjection
from ._guides import ProjectNoisy as ProjectNoisy
from ._guides import project_after as project_after
from ._guides import project_after_interval as project_after_interval
from ._guides import published_guide as published_guide
from ._guides import sigmoid_within as sigmoid_within
from ._guides import step_at as step_at
from ._prior import Denoise as Denoise
from ._prior import Prior as Prior
from ._restore import GeneratorPrior as GeneratorPrior
from ._restore import Restoration as Restoration
from ._restore import restore as restore
from ._sample import Start as Start
from ._sample import sample as sample
from ._samplers import DDIM as DDIM
from ._samplers import DDNM as DDNM
from ._samplers import DDPM as DDPM
from ._samplers import AbstractSampler as AbstractSampler
from ._schedules import AbstractContinuousSchedule as AbstractContinuousSchedule
from ._schedules import AbstractDiscreteSchedule as AbstractDiscreteSchedule
from ._schedules import AbstractSchedule as AbstractSchedule
from ._schedules import ContinuousCosineSchedule as ContinuousCosineSchedule
from ._schedules import ContinuousLinearSchedule as ContinuousLinearSchedule
from ._schedules import CosineSchedule as CosineSchedule
from ._schedules import LinearSchedule as LinearSchedule
from ._tiled import tiled as tiled
from ._train import denoising as denoising
from ._train import fit_prior as fit_prior
from ._unet import DenoisingUNet as DenoisingUNet
