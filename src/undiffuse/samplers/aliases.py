"""What other toolkits call our samplers and grids. Data alone; `undiffuse.samplers.names` reads it.

The samplers here do the same as those that they stand for: tests/samplers/test_equality.py walks both. What has no
equal is not listed (k-diffusion's `dpm_fast` and `dpm_adaptive`). Restart alone is listed for its method: A1111 chooses
the interval and the repeats by the number of steps.
"""

from typing import NamedTuple


class Aliases(NamedTuple):
    """The names of one sampler in diffusers (with the arguments that choose it), k-diffusion, and A1111 and ComfyUI."""

    diffusers: tuple[str, ...] = ()
    k_diffusion: tuple[str, ...] = ()
    webui: tuple[str, ...] = ()


_MULTI, _SINGLE, _UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"
_SDE, _HEUN = "algorithm_type=sde-dpmsolver++", "solver_type=heun"

# our name -> theirs; the noise of k-diffusion's SDE samplers is that of a Brownian path
ALIASES: dict[str, Aliases] = {
    "ddpm": Aliases(("DDPMScheduler",), (), ("DDPM",)),
    "ddpm:variance=beta": Aliases(("DDPMScheduler(variance_type=fixed_large)",)),
    "ddpm:variance=learned": Aliases(("DDPMScheduler(variance_type=learned_range)",)),
    "ddim": Aliases(("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"), (), ("DDIM",)),
    "ddim:eta=1": Aliases(
        ("EulerAncestralDiscreteScheduler",), ("sample_euler_ancestral",), ("Euler a", "euler_ancestral")
    ),
    "euler:variable=ratio": Aliases(("EulerDiscreteScheduler", "EDMEulerScheduler"), ("sample_euler",), ("Euler",)),
    "heun:variable=ratio": Aliases(("HeunDiscreteScheduler",), ("sample_heun",), ("Heun",)),
    "dpm-single:order=2": Aliases(("KDPM2DiscreteScheduler",), ("sample_dpm_2",), ("DPM2", "dpm_2")),
    "ancestral:sampler=(dpm-single:order=2)": Aliases(
        ("KDPM2AncestralDiscreteScheduler",), ("sample_dpm_2_ancestral",), ("DPM2 a", "dpm_2_ancestral")
    ),
    "ancestral:sampler=(dpm++-single:order=2)": Aliases(
        (), ("sample_dpmpp_2s_ancestral",), ("DPM++ 2S a", "dpmpp_2s_ancestral")
    ),
    "lms:order=4": Aliases(("LMSDiscreteScheduler",), ("sample_lms",), ("LMS",)),
    "pndm:start=heun": Aliases(("PNDMScheduler(skip_prk_steps=True)",), (), ("PLMS",)),
    "pndm:start=runge-kutta": Aliases(("PNDMScheduler",)),
    "ipndm:order=4": Aliases(("IPNDMScheduler",), (), ("iPNDM",)),
    "deis:order=2,variable=lambda": Aliases(("DEISMultistepScheduler",)),
    "deis:order=3,variable=time": Aliases((), (), ("DEIS",)),
    "unipc:order=2,weights=bh2": Aliases((_UNIPC,)),
    "unipc:order=2,weights=bh1": Aliases((f"{_UNIPC}(solver_type=bh1)",)),
    "unipc:order=3,weights=bh2": Aliases((f"{_UNIPC}(solver_order=3)",), (), ("uni_pc_bh2",)),
    "unipc:order=3,weights=bh1": Aliases((f"{_UNIPC}(solver_order=3, solver_type=bh1)",), (), ("UniPC", "uni_pc")),
    "dpm++:order=1": Aliases((f"{_MULTI}(solver_order=1)",)),
    "dpm++:order=2": Aliases(
        (_MULTI, "EDMDPMSolverMultistepScheduler"), ("sample_dpmpp_2m",), ("DPM++ 2M", "dpmpp_2m")
    ),
    "dpm++:order=2,weights=exact": Aliases((f"{_MULTI}({_HEUN})",)),
    "dpm++:order=3,weights=published": Aliases((f"{_MULTI}(solver_order=3)",)),
    "dpm++:order=2,eta=1": Aliases((f"{_MULTI}({_SDE})",)),
    "dpm++:order=2,eta=1,brownian=true": Aliases((), ("sample_dpmpp_2m_sde",), ("DPM++ 2M SDE", "dpmpp_2m_sde")),
    "dpm++:order=2,weights=exact,eta=1": Aliases((f"{_MULTI}({_SDE}, {_HEUN})",)),
    "dpm++:order=2,weights=exact,eta=1,brownian=true": Aliases(
        (), ("sample_dpmpp_2m_sde(solver_type=heun)",), ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun")
    ),
    "dpm++:order=3,weights=published,eta=1,brownian=true": Aliases(
        (), ("sample_dpmpp_3m_sde",), ("DPM++ 3M SDE", "dpmpp_3m_sde")
    ),
    "dpm:order=2": Aliases((f"{_MULTI}(algorithm_type=dpmsolver)",)),
    "dpm:order=2,eta=1": Aliases((f"{_MULTI}(algorithm_type=sde-dpmsolver)",)),
    "dpm++-single:order=2": Aliases((_SINGLE,)),
    "dpm++-single:order=2,eta=1,brownian=true": Aliases(
        ("DPMSolverSDEScheduler",), ("sample_dpmpp_sde",), ("DPM++ SDE", "dpmpp_sde")
    ),
    "consistency": Aliases(
        ("LCMScheduler", "CMStochasticIterativeScheduler", "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)"),
        (),
        ("LCM",),
    ),
    "restart": Aliases((), (), ("Restart",)),
}

# what A1111 and ComfyUI call "schedule type" or "scheduler", as it follows a sampler's name -> our grid
GRID_ALIASES: dict[str, str] = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",  # at its default exponent, 1
    "Beta": "beta",
    "Normal": "uniform",
    "Uniform": "uniform",
    "SGM Uniform": "trailing",
    "Trailing": "trailing",
    "Simple": "trailing",
    "DDIM Uniform": "leading",
    "KL Optimal": "arc-length",
}

# how a diffusers scheduler is told its grid -> our grid
GRID_ARGUMENTS: dict[str, str] = {
    "use_karras_sigmas=True": "karras",
    "use_exponential_sigmas=True": "exponential",
    "use_beta_sigmas=True": "beta",
    "use_lu_lambdas=True": "log-snr",
    "timestep_spacing=leading": "leading",
    "timestep_spacing=linspace": "linspace",
    "timestep_spacing=trailing": "trailing",
}
