"""Files: models, solutions, arrays of the user, and published PyTorch weights.

- Models of this library: `save_model`, `load_model`, `read_model_meta`.
- Solutions: `save_solution`, `load_solution`.
- Arrays of the user, `.npy`, `.npz` or `.csv`: `read_array`.
- Images of the user: `read_idx` (the format of MNIST), `read_image`, `read_image_folder`, `write_image`.
- PyTorch state files, without PyTorch: `load_torch`; published networks: `load_spnn`, `load_deceptron`,
  `load_ddpm`.

Every write is atomic, nothing is ever unpickled, and a file that is truncated, foreign or of another structure gives a
`ValueError` that says what differs and leaves it as it is.
"""

from ._images import read_idx as read_idx
from ._images import read_image as read_image
from ._images import read_image_folder as read_image_folder
from ._images import write_image as write_image
from ._native import load_model as load_model
from ._native import load_solution as load_solution
from ._native import read_array as read_array
from ._native import read_model_meta as read_model_meta
from ._native import save_model as save_model
from ._native import save_solution as save_solution
from ._published import load_ddpm as load_ddpm
from ._published import load_deceptron as load_deceptron
from ._published import load_spnn as load_spnn
from ._torch import load_torch as load_torch
