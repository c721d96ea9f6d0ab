"""Published PyTorch weights in our modules: `load_spnn`, `load_deceptron`, `load_ddpm`.

Names of arrays are matched with the parameters of a freshly built model. Everything that does not fit is listed in one
`ValueError`, and then nothing is loaded.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..diffusion import DenoisingUNet
from ..learn import InversePair
from ..maps import (
    MLP,
    Cayley,
    ConvNet,
    Flatten,
    Householder,
    PixelUnshuffle,
    SurjectiveChain,
    SurjectiveCoupling,
    torch_names,
    unstore,
)
from ._torch import load_torch

Source = str | Path | Mapping[str, Any]


def load_spnn(source: Source, like: SurjectiveChain, *, prefix: str = "") -> SurjectiveChain:
    """Fills a surjective pseudo-invertible network with published weights, for published and for other plans.

    The published mixers were trained with a regularised inverse: `eps=1e-6` in `Cayley`, 1e-8 in `Householder`. With
    the same `eps` the network computes what it computed in PyTorch; with `eps=0` it is exactly invertible, and moves by
    about 1e-6.

    Args:
        source: a PyTorch state file, a `.npz` file, or arrays by name. The names are those of the published code,
            `pinn.blocks.0.s.net.2.weight`: steps of the plan count from zero, unshuffles included; `s`, `t`, `r` are
            the scale, shift and section nets; `mix.A_unconstrained` and `mix.V` the parameters of the mixers.
        like: a network of the plan that was trained, freshly built by `maps.published_spnn` or `maps.spnn`, or its
            `equinox.filter_eval_shape`. Its dtypes are kept.
        prefix: only names that begin with it are read, and without it: `"state_dict."` for a checkpoint whose weights
            are in `checkpoint["state_dict"]`. A `module.` in front of all names is dropped unasked.

    Returns:
        The network with the weights of the file.

    Raises:
        ValueError: names that are missing or unknown, arrays of another shape, or that are not finite floating-point
            numbers: all are listed, and nothing is loaded. Also a `like` that holds other layers, and a file that
            cannot be read, see `load_torch`.
        FileNotFoundError: there is no such file.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    return _fill(source, like, _spnn_parameters, prefix)


def load_deceptron(source: Source, like: InversePair, *, prefix: str = "") -> InversePair:
    """Fills the forward surrogate and the inverse network of the Deceptron papers with published weights.

    Args:
        source: a PyTorch state file, a `.npz` file, or arrays by name: `forward_map.linear.weight` and `bias`, and
            `reverse_map.network.0.weight`, `reverse_map.network.2.weight`, ... and `bias`.
        like: `InversePair(maps.MLP((64, 64), output_activation="leaky_relu", key=key1), maps.MLP((64, 128, 64),
            key=key2))` for the published Heat-1D pair, or of other sizes, or its `equinox.filter_eval_shape`. Its
            dtypes are kept.
        prefix: as in `load_spnn`.

    Returns:
        The pair with the weights of the file.

    Raises:
        ValueError, FileNotFoundError: as `load_spnn`.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068.
    """
    return _fill(source, like, _deceptron_parameters, prefix)


def load_ddpm(source: Source, like: DenoisingUNet, *, prefix: str = "") -> DenoisingUNet:
    """Fills the U-Net of a diffusion prior with published weights of the DDPM layout (pytorch-diffusion, SDEdit).

    The published schedule is `diffusion.LinearSchedule()`, the prediction "epsilon", images are between -1 and 1.

    Args:
        source: a PyTorch state file, a `.npz` file, or arrays by name: `down.0.block.1.conv2.weight`, ...
        like: a `diffusion.DenoisingUNet` of the sizes that were trained, `num_groups=32` included, or its
            `equinox.filter_eval_shape`. Its dtypes are kept.
        prefix: as in `load_spnn`.

    Returns:
        The network with the weights of the file.

    Raises:
        ValueError, FileNotFoundError: as `load_spnn`.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        C. Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022,
        arXiv:2108.01073.
    """
    return _fill(source, like, _ddpm_parameters, prefix)


def _ddpm_parameters(model: DenoisingUNet) -> dict[str, Any]:
    parts: dict[str, Any] = {f"temb.dense.{index}": layer for index, layer in enumerate(model.dense)}
    parts |= {name: getattr(model, name) for name in ("conv_in", "norm_out", "conv_out")}
    parts |= dict(zip(("mid.block_1", "mid.attn_1", "mid.block_2"), model.mid, strict=True))
    for way, levels, sampling in (("down", model.down, "downsample"), ("up", model.up[::-1], "upsample")):
        for index, level in enumerate(levels):
            parts |= {f"{way}.{index}.block.{i}": block for i, block in enumerate(level.block)}
            parts |= {f"{way}.{index}.attn.{i}": attention for i, attention in enumerate(level.attn)}
            parts[f"{way}.{index}.{sampling}.conv"] = level.conv
    found = {}
    for name, part in parts.items():
        # fields are called as in the published code, all the way down
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            found[name + jax.tree_util.keystr(path)] = leaf
    return found


def _spnn_parameters(model: SurjectiveChain) -> dict[str, Any]:
    found: dict[str, Any] = {}
    step = 0
    for layer in _layers(model):
        block = f"pinn.blocks.{step}"
        match layer:
            case PixelUnshuffle() | Flatten():
                step += 1
            case Cayley(prepared=None):
                found[f"{block}.mix.A_unconstrained"] = layer.skew
            case Householder(prepared=None):
                found[f"{block}.mix.V"] = layer.vectors
            case SurjectiveCoupling():
                for letter, net in (("s", layer.scale_net), ("t", layer.shift_net), ("r", layer.section_net)):
                    if net is not None:
                        found |= {f"{block}.{letter}.net.{name}": leaf for name, leaf in _net_parameters(unstore(net))}
                step += 1
            case Cayley() | Householder():
                raise ValueError("load_spnn: the model is prepared; load the weights first, then call maps.prepare.")
            case _:
                raise ValueError(
                    f"load_spnn: the model has a {type(layer).__name__}, for which no weights were published; expected "
                    "a SurjectiveChain of PixelUnshuffle, Cayley, Householder, SurjectiveCoupling and Flatten."
                )
    return found


def _layers(model: Any) -> Iterator[Any]:
    """The layers of nested chains in the order in which they are applied."""
    if isinstance(model, SurjectiveChain):
        for layer in model.layers:
            yield from _layers(layer)
    else:
        yield model


def _net_parameters(net: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(net, ConvNet):
        raise ValueError(f"load_spnn: a coupling has a {type(net).__name__} inside, expected a ConvNet.")
    for (layer, attribute), name in torch_names(net):
        yield name, getattr(net.layers[layer], attribute)


def _deceptron_parameters(model: InversePair) -> dict[str, Any]:
    forward, inverse = unstore(model.forward), unstore(model.inverse)
    if not (isinstance(forward, MLP) and len(forward.layers) == 1 and isinstance(inverse, MLP)):
        raise ValueError(
            "load_deceptron expected an InversePair of two maps.MLP, the first of a single layer; got "
            f"{type(forward).__name__} and {type(inverse).__name__}."
        )
    layers = {"forward_map.linear": forward.layers[0]}
    layers |= {f"reverse_map.network.{2 * index}": layer for index, layer in enumerate(inverse.layers)}
    return {f"{name}.{kind}": getattr(layer, kind) for name, layer in layers.items() for kind in ("weight", "bias")}


def _fill(source: Source, like: Any, parameters: Callable[[Any], dict[str, Any]], prefix: str) -> Any:
    """`like` with the arrays of `source` in the places that `parameters(like)` names."""
    leaves, treedef = jax.tree.flatten(like)
    # Leaves are told apart by identity, so each must be an object of its own.
    places = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    wanted = parameters(jax.tree.unflatten(treedef, places))
    arrays = _without_module(_read(source, prefix))
    found = {name: arrays[name] for name in wanted if name in arrays}
    new = {name: _converted(array, wanted[name].dtype) for name, array in found.items()}
    shapes = {name: place.shape for name, place in wanted.items()}
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in arrays if name not in wanted],
        "of another shape": [
            f"{name}: {array.shape}, expected {shapes[name]}"
            for name, array in found.items()
            if array.shape != shapes[name]
        ],
        "no floating-point numbers": [f"{name}: {found[name].dtype}" for name in found if new[name] is None],
        "NaN or infinite": [name for name, array in new.items() if array is not None and not np.isfinite(array).all()],
    }
    if any(problems.values()):
        raise ValueError(_report(source, problems, prefix))
    by_place = {id(wanted[name]): jnp.asarray(array) for name, array in new.items()}
    return jax.tree.unflatten(treedef, [by_place.get(id(p), leaf) for p, leaf in zip(places, leaves, strict=True)])


def _read(source: Source, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    if isinstance(source, Mapping):
        arrays = {name: np.asarray(value) for name, value in source.items() if name.startswith(prefix)}
    elif Path(source).suffix.lower() == ".npz":
        with open(source, "rb") as handle:
            try:
                with np.load(handle, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive if name.startswith(prefix)}
            except Exception as error:  # damaged archives raise a dozen different things
                raise ValueError(f"{source} cannot be read as .npz ({type(error).__name__}: {error}).") from error
    else:
        arrays = {name: array for name, array in load_torch(source).items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def _without_module(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the `module.` that data-parallel training puts in front of every name."""
    if not all(name.startswith("module.") for name in arrays):
        return arrays
    return {name.removeprefix("module."): array for name, array in arrays.items()}


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    if not jnp.issubdtype(array.dtype, np.floating):
        return None
    with np.errstate(over="ignore"):  # what overflows is reported as infinite
        return array.astype(dtype)


def _report(source: Source, problems: dict[str, list[str]], prefix: str) -> str:
    lines = ["The mapping" if isinstance(source, Mapping) else str(source)]
    lines[0] += " does not fit the model, and nothing was loaded."
    for kind, entries in problems.items():
        if entries:
            more = f", ... and {len(entries) - 12} more" if len(entries) > 12 else ""
            lines.append(f"{len(entries)} {kind}: {', '.join(entries[:12])}{more}")
    for missing in problems["missing"][:1]:
        for name in problems["unknown"]:
            if name.endswith(missing):
                lines.append(f'Pass prefix="{prefix}{name.removesuffix(missing)}".')
                break
    return "\n  ".join(lines)
