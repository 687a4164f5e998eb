"""The models that diffusion is compared with (benchmarks/generative): their formulas, and that each trains."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from undiffuse.metrics import Classifier

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import generative_models  # noqa: E402
from generative import logistic  # noqa: E402
from generative.autoregressive import PixelCNN  # noqa: E402
from generative.flow import Coupling, Flow, Mixing  # noqa: E402
from generative.gan import GAMMA, GAN  # noqa: E402
from generative.model import PIXELS, to_signal, train  # noqa: E402
from generative.vae import CODE, VAE  # noqa: E402

MODELS = generative_models.MODELS


def pictures(n=4, seed=0):
    return torch.randint(256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def shaken(model, size=0.1):
    """Random weights everywhere, also where they start at 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    return model


def mixture_parameters(dtype=torch.float64):
    torch.manual_seed(2)
    parameters = torch.randn(3, logistic.PARAMETERS, 1, 1, dtype=dtype)
    parameters[1, 2 * logistic.COMPONENTS :] -= 6  # narrow
    parameters[2, logistic.COMPONENTS : 2 * logistic.COMPONENTS] += 2  # beyond the range
    return parameters


GRID = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_the_sizes_are_about_equal():
    sizes = [sum(parameter.numel() for parameter in make().parameters()) for make in MODELS.values()]
    assert max(sizes) <= 1.1 * min(sizes)


def test_the_probabilities_of_a_pixel_are_those_of_the_formula_and_add_up_to_1():
    parameters = mixture_parameters()
    wide = parameters.expand(-1, -1, 1, 256)
    probabilities = logistic.log_prob(GRID.expand(3, 1, 1, 256), wide).exp()[:, 0, 0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, dtype=torch.float64))
    weight, mean, scale = (part[..., None] for part in parameters[..., 0, 0].chunk(3, 1))
    edges = torch.cat([torch.tensor([-torch.inf]), GRID[:-1] + 1 / 255, torch.tensor([torch.inf])])
    cumulative = torch.sigmoid((edges - mean) * torch.exp(-scale.clamp(min=logistic.LEAST_LOG_SCALE)))
    torch.testing.assert_close(probabilities, (weight.softmax(1) * cumulative.diff(dim=-1)).sum(1))


def test_draws_of_a_pixel_have_its_probabilities():
    parameters, n = mixture_parameters(), 40_000
    cumulative = (
        logistic.log_prob(GRID.expand(3, 1, 1, 256), parameters.expand(-1, -1, 1, 256)).exp()[:, 0, 0].cumsum(1)
    )
    draws = logistic.sample(parameters.expand(-1, -1, 1, n))[:, 0, 0]
    share = (draws[:, :, None] <= GRID[::8] + 1e-6).double().mean(1)
    assert float((share - cumulative[:, ::8]).abs().max()) < 4 * 0.5 / math.sqrt(n)


def test_the_flow_is_undone_by_its_inverse():
    flow = shaken(Flow(width=16, steps=3).double())
    y = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow.transform(y)[0]), y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layer", [Mixing(4), Coupling(4, 8)], ids=["mixing", "coupling"])
def test_the_log_determinant_is_that_of_the_jacobian(layer):
    layer = shaken(layer.double(), 0.3)
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x).reshape(24, 24)
    torch.testing.assert_close(layer(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.slow
def test_the_log_determinant_of_the_whole_flow_is_that_of_its_jacobian():
    flow = shaken(Flow(width=4, steps=1).double())
    y = torch.randn(1, 1, 28, 28, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow.transform(y)[0], y).reshape(PIXELS, PIXELS)
    torch.testing.assert_close(flow.transform(y)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_a_pixel_sees_those_before_it_and_no_other():
    model = shaken(PixelCNN(width=8, layers=3)).double()
    row, column = 14, 13
    x = to_signal(pictures(1)).double().requires_grad_()
    (slope,) = torch.autograd.grad(model(x)[0, :, row, column].square().sum(), x)
    seen = slope.flatten() != 0
    own = 28 * row + column
    assert not seen[own:].any()
    reach = slope[0, 0] != 0
    assert reach[row, column - 7 : column].all() and reach[row - 7 : row, column - 5 : column + 6].all()


def test_sampling_that_keeps_what_it_needs_is_the_whole_network(monkeypatch):
    model, used, draw = shaken(PixelCNN(width=8, layers=3)), [], logistic.sample

    def recording(parameters):
        used.append(parameters)
        return draw(parameters)

    monkeypatch.setattr(logistic, "sample", recording)
    images = model.sample(2)
    asked = torch.cat(used, 3).reshape(2, logistic.PARAMETERS, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(asked, model(to_signal(images)), rtol=1e-4, atol=1e-4)


def test_the_elbo_is_the_likelihood_less_the_divergence_where_the_code_is_not_used():
    vae = shaken(VAE())
    with torch.no_grad():
        vae.decoder[0].weight.zero_()  # p(x|z) = p(x)
        images = pictures()
        parameters = vae.decoder(torch.zeros(len(images), CODE))
        log_prob = logistic.log_prob(to_signal(images), parameters).flatten(1).sum(1)
        mean, log_std = vae._inferred(to_signal(images))
        divergence = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(1)
        torch.testing.assert_close(vae.elbo(images), log_prob - divergence)
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.zero_()  # q(z|x) = p(z): every weight is p(x)
        torch.testing.assert_close(vae.importance_bound(images, 3), log_prob)


@torch.no_grad()
def test_the_importance_weighted_bound_is_the_tighter():
    vae, images = shaken(VAE(), 0.02), pictures(32)
    torch.manual_seed(0)
    loose = torch.stack([vae.elbo(images) for _ in range(8)]).mean()
    assert loose < vae.importance_bound(images, 16).mean()


def test_each_player_of_the_gan_learns_by_its_own_loss():
    gan, images = shaken(GAN(), 0.02), pictures(8)
    torch.manual_seed(5)
    gan.loss(images).backward()
    torch.manual_seed(5)
    fake = gan.generator(torch.randn(8, gan.generator[0].in_features))
    real = to_signal(images).requires_grad_()
    score = gan.discriminator(real)
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    wrong = (
        -torch.log(torch.sigmoid(score)).mean() - torch.log(1 - torch.sigmoid(gan.discriminator(fake.detach()))).mean()
    )
    judged = torch.autograd.grad(
        wrong + GAMMA / 2 * slope.square().flatten(1).sum(1).mean(), list(gan.discriminator.parameters())
    )
    made = torch.autograd.grad(-F.logsigmoid(gan.discriminator(fake)).mean(), list(gan.generator.parameters()))
    for player, expected in ((gan.discriminator, judged), (gan.generator, made)):
        for parameter, gradient in zip(player.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_and_samples(name):
    model = generative_models.made(name, seed=0)
    result = train(model, pictures(64), cpu_seconds=1.0, seed=0)
    assert result.steps >= 1 and not result.diverged
    images = result.model.sample(3)
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.uint8
    for values in result.model.bits_per_dim(pictures(5)).values():
        assert values.shape == (5,) and values.isfinite().all() and float(values.min()) > 0


@pytest.mark.slow
def test_the_comparison_runs_and_what_is_there_is_not_done_again(tmp_path, monkeypatch, capsys):
    data = {"images": pictures(60)[:, 0].numpy(), "labels": np.arange(60) % 10, "split": np.arange(60) % 2}
    np.savez(tmp_path / "data.npz", **data)
    Classifier(1, 28, 28, 10).save(tmp_path / "classifier.safetensors")
    command = ["", "--data", tmp_path / "data.npz", "--runs", tmp_path, "--models", "VAE", "diffusion (ours)"]
    command += ["--minutes", 0.005, "--repeat-minutes", 0.005, "--seeds", 1, "--n", 12, "--likelihoods", 2]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would stay so for other tests
    generative_models.main()
    found = (tmp_path / "results-0.005.json").read_text()
    for row in json.loads(found)["rows"].values():
        assert row["training"]["steps"] >= 1 and len(row["bits_per_dim"]) == 2 and len(row["repeats"]) == 1
        assert row["quality"]["n"] == 12 and row["quality"]["frechet"] > 0
    assert (tmp_path / "comparison.png").is_file()
    capsys.readouterr()
    generative_models.main()
    assert (tmp_path / "results-0.005.json").read_text() == found
    assert generative_models.table(json.loads(found)) in capsys.readouterr().out


def test_the_table_in_the_documentation_is_what_was_measured():
    found = json.loads((ROOT / "benchmarks/results/generative_models.json").read_text())
    assert generative_models.table(found) in (ROOT / "docs/comparison.md").read_text()
