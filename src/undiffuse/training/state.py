"""The whole state of a training run, in one file that holds tensors and JSON and no code."""

import copy
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from undiffuse.errors import InputError
from undiffuse.objective import Loss
from undiffuse.weights import fill, read, write

FORMAT = 1  # of checkpoints; a file of a higher number is refused


M = TypeVar("M", bound=nn.Module)


class TrainState(Generic[M]):
    """Weights, their average, the optimizer's moments and the step: all that a resumed run needs.

    Data order, noise and augmentation are functions of the step, so there is no generator state to keep.
    model: what is trained, a denoiser or a classifier; objective: its loss, which may learn weights of its own;
    total: the number of steps of the whole run, None until a budget in minutes has become one.
    """

    def __init__(self, model: M, objective: Loss, learning_rate: float, weight_decay: float) -> None:
        self.model, self.objective = model, objective
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        # a learned schedule and the objective's own weights are of another kind than the network's: they are not
        # decayed, and their gradients do not count in the norm to which the network's are clipped
        schedule = getattr(model, "schedule", None)
        apart = [*(schedule.parameters() if isinstance(schedule, nn.Module) else ()), *objective.parameters()]
        others = {id(parameter) for parameter in apart}
        groups = [{"params": [p for p in model.parameters() if id(p) not in others]}]
        if apart:
            groups.append({"params": apart, "weight_decay": 0.0})  # type: ignore[dict-item]
        self.optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.step = 0
        self.total: int | None = None
        self.seconds = 0.0  # of training so far, over all sessions
        # the first step whose loss or gradient was not finite, or -1; a tensor, so that nothing waits for it
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.parameters[0].device)

    @property
    def finished(self) -> bool:
        """Whether all steps of the run were taken."""
        return self.total is not None and self.step >= self.total

    def check_finite(self) -> None:
        """Raises: InputError if a step since the last check went to NaN or infinity. Waits for the device."""
        bad = int(self.first_bad)
        if bad >= 0:
            raise InputError(
                f"the loss became NaN or infinite at step {bad}; nothing was saved since. "
                "Lower training.learning_rate, or set training.precision=float32"
            )

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically. Raises: InputError for a state that is not finite, or a full disk."""
        self.check_finite()
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        about = {"format": FORMAT, "step": self.step, "total": self.total, "seconds": self.seconds}
        write(path, tensors, about)

    def load(self, path: Path) -> None:
        """Restore everything from `path`. Raises: InputError for a truncated or newer file, or one of another model."""
        tensors, about = read(path)
        if not isinstance(about, dict) or not all(isinstance(about.get(k), int) for k in ("format", "step")):
            raise InputError(f"{path} is not a checkpoint of undiffuse: delete it to go on without")
        if about["format"] > FORMAT:
            raise InputError(
                f"{path} has checkpoint format {about['format']}, and this version reads up to {FORMAT}: "
                "it was written by a newer undiffuse; upgrade, or train into another run folder"
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                parameter = self.parameters[int(index)]
                if value.ndim and value.shape != parameter.shape:
                    raise InputError(f"{path} does not fit this model: {name} has shape {tuple(value.shape)}")
                if (
                    value.shape == parameter.shape
                ):  # in the parameter's memory format, which the fused optimizer assumes
                    value = torch.empty_like(parameter).copy_(value)
                moments.setdefault(int(index), {})[key] = value
        for name, module in self._modules().items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            fill(module, own, path)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.total, self.seconds = about["step"], about["total"], about["seconds"]

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average, "objective": self.objective}
