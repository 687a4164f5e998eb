import pytest
import torch
from torch import Tensor

from seeing import seen
from undiffuse.errors import InputError
from undiffuse.metrics import Classifier, label_agreement, wilson_interval
from undiffuse.metrics.agreement import measure_label_agreement


class Brightness(Classifier):
    """Calls the class by the first pixel."""

    def __init__(self) -> None:
        super().__init__(1, 8, 8, classes=3)

    def predict(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, 0].long()


def test_shares_are_counted_by_class():
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([0, 0, 1, 2, 2])
    agreement = label_agreement(Brightness(), images, torch.tensor([0, 0, 0, 2, 2]))
    assert agreement["share"] == pytest.approx(4 / 5)
    assert agreement["n"] == 5
    assert agreement["per_class"] == {0: {"share": pytest.approx(2 / 3), "n": 3}, 2: {"share": 1.0, "n": 2}}
    assert agreement["interval"] == wilson_interval(4, 5)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [(8, 10, (0.490162, 0.943318)), (0, 10, (0, 0.277533)), (10, 10, (0.722467, 1)), (500, 1000, (0.469070, 0.530930))],
)
def test_wilson_interval(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-6)


def test_refusals():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="one per image"):
        label_agreement(Brightness(), images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"\[0, 3\)"):
        label_agreement(Brightness(), images, torch.tensor([0, 3]))
    with pytest.raises(InputError, match="5 of 3"):
        wilson_interval(5, 3)


def test_the_same_from_scores_that_were_kept():
    scores = torch.eye(3)[[0, 0, 1, 2, 2]]
    found = measure_label_agreement(seen(torch.zeros(5, 1), torch.tensor([0, 0, 0, 2, 2]), scores))[0]
    assert (found.value, found.n, found.interval) == (4 / 5, 5, wilson_interval(4, 5))
    assert found.error == pytest.approx((0.8 * 0.2 / 5) ** 0.5)
    with pytest.raises(InputError, match=r"\[0, 3\)"):
        measure_label_agreement(seen(torch.zeros(5, 1), torch.tensor([0, 0, 0, 2, 3]), scores))
