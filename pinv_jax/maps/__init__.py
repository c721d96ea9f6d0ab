"""Maps `x -> y` on single examples, and their exact inverses.

- `AbstractMap`, `AbstractSurjection`: what a map is; a surjection has an exact right inverse `pinv`.
- `prepare`: computes once what depends on the parameters of a model alone.
- `LinearMap`, `LinearSurjection`: any `lineax` operator or matrix, with its Moore-Penrose pseudo-inverse.
- `LeakyReLU`, `MirrorLeakyReLU`, `LeakyTanh`, `CubicSine`, `Affine`: invertible elementwise maps.
- `Chain`, `SurjectiveChain`: compositions.
- `Linear`, `MLP`, `LinearSkipMLP`: trainable networks; `kaiming_uniform`, `ACTIVATIONS`: their parts.
- `Normalised`, `Ravelled`: z-scored inputs and outputs; pytrees seen as flat arrays.
- `Stored`, `store`, `unstore`: a callable kept as a valid pytree.
"""

from ._base import AbstractMap as AbstractMap
from ._base import AbstractSurjection as AbstractSurjection
from ._base import Stored as Stored
from ._base import prepare as prepare
from ._base import store as store
from ._base import unstore as unstore
from ._chain import Chain as Chain
from ._chain import SurjectiveChain as SurjectiveChain
from ._linear import LinearMap as LinearMap
from ._linear import LinearSurjection as LinearSurjection
from ._networks import ACTIVATIONS as ACTIVATIONS
from ._networks import MLP as MLP
from ._networks import Linear as Linear
from ._networks import LinearSkipMLP as LinearSkipMLP
from ._networks import kaiming_uniform as kaiming_uniform
from ._pointwise import AbstractPointwise as AbstractPointwise
from ._pointwise import Affine as Affine
from ._pointwise import CubicSine as CubicSine
from ._pointwise import LeakyReLU as LeakyReLU
from ._pointwise import LeakyTanh as LeakyTanh
from ._pointwise import MirrorLeakyReLU as MirrorLeakyReLU
from ._wrappers import Normalised as Normalised
from ._wrappers import Ravelled as Ravelled
