"""Autoguidance: two models under one condition, whatever each predicts."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from guidance.labelled import LABELS, READINGS, T, X, toy
from undiffuse import Denoiser, InputError
from undiffuse.conditioning import Conditioner, Label
from undiffuse.guidance import Autoguidance, ClassifierFree
from undiffuse.prediction import PREDICTIONS
from undiffuse.schedule import Cosine, Flow


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("weak", ["noise", "edm"])
def test_guidance_goes_from_the_weak_model_to_the_strong_whatever_they_predict(predicts, weak):
    strong, weak, x = toy(predicts), toy(weak, seed=1), X.double()
    near, far = (model.given(label=LABELS)(x, T) for model in (weak, strong))
    scales = torch.tensor([0.0, 1.0, 0.6, 4.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    guided = Autoguidance(strong, weak, scales.flatten()).given(label=LABELS)(x, T)
    for name in READINGS:
        a, b = getattr(near, name), getattr(far, name)
        assert_close(getattr(guided, name), a + scales * (b - a))
    assert torch.equal(guided.output[1], far.output[1])


def test_at_scale_one_the_weak_model_is_not_called():
    strong, weak = toy(), toy(seed=1)
    guided = Autoguidance(strong, weak, 1.0).given(label=LABELS)(X, T)
    assert (strong.network.calls, weak.network.calls) == ([4], [])
    assert torch.equal(guided.output, strong.given(label=LABELS)(X, T).output)
    Autoguidance(strong, weak, 2.0).given(label=LABELS)(X, T)
    assert weak.network.calls == [4]


def test_both_models_may_be_guided():
    strong, weak, x = toy(), toy("x0", seed=1), X.double()
    guided = Autoguidance(ClassifierFree(strong, 3.0), ClassifierFree(weak, 2.0), 1.5).given(label=LABELS)(x, T)
    near, far = (ClassifierFree(d, s).given(label=LABELS)(x, T).noise for d, s in ((weak, 2.0), (strong, 3.0)))
    assert_close(guided.noise, near + 1.5 * (far - near))


class Wide(nn.Module):
    """A network whose condition is of another width than the toy's."""

    def forward(self, x, c_noise, vector):
        return x * vector.sum(1)[:, None, None, None]


def test_each_model_encodes_the_condition_itself():
    wide = Denoiser(Wide(), Cosine(), conditioner=Conditioner({"label": Label(3, 7)})).requires_grad_(False)
    for strong, weak in ((toy(), wide), (wide, toy())):
        guidance = Autoguidance(strong, weak, 2.0)
        encoded = guidance.encode({"label": LABELS})
        assert {name: value.shape[1] for name, value in encoded.items()} == {
            "vector": strong.conditioner.parts["label"].embedding.embedding_dim,
            "weak.vector": weak.conditioner.parts["label"].embedding.embedding_dim,
        }
        near, far = (d.given(label=LABELS)(X, T).v for d in (weak, strong))
        assert_close(guidance(X, T, encoded).v, near + 2 * (far - near))
        null = [d(X, T).v for d in (weak, strong)]
        assert_close(guidance(X, T).v, null[0] + 2 * (null[1] - null[0]))


def test_the_weak_model_is_part_of_it_and_has_its_rows():
    index = torch.tensor([3, 1])
    weak = ClassifierFree(toy(seed=1), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    guidance = Autoguidance(toy(), weak, 2.0)
    some = guidance.rows(index)(X[index], T[index], guidance.encode({"label": LABELS[index]}))
    assert torch.equal(some.output, guidance.given(label=LABELS)(X, T).output[index])
    assert guidance.weak is weak and torch.equal(weak.weights[:, 1], torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    assert all(p.dtype == torch.float64 for p in guidance.double().weak.parameters())
    assert any(name.startswith("weak.") for name in guidance.state_dict())


def test_the_times_are_those_that_both_models_know():
    strong, weak = toy(t_min=0.01, t_max=0.9), toy(t_min=0.1, t_max=0.95)
    guidance = Autoguidance(strong, weak, 2.0)
    assert (guidance.t_min, guidance.t_max) == (0.1, 0.9)
    for scale in (1.0, 2.0):
        with pytest.raises(InputError, match=r"knows \[0.1, 0.9\] only"):
            Autoguidance(strong, weak, scale).given(label=1)(X, 0.05)
    with pytest.raises(InputError, match="must overlap"):
        Autoguidance(toy(t_max=0.3), toy(t_min=0.4), 2.0)


def test_what_autoguidance_refuses():
    strong = toy()
    Autoguidance(strong, toy(schedule=Cosine()), 2.0)  # an equal schedule, not the same object
    with pytest.raises(InputError, match="for the weak denoiser: both must be on one schedule"):
        Autoguidance(strong, toy(schedule=Flow()), 2.0)
    with pytest.raises(InputError, match="its condition is given after that"):
        Autoguidance(strong, toy().given(label=1), 2.0)
    with pytest.raises(InputError, match="cannot go around Autoguidance"):
        Autoguidance(Autoguidance(strong, toy(), 2.0), toy(), 2.0)
    with pytest.raises(InputError, match="guidance scale must be finite"):
        Autoguidance(strong, toy(), float("inf"))
