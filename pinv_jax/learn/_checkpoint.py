"""The file of one stage of training: everything needed to go on, and a fingerprint of the run it belongs to."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import jax

from .._store import digest, load, save


class Checkpoint:
    """The file of one stage.

    Args:
        path: the file.
        run_round: the jitted function that does the work.
        arguments: those of its first call in this stage.

    Raises:
        ValueError: from `restore`, if the file is damaged or was written by another run.
    """

    seconds_between_saves = 2.0

    def __init__(self, path: Path, run_round: Any, arguments: tuple[Any, ...]):
        # the lowered program holds what the arrays do not: losses, weights, schedules, the optimiser and its rates
        program = run_round.lower(*arguments).as_text()
        self.path = path
        self.fingerprint = hashlib.sha256(program.encode()).hexdigest() + digest(arguments)
        self._saved = -math.inf

    def restore(self, like: Any) -> Any:
        """What was saved, or `like` itself where there is no file yet."""
        if not self.path.exists():
            return like
        advice = "pass another checkpoint folder, or delete this one to start again."
        try:
            tree, meta = load(self.path, like, kind="fit")
        except ValueError as error:
            raise ValueError(f"{self.path} is not a checkpoint of this fit; {advice}\n{error}") from error
        if meta.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"{self.path} is a checkpoint of another configuration (other data, model, stage, key or version of "
                f"jax); {advice}"
            )
        return tree

    def save(self, tree: Any, *, last: bool) -> None:
        """Saves at the end of the stage, and before that now and then; of several processes the first."""
        if jax.process_index() > 0:
            return
        if last or time.monotonic() - self._saved > self.seconds_between_saves:
            save(self.path, tree, kind="fit", meta={"fingerprint": self.fingerprint})
            self._saved = time.monotonic()
