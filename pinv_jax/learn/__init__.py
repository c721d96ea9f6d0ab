"""Fitting forward surrogates and learned inverses.

Models: `InversePair`, and the single-layer `Deceptron` of the workshop paper.

Loop: `fit` runs `Stage`s made of `Term`s; `Gated` is a weight that waits for a condition.

Losses on one example, `(model, x, y, key) -> scalar`: `forward_fit`, `reconstruction`, `cycle`, `spectral`, `bias_tie`,
`bias_mean_tie`, `composition`, `jcp`; options go in by `functools.partial`.

Selection, `(model, start_model, validation, key) -> score`: `task_score`, `rjcp_score`, `reconstruction_score`,
`guarded_rjcp_score`, `guarded_reconstruction_score`.

Recipes: `three_stage` with `ThreeStageConstants` and `THREE_STAGE`; `deceptron_stage` with `ridge_prefit`.
"""

from ._deceptron import deceptron_stage as deceptron_stage
from ._deceptron import jcp_ramp as jcp_ramp
from ._deceptron import ridge_prefit as ridge_prefit
from ._fit import fit as fit
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
from ._stage import Gated as Gated
from ._stage import Stage as Stage
from ._stage import StageHistory as StageHistory
from ._stage import Term as Term
from ._three_stage import THREE_STAGE as THREE_STAGE
from ._three_stage import ThreeStageConstants as ThreeStageConstants
from ._three_stage import published_optimiser as published_optimiser
from ._three_stage import three_stage as three_stage
