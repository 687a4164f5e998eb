"""What every test shares: shape checks of the algebra's signatures at run time, and the registries as parameters.

A test that takes one of these arguments runs for every entry of a registry, so a newcomer's tests are already written:

    any_schedule    SCHEDULES, and schedules derived from them
    any_sampler     SAMPLERS in all their variants; `any_solver` those without noise, `any_stochastic` those with it
"""

import functools
import os
import sys
import types

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype

CHECKED = [
    "schedule", "prediction", "transition", "denoiser", "noise", "exact", "chain", "objective", "likelihood",
    "samplers", "editing", "guidance", "conditioning", "networks",
]  # fmt: skip
if os.environ.get("UNDIFFUSE_CHECK_SIGNATURES"):  # ten times slower: tests/test_signatures.py says what runs under it
    # the hook wants an importable name; ours takes an int where a float is asked for, as Python does
    sys.modules["signature_checks"] = types.ModuleType("signature_checks")
    sys.modules["signature_checks"].check = beartype(conf=BeartypeConf(is_pep484_tower=True))
    jaxtyping.install_import_hook([f"undiffuse.{name}" for name in CHECKED], "signature_checks.check")
torch.set_num_threads(1)

from undiffuse import samplers, schedule  # noqa: E402  after the hook

ARGUMENTS = {"table": {"alpha_bar": (0.99, 0.9, 0.6, 0.3, 0.1, 0.01)}}
VARIANTS = {
    "ddpm": ["", "variance=beta"],
    "ddim": ["", "eta=0.5", "eta=1.0", "eta=1.0,brownian=true"],
    "euler": ["", "variable=ratio"],
    "heun": ["", "variable=ratio"],
    "midpoint": ["", "variable=ratio"],
    "adams": [f"order={p},corrector={c}" for p in (1, 2, 3, 4) for c in ("false", "true")],
    "lms": [f"order={p}" for p in (1, 2, 3, 4)],
    "dpm": ["order=1", "order=2", "order=2,weights=exact", "order=3", "order=2,eta=1", "order=1,eta=0.5"],
    "dpm++": [
        *("order=1", "order=2", "order=2,weights=exact", "order=3", "order=3,weights=published"),
        *("order=1,eta=1", "order=2,eta=1", "order=3,eta=0.7", "order=2,eta=1,brownian=true"),
    ],
    "dpm-single": ["order=2", "order=2,weights=exact", "order=3", "order=3,weights=exact", "order=2,eta=1"],
    "dpm++-single": [
        *("order=2", "order=2,weights=exact", "order=3", "order=3,weights=exact", "order=2,eta=1"),
        "order=2,eta=1,brownian=true",
    ],
    "deis": [*(f"order={p}" for p in (1, 2, 3, 4)), "variable=ratio", "variable=lambda", "variable=angle"],
    "unipc": [
        *(f"order={p},weights={w}" for p in (1, 2, 3) for w in ("exact", "bh1", "bh2")),
        *("form=noise", "corrector=false", "variable=ratio", "variable=index", "order=3,variable=index"),
    ],
    "ipndm": [f"order={p}" for p in (1, 2, 3, 4)],
    "pndm": ["", "start=runge-kutta"],
    "adaptive": ["rtol=1e-6,atol=1e-6,pair=bosh3", "rtol=1e-8,atol=1e-8"],
    "ancestral": ["", "sampler=midpoint", "sampler=ddim,eta=0.5"],
    "churn": ["", "sampler=euler"],
    "restart": ["", "sampler=dpm++,repeats=1,steps=2"],
    "langevin": ["", "norms=measured", "sampler=euler-maruyama", "corrections=2,snr=0.05"],
}


@functools.cache
def _schedules():
    made = {name: schedule.named(name, **ARGUMENTS.get(name, {})) for name in schedule.SCHEDULES}
    for name in ("linear", "cosine-table", "table", "cosine", "vp"):
        made[f"{name}, zero terminal"] = schedule.zero_terminal_snr(made[name])
    for name in ("linear", "cosine", "sub-vp", "flow"):
        made[f"{name}, shifted"] = schedule.LogSNRShift(made[name], -1.5)
    return made


@functools.cache
def _samplers():
    names = [f"{name}:{chosen}".rstrip(":") for name in samplers.SAMPLERS for chosen in VARIANTS.get(name, [""])]
    return {name: samplers.named(name) for name in names}


@pytest.fixture
def unchecked():
    """The signatures' checks switched off, to see what the code itself says of a value of the wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_generate_tests(metafunc):
    cases = {
        "any_schedule": _schedules(),
        "any_sampler": _samplers(),
        "any_solver": {name: sampler for name, sampler in _samplers().items() if not sampler.stochastic},
        "any_stochastic": {name: sampler for name, sampler in _samplers().items() if sampler.stochastic},
    }
    for argument, made in cases.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(made.values()), ids=list(made))
