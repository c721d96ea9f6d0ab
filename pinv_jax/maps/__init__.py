"""Maps `x -> y` on single examples, and their exact inverses.

- `AbstractMap`, `AbstractSurjection`: what a map is; a surjection has an exact right inverse `pinv`.
- `prepare`, `unprepare`: compute once, and drop, what depends on the parameters of a model alone.
- `LinearMap`, `LinearSurjection`: any `lineax` operator or matrix, with its Moore-Penrose pseudo-inverse;
  `DenseSurjection`: the same between arrays of any shapes.
- `OperatorSurjection`, `AbstractOperatorSurjection`: linear surjections that are only ever applied, never formed.
- `Downsample`, `Separable`, `VaryingBlur`, `Resample`, `fisheye`: degradations of images, exact linear surjections.
- `BlockDCT`, `frequency_steps`: what compression rounds, and how coarsely.
- `ParallelBeam`, `BeerLambert`: computed tomography, the mass along strips and the light that is left.
- `blurring_camera`: Gaussian point spread `GaussianBlur`, sensor curve `SigmoidSensor` and pooling; `linear_camera`
  has no sensor curve.
- `NullSpace`: adds any network of the null-space coordinates; `Expand`: makes any map a surjection.
- `Stack`, `Parallel`: several outputs of one unknown with an exact joint pseudo-inverse.
- `Joint`: several observations of one unknown as one map, without a joint inverse; see `solvers.CyclicProjection`.
- `LeakyReLU`, `MirrorLeakyReLU`, `LeakyTanh`, `CubicSine`, `Gamma`, `Affine`: invertible elementwise maps.
- `Chain`, `SurjectiveChain`: compositions.
- `SurjectiveCoupling`: keeps some channels, scaled and shifted by networks of the rest; `sections`: its section nets.
- `Natural`: a surjection with its natural pseudo-inverse, in closed form.
- `Cayley`, `MatrixExponential`, `Householder`, `FixedOrthogonal`: orthogonal mixing of channels or patches.
- `PixelUnshuffle`, `Flatten`: reshapings.
- `spnn`: a surjective pseudo-invertible network from steps `Unshuffle`, `Block`, `Ravel`; `plan` writes the steps for
  any shapes, `published_steps` and `published_spnn` are the published ones.
- `ConvNet`: the inner net of couplings; `ConvDesign`, `AdaptiveDesign`: how it looks, as a value; `torch_names`: what
  its parameters are called in PyTorch.
- `AdditiveCoupling`, `AffineCoupling`, `ResidualBlock`: trainable bijections; `invertible_network` builds a network,
  `Centred` subtracts its value at zero, `log_det` is its log-determinant.
- `Linear`, `MLP`, `LinearSkipMLP`: trainable networks; `kaiming_uniform`, `ACTIVATIONS`: their parts.
- `ResidualCNN`: a residual convolutional network of fields in one, two or three dimensions.
- `UNet`: down to coarser grids and up again, with skips.
- `from_flax`: a network written in flax, linen or nnx, as a map; `FlaxMap`: what it returns.
- `Normalised`, `Ravelled`: z-scored inputs and outputs; pytrees seen as flat arrays.
- `Stored`, `store`, `unstore`: a callable kept as a valid pytree.
"""

from ._base import AbstractMap as AbstractMap
from ._base import AbstractSurjection as AbstractSurjection
from ._base import Stored as Stored
from ._base import prepare as prepare
from ._base import store as store
from ._base import unprepare as unprepare
from ._base import unstore as unstore
from ._bijection import AbstractBijection as AbstractBijection
from ._block_dct import BlockDCT as BlockDCT
from ._block_dct import frequency_steps as frequency_steps
from ._chain import Chain as Chain
from ._chain import SurjectiveChain as SurjectiveChain
from ._convnets import AdaptiveDesign as AdaptiveDesign
from ._convnets import ConvDesign as ConvDesign
from ._convnets import ConvNet as ConvNet
from ._convnets import torch_names as torch_names
from ._coupling import SurjectiveCoupling as SurjectiveCoupling
from ._coupling import sections as sections
from ._expand import Expand as Expand
from ._flax import FlaxMap as FlaxMap
from ._flax import from_flax as from_flax
from ._imaging import GaussianBlur as GaussianBlur
from ._imaging import SigmoidSensor as SigmoidSensor
from ._imaging import blurring_camera as blurring_camera
from ._imaging import linear_camera as linear_camera
from ._invertible import AdditiveCoupling as AdditiveCoupling
from ._invertible import AffineCoupling as AffineCoupling
from ._invertible import Centred as Centred
from ._invertible import invertible_network as invertible_network
from ._invertible import log_det as log_det
from ._joint import Joint as Joint
from ._linear import DenseSurjection as DenseSurjection
from ._linear import LinearMap as LinearMap
from ._linear import LinearSurjection as LinearSurjection
from ._natural import Natural as Natural
from ._networks import ACTIVATIONS as ACTIVATIONS
from ._networks import MLP as MLP
from ._networks import Linear as Linear
from ._networks import LinearSkipMLP as LinearSkipMLP
from ._networks import kaiming_uniform as kaiming_uniform
from ._nullspace import NullSpace as NullSpace
from ._operator import AbstractOperatorSurjection as AbstractOperatorSurjection
from ._operator import OperatorSurjection as OperatorSurjection
from ._optics import Downsample as Downsample
from ._optics import Resample as Resample
from ._optics import Separable as Separable
from ._optics import VaryingBlur as VaryingBlur
from ._optics import fisheye as fisheye
from ._orthogonal import AbstractOrthogonal as AbstractOrthogonal
from ._orthogonal import Cayley as Cayley
from ._orthogonal import FixedOrthogonal as FixedOrthogonal
from ._orthogonal import Householder as Householder
from ._orthogonal import MatrixExponential as MatrixExponential
from ._plans import Block as Block
from ._plans import Ravel as Ravel
from ._plans import Unshuffle as Unshuffle
from ._plans import plan as plan
from ._plans import published_spnn as published_spnn
from ._plans import published_steps as published_steps
from ._plans import spnn as spnn
from ._pointwise import AbstractPointwise as AbstractPointwise
from ._pointwise import Affine as Affine
from ._pointwise import CubicSine as CubicSine
from ._pointwise import Gamma as Gamma
from ._pointwise import LeakyReLU as LeakyReLU
from ._pointwise import LeakyTanh as LeakyTanh
from ._pointwise import MirrorLeakyReLU as MirrorLeakyReLU
from ._reshape import AbstractReshape as AbstractReshape
from ._reshape import Flatten as Flatten
from ._reshape import PixelUnshuffle as PixelUnshuffle
from ._residual import ResidualBlock as ResidualBlock
from ._residual_cnn import ResidualCNN as ResidualCNN
from ._stack import AbstractHeads as AbstractHeads
from ._stack import Parallel as Parallel
from ._stack import Stack as Stack
from ._tomography import BeerLambert as BeerLambert
from ._tomography import ParallelBeam as ParallelBeam
from ._unet import UNet as UNet
from ._wrappers import Normalised as Normalised
from ._wrappers import Ravelled as Ravelled
