"""Time grids: their ends, that they fall, and the integers of the literature."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from undiffuse import InputError
from undiffuse.samplers import GRIDS, grid
from undiffuse.schedule import EDM, Cosine, Flow, Linear, Sigmoid, VariancePreserving

TABLES = ("leading", "leading+1", "linspace", "linspace+1", "trailing")


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_grids_fall_from_t_max_to_t_min_and_then_0(any_schedule, name, steps):
    t_min = any_schedule.finest_time
    if name in TABLES and any_schedule.length is None:
        with pytest.raises(InputError, match="tables"):
            grid.named(name, any_schedule, steps, t_min, 1.0)
        return
    if name in ("leading+1", "linspace+1") and any_schedule.length == steps:
        with pytest.raises(InputError, match=r"outside|at most"):
            grid.named(name, any_schedule, steps, t_min, 1.0)
        return
    points = grid.named(name, any_schedule, steps, t_min, 1.0)
    assert points.dtype == torch.float64 and points.shape == (steps + 1,)
    assert (points.diff() < 0).all() and points[-1] == 0
    if not name.startswith("leading"):
        assert points[0] == 1
    if steps > 1 and name not in ("leading+1", "linspace+1", "trailing", "vp-quadratic"):
        assert math.isclose(points[-2], t_min, rel_tol=1e-9)


@pytest.mark.parametrize("name", [name for name in GRIDS if name not in (*TABLES, "vp-quadratic")])
def test_grids_respect_a_range_of_ones_own(any_schedule, name):
    points = grid.named(name, any_schedule, 9, 0.2, 0.7)
    assert points[0] == 0.7 and (points.diff() < 0).all()
    assert (points[:-1] >= 0.2).all()
    assert math.isclose(points[-2], 0.2, rel_tol=1e-9)


INTEGERS = {
    "leading": [900, 800, 700, 600, 500, 400, 300, 200, 100, 0],
    "leading+1": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "linspace": [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    "linspace+1": [999, 899, 799, 699, 599, 500, 400, 300, 200, 100],
    "trailing": [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_integers_a_network_is_called_with(name):
    points = grid.named(name, Linear(), 10, 1 / 1000, 1.0)
    assert (points[:-1] * 1000 - 1).round().long().tolist() == INTEGERS[name]
    if name == "leading+1":
        with pytest.raises(InputError, match=r"t = 1\.001"):
            grid.named(name, Linear(), 1000, 1 / 1000, 1.0)
        return
    if name == "linspace+1":
        with pytest.raises(InputError, match="takes 999 steps of a table of 1000, at most"):
            grid.named(name, Linear(), 1000, 1 / 1000, 1.0)
        return
    every = grid.named(name, Linear(), 1000, 1 / 1000, 1.0)
    assert_close(every, torch.arange(1000, -1, -1).double() / 1000)


def test_spacings():
    even = grid.named("log-snr", Cosine(), 9, 0.1, 0.9)[:-1]
    levels = Cosine().log_snr(even).diff()
    assert_close(levels, levels[:1].expand(8))
    fifths = torch.arange(5, -1, -1, dtype=torch.float64) / 5
    assert_close(grid.named("uniform", Flow(), 5, 0.2, 1.0), fifths)
    roots = grid.named("quadratic", Flow(), 5, 0.04, 1.0)[:-1].sqrt()
    assert_close(roots, fifths[:-1])
    ramp = torch.linspace(0, 1, 18, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # eq. 5 of Karras et al. 2022
    assert_close(grid.named("karras", EDM(), 18, 0.002 / 80, 1.0)[:-1] * 80, sigmas)


@pytest.mark.parametrize("schedule", [Flow(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("name", ["log-snr", "karras"])
def test_where_the_signal_ends_levels_are_spaced_from_a_finite_one(schedule, name):
    points = grid.named(name, schedule, 12, 0.01, 1.0)
    assert points.isfinite().all() and (points.diff() < 0).all() and points[0] == 1
    assert (schedule.log_snr(points[1:-1]) > -14.001).all()


@pytest.mark.parametrize("name", GRIDS)
def test_bad_counts_are_refused(name):
    for steps in (0, -3):
        with pytest.raises(InputError, match=f"at least 1 step, not {steps}"):
            grid.named(name, Linear(), steps, 1 / 1000, 1.0)
    if name in TABLES:
        with pytest.raises(InputError, match="1001 steps were asked of a table of 1000"):
            grid.named(name, Linear(), 1001, 1 / 1000, 1.0)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(InputError, match="did you mean 'karras'"):
        grid.named("karas", Cosine(), 5, 0.1, 1.0)


def test_the_vp_quadratic_grid_is_quadratic_in_the_time_of_the_vp_sde_on_every_schedule(any_schedule):
    vp = VariancePreserving()
    points = grid.named("vp-quadratic", any_schedule, 9, any_schedule.finest_time, 1.0)[:-1]
    roots = vp.time(any_schedule.log_snr(points[1:])).sqrt()
    assert_close(roots.diff(), roots.diff()[:1].expand(7), rtol=1e-5, atol=1e-9)
    last = torch.exp(-any_schedule.log_snr(points[-1]) / 2)
    assert math.isclose(last, max(4 / 81, torch.exp(-any_schedule.log_snr(any_schedule.finest_time) / 2)), rel_tol=1e-9)
    narrow = grid.named("vp-quadratic", any_schedule, 5, 0.2, 0.22)
    assert (narrow.diff() < 0).all() and math.isclose(narrow[-2], 0.2, rel_tol=1e-9)


def test_the_angle_and_the_beta_grid():
    levels = grid.named("arc-length", Cosine(), 9, 0.1, 0.9)[:-1]
    arcs = torch.atan2(Cosine().sigma(levels), Cosine().alpha(levels)).diff()
    assert_close(arcs, arcs[:1].expand(8))
    quantiles = grid.named("beta", Flow(), 9, 0.001, 0.999)[:-1]
    shares = torch.from_numpy(stats.beta.cdf(quantiles.numpy(), 0.6, 0.6)).diff()
    assert_close(shares, shares[:1].expand(8))
