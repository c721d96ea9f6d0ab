"""Fitting forward surrogates and learned inverses.

Models: `InversePair`, and the single-layer `Deceptron` of the workshop paper.

Loop: `fit` runs `Stage`s made of `Term`s; `Gated` is a weight that waits for a condition. Another kind of training is
an `AbstractStage` of its own, whose step is given a `Batch`; `AveragedStage` keeps moving averages of the parameters.

Losses on one example, `(model, x, y, key) -> scalar`: `forward_fit`, `reconstruction`, `cycle`, `spectral`, `bias_tie`,
`bias_mean_tie`, `composition`, `jcp`; options go in by `functools.partial`.

Selection, `(model, start_model, validation, key) -> score`: `task_score`, `rjcp_score`, `reconstruction_score`,
`guarded_rjcp_score`, `guarded_reconstruction_score`.

Losses of a surjection, likewise: the tasks `cross_entropy`, `attributes`, `regression`; `right_inverse`,
`surjective_reconstruction`, `naturalness`. Its recipes, of the published code and of the paper: `surjective_stages`,
`natural_stages`, with `SurjectiveConstants`, `PUBLISHED_SURJECTIVE`, `surjective_score`, `clipped_adam`,
`but_sections`.

Imitation: `imitate` trains a surjection to stand in for a network or simulator; `ridge_network`, `imitation_errors`.

Unrolled networks, trained end to end from pairs `(y, x)` with `unrolled_stages`: `DeceptronNet`, its form on several
grids `CoarseToFine`, and `LearnedISTA`.

Recipes: `three_stage` with `ThreeStageConstants` and `THREE_STAGE`; `deceptron_stage` with `ridge_prefit`.
"""

from ._averaged import Averaged as Averaged
from ._averaged import AveragedStage as AveragedStage
from ._deceptron import deceptron_stage as deceptron_stage
from ._deceptron import jcp_ramp as jcp_ramp
from ._deceptron import ridge_prefit as ridge_prefit
from ._deceptron_net import CoarseToFine as CoarseToFine
from ._deceptron_net import DeceptronNet as DeceptronNet
from ._deceptron_net import unrolled_stages as unrolled_stages
from ._fit import fit as fit
from ._imitate import Imitation as Imitation
from ._imitate import ImitationErrors as ImitationErrors
from ._imitate import imitate as imitate
from ._imitate import imitation_errors as imitation_errors
from ._imitate import ridge_network as ridge_network
from ._learned_ista import LearnedISTA as LearnedISTA
from ._losses import bias_mean_tie as bias_mean_tie
from ._losses import bias_tie as bias_tie
from ._losses import composition as composition
from ._losses import cycle as cycle
from ._losses import detach as detach
from ._losses import forward_fit as forward_fit
from ._losses import jcp as jcp
from ._losses import reconstruction as reconstruction
from ._losses import spectral as spectral
from ._pair import Deceptron as Deceptron
from ._pair import InversePair as InversePair
from ._select import guarded_reconstruction_score as guarded_reconstruction_score
from ._select import guarded_rjcp_score as guarded_rjcp_score
from ._select import reconstruction_score as reconstruction_score
from ._select import rjcp_score as rjcp_score
from ._select import task_score as task_score
from ._stage import AbstractStage as AbstractStage
from ._stage import Batch as Batch
from ._stage import Gated as Gated
from ._stage import Stage as Stage
from ._stage import StageHistory as StageHistory
from ._stage import Term as Term
from ._surjective import PUBLISHED_SURJECTIVE as PUBLISHED_SURJECTIVE
from ._surjective import SurjectiveConstants as SurjectiveConstants
from ._surjective import attributes as attributes
from ._surjective import but_sections as but_sections
from ._surjective import clipped_adam as clipped_adam
from ._surjective import cross_entropy as cross_entropy
from ._surjective import natural_stages as natural_stages
from ._surjective import naturalness as naturalness
from ._surjective import regression as regression
from ._surjective import right_inverse as right_inverse
from ._surjective import surjective_reconstruction as surjective_reconstruction
from ._surjective import surjective_score as surjective_score
from ._surjective import surjective_stages as surjective_stages
from ._three_stage import THREE_STAGE as THREE_STAGE
from ._three_stage import ThreeStageConstants as ThreeStageConstants
from ._three_stage import published_optimiser as published_optimiser
from ._three_stage import three_stage as three_stage
