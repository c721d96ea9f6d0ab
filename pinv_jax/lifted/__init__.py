"""Lifted Bregman training and inversion: networks of proximal activations, never differentiating the activations.

Activations, each a proximal map with its potential, conjugate, Bregman penalty, proximal maps and domain: `Identity`,
`ReLU`, `LeakyReLU`, `SoftThreshold`, `Clip`, `Tanh`, `Sigmoid`, `ELU`, `Softplus`, `Softmax`, `BlockSoftThreshold`,
`BallProjection`, `Projection`, `Product`. `as_activation` recognises the functions of jax, `ACTIVATIONS` has the names;
`AbstractActivation` and `AbstractEntrywise` are for your own; `check_proximal` searches for what forbids it.

Penalties between the state of a layer and its preactivation: `Bregman`, `MACQP`, `ClassicalLifted`.

Theory: `error_bound` with its term `burbea_rao`, `alpha_from_noise`, `bregman_noise_level`, `bregman_distance`,
`source_element`; for residual networks `convexity_certificate`, `certificate_matrix`, `smallest_rho`.

Networks: `wrap` an ordinary network as a `LiftedNetwork` of `Layer`s, and `unwrap` it after training; `ResidualBlock`
for use in an `eqx.nn.Sequential`; `proximal_network`, an unfolded denoiser of `DualStep`s. `penalties` and
`feasibility` say how far given states are from those of the network.

Training: the stages `ImplicitGradient` and `BlockDescent` of `learn.fit`; by back-propagation on the same losses, the
term `network_loss` and the stage `ImplicitBackprop`.

Inversion of a `Perceptron`, by `pinv_jax.solve`: `FullSplitting` and `ExplicitPrimalDual`, with the regularisers `L1`,
`HalfSquaredNorm`, `TotalVariation`, `Box`, `Proximal` of your own, and their sums. `admissible_data` is what they fit,
`dual_variable` what they know at the end, `alpha_by_discrepancy` finds the weight. `total_variation_prox` denoises.

Inversion of more than one layer: `ShallowDescent` for a `ShallowNetwork` (`shallow_interpolant` makes one of a scalar
function), `ResidualSplitting` for a `ResidualFlow`, `BlockInversion` for any `LiftedNetwork`. To compare with, through
back-propagation: `VariationalDescent`. `BregmanIteration` of any of these but the first two stops at the noise.
"""

from ._activations import ACTIVATIONS as ACTIVATIONS
from ._activations import ELU as ELU
from ._activations import AbstractActivation as AbstractActivation
from ._activations import AbstractEntrywise as AbstractEntrywise
from ._activations import BallProjection as BallProjection
from ._activations import BlockSoftThreshold as BlockSoftThreshold
from ._activations import Clip as Clip
from ._activations import Identity as Identity
from ._activations import LeakyReLU as LeakyReLU
from ._activations import Product as Product
from ._activations import Projection as Projection
from ._activations import ReLU as ReLU
from ._activations import Sigmoid as Sigmoid
from ._activations import Softmax as Softmax
from ._activations import Softplus as Softplus
from ._activations import SoftThreshold as SoftThreshold
from ._activations import Tanh as Tanh
from ._activations import as_activation as as_activation
from ._backprop import ImplicitBackprop as ImplicitBackprop
from ._backprop import network_loss as network_loss
from ._block_descent import BlockDescent as BlockDescent
from ._bregman_iteration import BregmanIteration as BregmanIteration
from ._check_proximal import check_proximal as check_proximal
from ._explicit_primal_dual import ExplicitPrimalDual as ExplicitPrimalDual
from ._full_splitting import FullSplitting as FullSplitting
from ._functionals import L1 as L1
from ._functionals import AbstractRegulariser as AbstractRegulariser
from ._functionals import Box as Box
from ._functionals import HalfSquaredNorm as HalfSquaredNorm
from ._functionals import Proximal as Proximal
from ._functionals import TotalVariation as TotalVariation
from ._implicit_gradient import ImplicitGradient as ImplicitGradient
from ._invert_deep import BlockInversion as BlockInversion
from ._invert_residual import ResidualFlow as ResidualFlow
from ._invert_residual import ResidualSplitting as ResidualSplitting
from ._invert_shallow import ShallowDescent as ShallowDescent
from ._invert_shallow import ShallowNetwork as ShallowNetwork
from ._invert_shallow import shallow_interpolant as shallow_interpolant
from ._network import Layer as Layer
from ._network import LiftedNetwork as LiftedNetwork
from ._network import feasibility as feasibility
from ._network import operator_norm as operator_norm
from ._network import penalties as penalties
from ._parameter_choice import AlphaChoice as AlphaChoice
from ._parameter_choice import alpha_by_discrepancy as alpha_by_discrepancy
from ._parameter_choice import expected_noise_level as expected_noise_level
from ._penalties import MACQP as MACQP
from ._penalties import AbstractPenalty as AbstractPenalty
from ._penalties import Bregman as Bregman
from ._penalties import ClassicalLifted as ClassicalLifted
from ._perceptron import Perceptron as Perceptron
from ._perceptron import admissible_data as admissible_data
from ._perceptron import dual_variable as dual_variable
from ._proximal_network import DualStep as DualStep
from ._proximal_network import proximal_network as proximal_network
from ._quadratic import VariationalDescent as VariationalDescent
from ._theory import Certificate as Certificate
from ._theory import alpha_from_noise as alpha_from_noise
from ._theory import bregman_distance as bregman_distance
from ._theory import bregman_noise_level as bregman_noise_level
from ._theory import burbea_rao as burbea_rao
from ._theory import certificate_matrix as certificate_matrix
from ._theory import convexity_certificate as convexity_certificate
from ._theory import error_bound as error_bound
from ._theory import general_certificate_matrix as general_certificate_matrix
from ._theory import residual_operators as residual_operators
from ._theory import smallest_eigenvalue as smallest_eigenvalue
from ._theory import smallest_rho as smallest_rho
from ._theory import source_element as source_element
from ._total_variation import Denoised as Denoised
from ._total_variation import total_variation_prox as total_variation_prox
from ._wrap import ResidualBlock as ResidualBlock
from ._wrap import unwrap as unwrap
from ._wrap import wrap as wrap
