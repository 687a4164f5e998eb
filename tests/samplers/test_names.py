"""The translator: other toolkits' names, the grids they ask for, and what is said to a name that nobody knows."""

import pytest

from undiffuse import InputError
from undiffuse.samplers import DDIM, GRIDS, SAMPLERS, Adams, DPMSolverPlusPlus, Heun, UniPC, named, understand
from undiffuse.samplers.aliases import ALIASES, GRID_ALIASES, GRID_ARGUMENTS
from undiffuse.samplers.names import split_names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DPM++ 2M", "dpm++:order=2"),
        ("dpmpp_2m", "dpm++:order=2"),
        ("sample_dpmpp_2m", "dpm++:order=2"),
        ("DPMSolverMultistepScheduler", "dpm++:order=2"),
        ("DPMSolverMultistep", "dpm++:order=2"),
        ("DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')", "dpm++:order=2,eta=1"),
        ("DPMSolverMultistepScheduler(solver_type=heun, algorithm_type=sde-dpmsolver++)",
         "dpm++:order=2,weights=exact,eta=1"),
        ("DPM++ 2M SDE", "dpm++:order=2,eta=1,brownian=true"),
        ("dpmpp_2m_sde_gpu", "dpm++:order=2,eta=1,brownian=true"),
        ("DPM++ 3M SDE", "dpm++:order=3,weights=published,eta=1,brownian=true"),
        ("DPM++ SDE", "dpm++-single:order=2,eta=1,brownian=true"),
        ("DPM++ 2S a", "ancestral:sampler=(dpm++-single:order=2)"),
        ("DPM2 a", "ancestral:sampler=(dpm-single:order=2)"),
        ("KDPM2DiscreteScheduler", "dpm-single:order=2"),
        ("DPM2", "dpm-single:order=2"),
        ("Euler a", "ddim:eta=1"),
        ("euler-ancestral", "ddim:eta=1"),
        ("EulerAncestralDiscreteScheduler", "ddim:eta=1"),
        ("Euler", "euler:variable=ratio"),
        ("sample_euler", "euler:variable=ratio"),
        ("Heun", "heun:variable=ratio"),
        ("LMS", "lms:order=4"),
        ("PLMS", "pndm:start=heun"),
        ("DDIM", "ddim"),
        ("DDPM", "ddpm"),
        ("LCM", "consistency"),
        ("Restart", "restart"),
        ("UniPC", "unipc:order=3,weights=bh1"),
        ("uni_pc_bh2", "unipc:order=3,weights=bh2"),
        ("DEIS", "deis:order=3,variable=time"),
        ("iPNDM", "ipndm:order=4"),
    ],
)  # fmt: skip
def test_their_name_is_our_sampler(theirs, ours):
    for spelled in (theirs, theirs.replace(" ", ""), f" {theirs} "):
        assert understand(spelled) == (named(ours), None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_our_own_names_mean_our_own_samplers(name):
    assert understand(name) == (SAMPLERS[name](), None)


def test_a_name_of_ours_is_told_from_theirs_by_its_spelling():
    assert understand("heun")[0] == Heun("angle")
    assert understand("Heun")[0] == understand("HEUN")[0] == Heun("ratio")
    assert understand("unipc")[0] == UniPC()


def test_every_alias_is_understood_and_means_one_thing():
    meant = {}
    for ours, kinds in ALIASES.items():
        for alias in (alias for kind in kinds for alias in kind):
            assert understand(alias) == (named(ours), None), alias
            assert meant.setdefault(alias, ours) == ours
    assert set(GRID_ALIASES.values()) | set(GRID_ARGUMENTS.values()) <= set(GRIDS)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("DPM++ 2M Karras", "karras"),
        ("dpmpp_2m karras", "karras"),
        ("dpm++:order=2@karras", "karras"),
        ("dpmpp_2m_Exponential", "exponential"),
        ("DPM++ 2M SGM Uniform", "trailing"),
        ("dpmpp_2m ddim_uniform", "leading"),
        ("dpmpp_2m simple", "trailing"),
        ("dpmpp_2m normal", "uniform"),
        ("DPM++ 2M Beta", "beta"),
        ("DPMSolverMultistepScheduler(use_karras_sigmas=True)", "karras"),
        ("DPMSolverMultistepScheduler(timestep_spacing='trailing')", "trailing"),
        ("DPM++ 2M@fitted", "fitted"),
        ("DPM++ 2M Karras@angle", "angle"),
    ],
)
def test_a_name_asks_for_a_grid(name, grid):
    assert understand(name) == (DPMSolverPlusPlus(2), grid)


def test_arguments_follow_any_name():
    assert understand("DPM++ 2M Karras:order=3,eta=0.5") == (DPMSolverPlusPlus(3, eta=0.5), "karras")
    assert understand("Euler a:eta=0.25")[0] == DDIM(eta=0.25)
    assert understand("restart:sampler=(DPM++ 2M),repeats=1")[0].sampler == DPMSolverPlusPlus(2)
    assert named("adams", order=3) == named("adams:order=2", order=3) == Adams(3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DPM++ 4M", "unknown sampler 'DPM\\+\\+ 4M': did you mean 'DPM\\+\\+ 2M' or .*Known: ddpm, ddim"),
        ("dpm+", "did you mean 'dpm\\+\\+'"),
        ("DPM++ 2M Kerras", "did you mean 'DPM\\+\\+ 2M"),
        ("Karras", "unknown sampler 'Karras'"),
        ("", "unknown sampler ''"),
        ("DPMSolverMultistepScheduler(solver_ordr=3)", "did you mean 'DPMSolverMultistepScheduler\\(solver_order=3"),
        ("dpm++@", "name of a time grid is missing after dpm\\+\\+@"),
        ("dpm++:3", "form name:key=value, not '3'"),
        ("DPM++ 2M:ordr=3", "did you mean 'order'"),
        ("restart:sampler=(dpmm)", "unknown sampler 'dpmm'"),
    ],
)
def test_what_nobody_knows_is_refused_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        understand(name)


def test_a_list_of_names_may_have_arguments():
    assert split_names("dpm++:order=3,eta=1, DPM++ 2M Karras,restart:sampler=(dpm++:order=2,eta=0),repeats=1,lms") == [
        "dpm++:order=3,eta=1", "DPM++ 2M Karras", "restart:sampler=(dpm++:order=2,eta=0),repeats=1", "lms",
    ]  # fmt: skip
    assert split_names("DEISMultistepScheduler(use_karras_sigmas=True, a=1),ddim") == [
        "DEISMultistepScheduler(use_karras_sigmas=True, a=1)", "ddim",
    ]  # fmt: skip
    assert split_names(" , ") == []
