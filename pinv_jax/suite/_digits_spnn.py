"""The study `digits-spnn`: a classifier that is exactly invertible, its pseudo-inverses, and edits by back-projection.

Parts, each a table:

- `classifier`: held-out accuracy on handwritten digits against a plain CNN of similar size and a linear classifier;
- `backprojection`: held-out digits moved onto the logits of other classes, against solvers and a trained inverse;
- `sections`: what the pseudo-inverse is made of;
- `faces`: two attributes of small images;
- `edits`: one of the attributes turned over by back-projection.

Every model is trained with the seed of the run; the images and their splits are the same for all seeds.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import plots
from ..learn import but_sections, cross_entropy
from ._digits import (
    NUM_CLASSES,
    LinearClassifier,
    accuracy_cells,
    constants,
    digits,
    digits_cnn,
    digits_network,
    digits_spnn,
    each,
    key_of,
    num_right,
    size,
    task_alone,
    there_and_back,
    train,
)
from ._digits_edits import ablation, backprojection
from ._faces import attribute_edits, attribute_task
from ._study import Bench, Findings, Study

METHODS = (
    "NLBP, natural",
    "NLBP, learned section",
    "NLBP, random section",
    "nearest in x, then LM",
    "gradient descent",
    "inverse network, one shot",
)


def classifier(bench: Bench) -> Findings:
    """Accuracy of the SPNN and of the baselines, all but the trivial one trained by the same steps."""
    data = digits(bench.dtype, quick=bench.quick)
    model, seconds = digits_spnn(bench, data)
    num_parameters = size(but_sections(model))
    alone = task_alone(data["train"].x.shape[0], constants(bench), cross_entropy)
    fresh = digits_network(bench.dtype, key=key_of(bench, "spnn"))
    without, without_seconds = train(bench, "spnn-task", fresh, alone, data["train"].pair, data["val"].pair)
    cnn, cnn_seconds = digits_cnn(bench, data, num_parameters)
    linear = LinearClassifier((1, 8, 8), NUM_CLASSES, dtype=bench.dtype, key=key_of(bench, "linear"))
    linear, linear_seconds = train(bench, "linear", linear, alone, data["train"].pair, data["val"].pair)

    test = data["test"]
    majority = jnp.argmax(jnp.bincount(data["train"].y, length=NUM_CLASSES))
    right = {"majority": int(jnp.sum(test.y == majority))}
    right |= {
        name: num_right(each_model, test.x, test.y)
        for name, each_model in (
            ("softmax regression", linear),
            ("plain CNN", cnn),
            ("SPNN, task + reconstruction", model),
            ("SPNN, task alone", without),
        )
    }
    counts = (0, size(linear), size(cnn), num_parameters, num_parameters)
    spent = (None, linear_seconds, cnn_seconds, seconds, without_seconds)
    errors: list[float | None] = [None, None, None]
    for g in (model, without):
        guess = each(jax.tree_util.Partial(there_and_back, g), test.x)
        errors.append(float(jnp.sqrt(jnp.mean((guess - test.x) ** 2))))
    rows = [
        {"model": name, "parameters": count, **accuracy_cells(number, len(test.y))}
        | {"RMSE g†g(x)": error, "training s": took}
        for (name, number), count, error, took in zip(right.items(), counts, errors, spent, strict=True)
    ]
    behind = 100 * (right["plain CNN"] - right["SPNN, task + reconstruction"]) / len(test.y)
    cost = 100 * (right["SPNN, task alone"] - right["SPNN, task + reconstruction"]) / len(test.y)
    measures = {"points behind the CNN": behind, "points that reconstruction costs": cost, "digits": len(test.y)}
    return Findings(rows, measures)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """The grids of images of the parts that were run."""
    drawn = {}
    if "sections" in found:
        arrays = found["sections"].arrays
        rows = {"x": arrays["digits"]}
        for section in ("learned", "natural", "random"):
            rows[f"g†(g(x))\n{section}"] = arrays[f"SPNN, {section}"]
        rows["P ψ, natural"] = arrays["psi trained, P trained, natural"]
        rows["P, Moore-\nPenrose"] = arrays["psi = identity, P trained, natural"]
        drawn["sections"] = plots.image_grid(rows, limits=(0.0, 1.0))
    if "backprojection" in found:
        arrays = found["backprojection"].arrays
        labels = range(NUM_CLASSES)
        titles = [f"{label}→{target}" for label, target in zip(labels, arrays["targets"], strict=True)]
        rows = {"x": arrays["digits"]} | {name.replace(", ", ",\n"): arrays[name] for name in METHODS}
        drawn["backprojection"] = plots.image_grid(rows, limits=(0.0, 1.0), titles=titles)
        for section in ("natural", "learned"):
            pictures = arrays[f"towards, {section}"]
            rows = {f"{label}": np.concatenate([arrays["digits"][label][None], pictures[label]]) for label in labels}
            titles = ["x", *(f"→{label}" for label in labels)]
            drawn[f"towards-{section}"] = plots.image_grid(rows, limits=(0.0, 1.0), titles=titles)
    if "edits" in found:
        arrays = found["edits"].arrays
        shown = slice(0, 10)
        # what the network says of each image: + where the attribute holds
        signs = np.where(arrays["logits"][shown] > 0, "+", "-")
        titles = [f"F{face} C{contrast}" for face, contrast in signs]
        rows = {"x": arrays["images"][shown], "g†(g(x))\nlearned": arrays["g†(g(x))"][shown]}
        for attribute in ("face", "contrast"):
            for section in ("natural", "learned"):
                rows[f"{attribute} edited\n{section}"] = arrays[f"{attribute}, {section}"][shown]
        drawn["edits"] = plots.image_grid(rows, limits=(0.0, 1.0), titles=titles)
    return drawn


DIGITS_SPNN = Study(
    name="digits-spnn",
    summary="digits and faces by surjective networks: accuracy, exact edits of the logits, what a pseudo-inverse shows",
    reference="Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible Neural Networks, 2026, arXiv:2602.06042",
    recipes={
        "classifier": classifier,
        "backprojection": backprojection,
        "sections": ablation,
        "faces": attribute_task,
        "edits": attribute_edits,
    },
    figures=figures,
)
