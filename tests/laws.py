"""The exact law of a run that is affine in its start and its noise, as linear samplers' on 1-D Gaussian data are."""

from itertools import pairwise

import torch

from undiffuse.noise import NoiseSource


class Basis(NoiseSource):
    """A noise source whose sample i has its draw number i - 2 at 1 and all others at 0; 0 and 1 have none.

    A draw belongs to its branch, purpose and number, and may be asked for once: noise that is used twice is not fresh.
    """

    def __init__(self, batch):
        self.batch, self.drawn, self.path, self.prefix = batch, {}, [], ()

    def _column(self, key):
        assert key not in self.drawn, f"{key} is drawn twice"
        number = self.drawn[key] = len(self.drawn)
        column = torch.zeros(self.batch, 1, dtype=torch.float64)
        if number + 2 < self.batch:
            column[number + 2] = 1
        return column

    def normal(self, purpose, k):
        return self._column((self.prefix, purpose, int(torch.as_tensor(k).reshape(-1)[0])))

    def brownian(self, start, end):
        interval = float(start[0]), float(end[0])
        assert not self.path or self.path[-1] == interval[0]  # so that increments are independent
        self.path.append(interval[1])
        return self._column((self.prefix, "brownian", interval))

    def branch(self, number):
        branched = Basis(self.batch)
        branched.drawn, branched.prefix = self.drawn, (*self.prefix, number)
        return branched


def steps(denoiser, sampler, x, times, noise):
    """Where a run ends, with the noise given, and its last state."""
    grid = times[:, None].expand(-1, len(x))
    state = sampler.init(denoiser, x, grid)
    for t, s in pairwise(grid):
        x, state = sampler.step(denoiser, x, t, s, state, noise)
    return x, state


def law(denoiser, sampler, times, mean, variance):
    """Mean and variance at times[-1] of a run whose start is N(mean, variance) at times[0]."""
    counting = Basis(1)
    steps(denoiser, sampler, torch.zeros(1, 1, dtype=torch.float64), times, counting)
    start = torch.zeros(2 + len(counting.drawn), 1, dtype=torch.float64)
    start[1] = 1
    end = steps(denoiser, sampler, start, times, Basis(len(start)))[0].flatten()
    of_start, of_draws = end[1] - end[0], end[2:] - end[0]
    return float(end[0] + of_start * mean), float(of_start**2 * variance + of_draws.square().sum())
