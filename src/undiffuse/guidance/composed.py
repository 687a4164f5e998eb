"""Several conditions at once (Liu et al. 2022, "Compositional visual generation with composable diffusion models")."""

from collections.abc import Mapping, Sequence

import torch

from undiffuse.denoiser import BaseDenoiser, Drop, Encoded
from undiffuse.errors import InputError
from undiffuse.guidance.base import Scale, scale_of
from undiffuse.guidance.classifier_free import null
from undiffuse.guidance.contrast import Contrast, stacked


class Composed(Contrast):
    """guided = null + sum_k w_k (conditional_k - null), all from one evaluation of K + 1 times the batch (eq. 11).

    parts: pairs (raw conditions, w), w a number or one per sample (B,): above 0 the samples have what the condition
    says (and), below 0 they have not. sequential: K + 1 evaluations of the batch, where memory is short.

        Composed(denoiser, [({"label": 3}, 2.0), ({"label": 7}, 1.5)]).given()

    Conditions that are given later, `.given(low=picture)`, are shared by all parts. As in classifier-free guidance,
    which this is where there is one part, the null has none of them but what has no null.

    Without this guidance the estimate is the mixture of the conditionals whose w is above 0, in proportion to w: what
    is guided to, not extrapolated (where none is above 0, the null).
    """

    held = (*Contrast.held, "parts")

    def __init__(
        self, denoiser: BaseDenoiser, parts: Sequence[tuple[Mapping[str, object], Scale]], sequential: bool = False
    ) -> None:
        if not parts:
            raise InputError("a mixture of conditions needs at least 1 part, such as ({'label': 3}, 2.0)")
        columns = [scale_of(scale, "part's").reshape(-1) for _, scale in parts]
        rows = max(map(len, columns))
        if any(len(column) not in (1, rows) for column in columns):
            raise InputError(
                f"scales of parts are for {' and '.join(str(len(c)) for c in columns)} samples: give 1 or B"
            )
        scales = torch.stack([column.expand(rows) for column in columns], 1)
        towards = scales.clamp(min=0)
        whole = towards.sum(1, keepdim=True)
        super().__init__(denoiser, scales, towards / torch.where(whole > 0, whole, 1.0), sequential)
        self.parts = [denoiser.read(condition) for condition, _ in parts]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names that the parts have not said already."""
        return tuple(name for name in self.denoiser.conditions if not any(name in part for part in self.parts))

    def encode(self, condition: Mapping[str, object], drop: Drop | None = None) -> Encoded:
        """Per input (B, 1 + K, ...): the null, then the parts."""
        for name in condition:
            if any(name in part for part in self.parts):
                raise InputError(f"the parts say {name!r} already: give {name} there, or to all of them here")
        wholes = [{**condition, **part} for part in self.parts]
        given = {name: value for whole in wholes for name, value in whole.items()}
        return stacked([null(self.denoiser, given, None), *(self.denoiser.encode(whole, drop) for whole in wholes)])
