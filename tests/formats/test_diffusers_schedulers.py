"""Schedulers of diffusers as ours: the same tables, and the same samples from the same noise."""

import math
import re

import pytest
import torch
from torch.testing import assert_close

import undiffuse
from formats import peers
from undiffuse import InputError, schedule
from undiffuse.formats import diffusers
from undiffuse.formats.diffusers import scheduler
from undiffuse.samplers import GRIDS, named
from undiffuse.samplers.aliases import ALIASES
from undiffuse.transition import posterior

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the peer are not ours
OWN = {
    "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
TRAILING, FREE = {"timestep_spacing": "trailing"}, {"clip_sample": False}
V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}


def read(kind, **options):
    return scheduler.read({"_class_name": f"{kind}Scheduler", **options})


@pytest.mark.parametrize("steps", [1000, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", **ZERO},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **ZERO},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": True},
    ],
    ids=str,
)
def test_tables_are_the_same(options, steps):
    if "trained_betas" in options:
        options = {"trained_betas": torch.linspace(1e-4, 0.03, steps).square().sqrt().tolist()}
    theirs = peers.scheduler("DDPMScheduler", num_train_timesteps=steps, **options).alphas_cumprod
    section = read("DDPM", num_train_timesteps=steps, **options).sections["schedule"]
    ours = schedule.named(**section)
    assert ours.length == steps
    alpha_bar = ours.alpha(torch.arange(1, steps + 1) / steps).square()
    assert_close(alpha_bar.float(), theirs, rtol=0, atol=1e-6)


# their scheduler, its arguments, our sampler and grid; walked where their step into clean data is as ours
WALKED = [
    ("DDIM", {**TRAILING, **FREE}, "ddim", "trailing"),
    ("DDIM", {**FREE}, "ddim", "leading"),
    ("DDIM", {**FREE, "steps_offset": 1}, "ddim", "leading+1"),
    ("DDIM", {**TRAILING, **FREE, **V, **ZERO}, "ddim", "trailing"),
    ("DDIM", {**TRAILING, **FREE, "prediction_type": "sample", "num_train_timesteps": 200, "beta_schedule":
              "scaled_linear"}, "ddim", "trailing"),
    ("DPMSolverMultistep", {}, "dpm++:order=2", "linspace+1"),
    ("UniPCMultistep", {}, "unipc:order=2,weights=bh2", "linspace+1"),
    ("DPMSolverMultistep", TRAILING, "dpm++:order=2", "trailing"),
    ("DPMSolverMultistep", {**TRAILING, **V, "solver_type": "heun"}, "dpm++:order=2,weights=exact", "trailing"),
    ("DPMSolverMultistep", {**TRAILING, **V, "solver_order": 3, "lower_order_final": False},
     "dpm++:order=3,weights=published", "trailing"),
    ("EulerDiscrete", {**TRAILING, **V}, "euler:variable=ratio", "trailing"),
    ("EulerDiscrete", {"timestep_spacing": "leading"}, "euler:variable=ratio", "leading"),
    ("EulerDiscrete", {"use_karras_sigmas": True}, "euler:variable=ratio", "karras"),
    ("HeunDiscrete", {**TRAILING, **V}, "heun:variable=ratio", "trailing"),
    ("KDPM2Discrete", {**TRAILING, **V}, "dpm-single:order=2", "trailing"),
    ("UniPCMultistep", TRAILING, "unipc:order=2,weights=bh2", "trailing"),
    ("UniPCMultistep", {**TRAILING, **V}, "unipc:order=2,weights=bh2", "trailing"),
    ("FlowMatchEulerDiscrete", {}, "ddim", "uniform"),
]  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return peers.network("UNet2DModel", **OWN)


def walked(network, planned, x, steps):
    """Where their scheduler goes from x, which has unit variance."""
    planned.set_timesteps(steps)
    sigmas = getattr(planned, "sigmas", None)
    if getattr(planned, "init_noise_sigma", 1.0) != 1:  # where theirs is x_0 + sigma noise
        x = x * (sigmas[0] ** 2 + 1) ** 0.5
    for t in planned.timesteps:
        given = planned.scale_model_input(x, t) if hasattr(planned, "scale_model_input") else x
        with torch.no_grad():
            x = planned.step(network(given, t).sample, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("kind", "options", "sampler", "grid"), WALKED, ids=[f"{kind} {options}" for kind, options, *_ in WALKED]
)
def test_samples_from_the_same_noise_are_the_same(tmp_path, network, kind, options, sampler, grid):
    planned = peers.scheduler(f"{kind}Scheduler", **options)
    folder = peers.save(tmp_path / "model", network, planned)
    assert not diffusers.read(folder).notes
    model = diffusers.load(folder, device="cpu")
    assert (model.sampling["sampler"], model.sampling["grid"]) == (sampler, grid)
    x, *path = model.walk(range(3), steps=10)
    theirs = walked(network, planned, x, 10)
    assert path[-1].std() > 0.3
    assert float((path[-1] - theirs).norm() / theirs.norm()) < 1e-4
    assert_close(path[-1], theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_every_alias_is_found_by_the_arguments_that_choose_it():
    found = 0
    for ours, aliases in ALIASES.items():
        for alias in aliases.diffusers:
            kind, _, arguments = alias.removesuffix(")").partition("(")
            if kind in scheduler.DEFAULTS:
                given = dict(part.strip().split("=") for part in arguments.split(",") if part)
                values = {"True": True, "False": False, "1": 1, "2": 2, "3": 3}
                options = {name: values.get(value, value) for name, value in given.items()}
                sampling = scheduler.read({"_class_name": kind, **options}).sections["sampling"]
                assert sampling["sampler"] == ours and sampling["grid"] in GRIDS
                found += bool(named(ours))
    assert found >= 20


def test_defaults_are_those_of_the_classes():
    library = peers.diffusers()
    for kind, options in scheduler.DEFAULTS.items():
        theirs = dict(getattr(library, kind)().config)
        ours = {name: value for name, value in options.items() if name != "trained_betas"}
        assert theirs.keys() - {"trained_betas", "_use_default_values"} == ours.keys(), kind
        differing = {name for name in ours if theirs[name] != ours[name]}
        # the class changes its own default where it cannot keep to it
        assert not differing, (kind, differing)


@pytest.mark.parametrize(
    ("kind", "options", "note"),
    [
        ("DDPM", {}, "clip_sample=True of DDPMScheduler is left out: x_0 is not clipped"),
        ("DDPM", {**FREE, "thresholding": True}, "thresholding=True .* x_0 is not thresholded"),
        ("DDPM", {**FREE, "variance_type": "learned"}, r"\(variance_type=learned\) has no equal"),
        ("DDIM", {**FREE, "set_alpha_to_one": False}, "set_alpha_to_one=False .* the last step goes to clean data"),
        ("DDIM", {**FREE, "steps_offset": 3}, "steps_offset=3 .* the grid 'leading'"),
        ("PNDM", {"set_alpha_to_one": True}, "the last step is first order"),
        ("EulerDiscrete", {**TRAILING, "final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
        ("EulerDiscrete", {}, "timestep_spacing=linspace .* other than those of the grid 'linspace'"),
        ("EulerDiscrete", {"use_beta_sigmas": True}, "use_beta_sigmas=True .* other than"),
        ("EulerDiscrete", {**TRAILING, "interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ("DPMSolverMultistep", {**TRAILING, "lambda_min_clipped": -5.1}, "the time grid starts at the noisiest level"),
        ("DPMSolverMultistep", {"timestep_spacing": "leading"}, "other than those of the grid 'leading'"),
        ("DPMSolverMultistep", {"use_karras_sigmas": True}, "other than those of the grid 'karras'"),
        ("DPMSolverMultistep", {**TRAILING, "solver_order": 3}, "lower_order_final=True"),
        ("DPMSolverMultistep", {**TRAILING, "solver_order": 1, "solver_type": "heun"},
         r"DPMSolverMultistepScheduler\(solver_type=heun, solver_order=1\) has no equal .* 'dpm\+\+:order=2'"),
        ("UniPCMultistep", {**TRAILING, "predict_x0": False}, "predict_x0=False"),
        ("LCM", {}, "original_inference_steps"),
    ],
)  # fmt: skip
def test_what_changes_sampling_a_little_is_noted(kind, options, note):
    notes = read(kind, **options).notes
    assert len(notes) == 1 and re.search(note, notes[0]), notes


def test_options_that_a_class_does_not_have_are_ignored_there_and_here():
    stable = {
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False,
        "_diffusers_version": "0.6.0", "tensor_format": "pt", "predict_epsilon": True, "solver_order": 7,
        "use_flow_sigmas": True, "something_new": None,
    }  # fmt: skip
    found = read("PNDM", **stable)
    assert found.sections["sampling"] == {
        "sampler": "pndm:start=heun", "grid": "leading+1", "steps": 50, "guidance": 1.0
    }  # fmt: skip
    assert found.sections["schedule"] == {
        "name": "scaled-linear", "steps": 1000, "beta_start": 0.00085, "beta_end": 0.012
    }  # fmt: skip
    assert found.sections["range"] == {"t_min": 0.001, "t_max": 1.0}


def test_steps_are_those_of_their_pipelines():
    counts = [read(kind).sections["sampling"]["steps"] for kind in ("DDPM", "DDIM", "LCM", "FlowMatchEulerDiscrete")]
    assert counts == [1000, 50, 4, 50]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("DDPM", {"beta_schedule": "laplace"}, "DDPMScheduler options .* here: beta_schedule='laplace'$"),
        ("DDIM", {"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ("DDIM", {"timestep_spacing": "sideways"}, "timestep_spacing='sideways'"),
        ("DDIM", {"trained_betas": [0.1, 0.2]}, r"num_train_timesteps=1000 \(of 2 trained_betas\)"),
        ("EulerDiscrete", {"timestep_type": "continuous", "sigma_max": 80.0},
         "EulerDiscreteScheduler options that have no equal here: sigma_max=80.0, timestep_type='continuous'"),
        ("UniPCMultistep", {"use_flow_sigmas": True, "flow_shift": 3.0}, "use_flow_sigmas=True"),
        ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_dynamic_shifting": True},
         "shift=3.0, use_dynamic_shifting=True"),
        ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ("FlowMatchEulerDiscrete", {"num_train_timesteps": 100}, "num_train_timesteps=100"),
        ("DDIM", {"something_new": 3}, "something_new=3"),
        ("DDIM", {"predict_epsilon": False}, "predict_epsilon=False"),
        ("EDMEuler", {}, "unknown scheduler 'EDMEulerScheduler'.*Known: DDPMScheduler, .*FlowMatchEuler"),
        ("DDIMI", {}, "did you mean 'DDIMScheduler'"),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_refused_by_name(kind, options, message):
    with pytest.raises(InputError, match=message):
        read(kind, **options)


def test_a_table_of_noise_without_signal_is_refused_where_noise_is_predicted(tmp_path, network):
    folder = peers.save(tmp_path / "model", network, {**peers.LINEAR, **ZERO})
    with pytest.raises(InputError, match="noise prediction is undefined"):
        diffusers.load(folder)


def test_a_learned_variance_that_cannot_be_told_from_the_output_is_refused(tmp_path):
    upscaler = peers.network("UNet2DModel", **{**OWN, "in_channels": 6, "out_channels": 6})
    folder = peers.save(
        tmp_path / "model", upscaler, {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    )
    with pytest.raises(InputError, match="variance is learned, but the network gives 6 channels for 6"):
        diffusers.read(folder)


def test_minus_infinity_is_read_as_json_of_python_has_it(tmp_path, network):
    planned = peers.scheduler("DPMSolverMultistepScheduler", **TRAILING)
    folder = peers.save(tmp_path / "model", network, planned)
    peers.change(folder / "scheduler" / "scheduler_config.json", lambda_min_clipped=-math.inf)
    assert not diffusers.read(folder).notes


def test_a_table_of_no_name_is_sampled_from_a_run_folder(tmp_path, network):
    folder = peers.save(tmp_path / "model", network, {**peers.LINEAR, "beta_schedule": "sigmoid"})
    diffusers.import_folder(folder, tmp_path / "run")
    model = undiffuse.load(tmp_path / "run", device="cpu")
    assert (model.sample(2, steps=3) == diffusers.load(folder, device="cpu").sample(2, steps=3)).all()


def test_a_sampler_that_cannot_start_at_zero_terminal_snr_is_replaced_and_said(tmp_path, network):
    folder = peers.save(tmp_path / "model", network, peers.scheduler("EulerDiscreteScheduler", **V, **ZERO))
    assert any("cannot start where alpha = 0" in note for note in diffusers.read(folder).notes)
    assert diffusers.load(folder, device="cpu").sample(1, steps=3).shape == (1, 8, 8, 3)


def test_ddim_of_theirs_over_linspace_is_said_to_step_otherwise():
    assert any("steps down by T / steps" in note for note in read("DDIM", **FREE, timestep_spacing="linspace").notes)


def test_the_learned_variance_of_a_step_is_theirs():
    """Of each step of a grid of 20 but the last, which adds no noise."""
    theirs = peers.diffusers().DDPMScheduler(variance_type="learned_range", timestep_spacing="trailing")
    theirs.set_timesteps(20)
    linear, said = schedule.Linear(), torch.linspace(-1, 1, 7, dtype=torch.float64)
    for i in theirs.timesteps[:-1].tolist():
        t = torch.tensor([(i + 1) / 1000, (theirs.previous_timestep(i) + 1) / 1000], dtype=torch.float64)
        sigma = linear.sigma(t)
        ours = posterior(linear, t[:1], t[1:]).variance * (sigma[0] / sigma[1]) ** (said + 1)
        assert_close(ours, theirs._get_variance(i, said, "learned_range").exp().double(), rtol=1e-4, atol=0)
