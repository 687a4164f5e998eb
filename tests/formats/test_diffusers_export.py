"""Our models as folders of diffusers: the library reads them, and so do we, with nothing lost."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

import undiffuse
from formats import peers
from undiffuse import InputError, config, pipeline, weights
from undiffuse.files import write_text
from undiffuse.formats import diffusers

pytestmark = pytest.mark.filterwarnings("ignore")
UNET = {"name": "unet", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
DIT = {"name": "dit", "width": 16, "depth": 2, "heads": 2, "frequency_shift": 1}
LABEL = {"condition": {"label": {"name": "label"}}, "facts": {"label": {"classes": ["cat", "dog", "newt"]}}}
TEXT = {"condition": {"text": {"name": "embeddings"}}, "facts": {"text": {"size": 6}}}
PICTURE = {"condition": {"low": {"name": "image", "optional": False}}, "facts": {"low": {"channels": 3}}}


def recipe(network, condition=None, facts=None, shape=(3, 8, 8), **sections):
    given = {
        "name": "small", "condition": condition or {}, "codec": "pixels", "network": network,
        "schedule": {"name": "cosine"}, "prediction": {"name": "v", "label": None},
        "range": {"t_min": None, "t_max": 1.0},
        "sampling": {"sampler": "dpm++:order=2", "grid": "karras", "steps": 7, "guidance": 1.5},
        "resolved": {"shape": list(shape), "conditions": facts or {}, "data_std": 0.6, "precision": "float32",
                     "undiffuse": undiffuse.__version__},
    }  # fmt: skip
    return given | sections


def model_of(spec, seed=0):
    made = pipeline.assemble(spec)
    peers.randomised(made.denoiser, seed)
    return made


EXPORTED = {
    "as in a recipe": recipe(UNET),
    "a label": recipe(
        {**UNET, "attention": [False, True], "head_width": 4}, **LABEL, range={"t_min": 0.001, "t_max": 1.0}),
    "one head, resampled by residual blocks": recipe({**UNET, "attention": True, "resample": "residual"}),
    "added, padded at the end, shifted": recipe(
        {**UNET, "modulation": "add", "pad_end": True, "frequency_shift": 1, "epsilon": 1e-6, "blocks": 2,
         "embedding": 20, "attention": [True, False], "middle_attention": False, "heads": [1, 2]}),
    "a table of 200 steps, told the step": recipe(
        UNET, schedule={"name": "linear", "steps": 200}, prediction={"name": "noise", "label": "step"}),
    "a table of 1000 steps, told the time, zero terminal": recipe(
        UNET, schedule={"name": "scaled-linear", "zero_terminal": True}, prediction={"name": "v"}),
    "a table of 50 steps, told the time": recipe(
        UNET, schedule={"name": "cosine-table", "steps": 50}, prediction={"name": "x0", "label": "time"}),
    "a label, told of its augmentation": recipe(
        UNET, {**LABEL["condition"], "done": {"name": "augmentation", "probability": 0.2}}, LABEL["facts"]),
    "a picture beside": recipe(UNET, **PICTURE, shape=(3, 8, 16)),
    "text": recipe({**UNET, "attention": [True, False], "middle_attention": True, "heads": [2, 4], "depth": [2, 1]},
                   **TEXT),
    "text, transformers in the last level": recipe({**UNET, "attention": [False, True], "head_width": 8}, **TEXT),
    "a DiT": recipe(DIT, **LABEL),
    "a DiT of a label without null": recipe(
        {**DIT, "patch": 4}, {"label": {"name": "label", "optional": False}}, LABEL["facts"]),
}  # fmt: skip


def opened(folder):
    """The network and the scheduler of a folder, opened by the library."""
    library = peers.diffusers()
    place = "transformer" if (folder / "transformer").is_dir() else "unet"
    kind = json.loads((folder / place / "config.json").read_text())["_class_name"]
    network = getattr(library, kind).from_pretrained(folder, subfolder=place).eval()
    return network, library.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def conditions(model, seed=1):
    """Raw conditions of 3 samples for ours, and what theirs is given beside x."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs, beside = {}, {}, None
    for name, part in model.parts.items():
        if part.feeds == "vector":
            ours[name] = theirs["class_labels"] = torch.tensor([0, 2, 1])
        elif part.feeds == "tokens":
            ours[name] = theirs["encoder_hidden_states"] = torch.randn(3, 5, 6, generator=generator)
        else:
            ours[name] = beside = torch.randn(3, *model.shape, generator=generator)
    return ours, theirs, beside


def sampled(network, planned, x, steps, given, beside):
    planned.set_timesteps(steps)
    for t in planned.timesteps:
        whole = x if beside is None else torch.cat([x, beside], 1)
        with torch.no_grad():
            x = planned.step(network(whole, t.expand(len(x)), **given).sample, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", EXPORTED)
def test_the_library_gives_the_same_outputs_and_samples(tmp_path, name):
    spec = EXPORTED[name]
    model = model_of(spec)
    diffusers.write(tmp_path / "there", spec, model.denoiser.state_dict())
    network, planned = opened(tmp_path / "there")
    ours, theirs, beside = conditions(model)
    steps = planned.config.num_train_timesteps
    x, integers = torch.randn(3, *model.shape), torch.tensor([0, steps // 3, steps - 2])
    whole = x if beside is None else torch.cat([x, beside], 1)
    denoiser, told = model.denoiser, integers.float()
    if spec["prediction"].get("label") != "step":
        told = told + 1
    with torch.no_grad():
        output = denoiser.network(x, told, **denoiser.encode(ours))
        # the angles of a time embedding, up to 1000, are known to 3e-5 in float32; a turned one has other roundings
        tolerance = 5e-5 if spec["network"]["name"] == "dit" else 1e-5
        assert_close(network(whole, integers, **theirs).sample, output, rtol=1e-5, atol=tolerance)
    levels = denoiser.schedule.alpha((integers + 1) / steps).square().float()
    assert_close(planned.alphas_cumprod[integers], levels, rtol=0, atol=1e-6)

    times = (steps - torch.arange(10) * (steps // 10)) / steps
    grid = torch.cat([times.double(), torch.zeros(1).double()])
    start = model.denoiser.prior(range(3), model.shape)
    samples = undiffuse.samplers.sample(denoiser.given(**ours), undiffuse.samplers.named("ddim"), start, grid)
    found = sampled(network, planned, start, 10, theirs, beside)
    assert_close(samples, found, rtol=1e-4, atol=1e-4 * float(found.abs().max()))


@pytest.mark.parametrize("name", EXPORTED)
def test_nothing_is_lost_on_the_way_there_and_back(tmp_path, name):
    spec = EXPORTED[name]
    model = model_of(spec)
    state = model.denoiser.state_dict()
    diffusers.write(tmp_path / "there", spec, state)
    back = diffusers.read(tmp_path / "there")
    for section in ("name", "condition", "codec", "sampling"):
        assert back.spec[section] == spec[section]
    assert back.spec["resolved"] == spec["resolved"]
    turned = spec["prediction"].get("label") != "step"
    assert back.weights.keys() == state.keys()
    for key, value in back.weights.items():
        if not (turned and key == "network.embed.0.weight"):
            assert torch.equal(value, state[key]), key
    other = diffusers.load(tmp_path / "there", device="cpu").denoiser
    ours, _, _ = conditions(model)
    x, t = torch.randn(3, *model.shape), torch.tensor([0.02, 0.3, 0.98]).double()
    with torch.no_grad():
        assert_close(
            other(x, t, other.encode(ours)).x0,
            model.denoiser(x, t, model.denoiser.encode(ours)).x0,
            rtol=1e-4,
            atol=1e-4,
        )
        if all(part.optional for part in model.parts.values()):
            nulls = [found(x, t, found.encode({})).v for found in (other, model.denoiser)]
            assert_close(nulls[0], nulls[1], rtol=1e-4, atol=1e-4)


@pytest.fixture
def run(tmp_path):
    spec = EXPORTED["a label"]
    write_text(tmp_path / "run" / "recipe.yaml", config.to_yaml(spec))
    weights.write(tmp_path / "run" / "model.safetensors", model_of(spec).denoiser.state_dict(), {})
    return tmp_path / "run"


def test_a_run_folder_is_exported(tmp_path, run):
    notes = diffusers.export(run, tmp_path / "there")
    starts = ["the scheduler is a DDIM", "the schedule 'cosine' g", "of the 4 classes there,"]
    assert [note[:23] for note in notes] == starts
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["scheduler", "undiffuse.json", "unet"]
    ours, theirs = pipeline.load(run, device="cpu"), diffusers.load(tmp_path / "there", device="cpu")
    assert ours.classes == theirs.classes == ("cat", "dog", "newt")
    assert theirs.sampling == ours.sampling
    pictures = [model.sample(2, label="dog", sampler="ddim", grid="uniform", steps=5) for model in (ours, theirs)]
    assert abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_an_existing_folder_is_replaced_only_where_that_is_asked_for_and_it_is_one_of_theirs(tmp_path, run):
    diffusers.export(run, tmp_path / "there")
    with pytest.raises(InputError, match="there exists already: choose another name, or overwrite"):
        diffusers.export(run, tmp_path / "there")
    diffusers.export(run, tmp_path / "there", overwrite=True)
    with pytest.raises(InputError, match=r"run exists already: choose another name \(only what was exported here"):
        diffusers.export(run, run, overwrite=True)
    assert (run / "recipe.yaml").is_file()


def test_the_library_makes_a_pipeline_of_an_unconditional_model(tmp_path):
    spec = EXPORTED["as in a recipe"]
    diffusers.write(tmp_path / "there", spec, model_of(spec).denoiser.state_dict())
    made = peers.diffusers().DDPMPipeline.from_pretrained(tmp_path / "there")
    made.set_progress_bar_config(disable=True)
    assert made(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)


def test_weights_of_another_recipe_are_refused(tmp_path):
    state = model_of(EXPORTED["a label"]).denoiser.state_dict()
    with pytest.raises(InputError, match=r"they have also network\.down\.2\.attention\.norm\.bias"):
        diffusers.write(tmp_path / "there", EXPORTED["as in a recipe"], state)
    del state["conditioner.parts.label.embedding.weight"]
    with pytest.raises(InputError, match=r"they have no conditioner\.parts\.label\.embedding\.weight"):
        diffusers.write(tmp_path / "there", EXPORTED["a label"], state)


def test_what_has_no_place_there_is_kept_beside_and_said(tmp_path):
    spec = recipe(
        {**UNET, "attention": True}, **TEXT,
        sampling={"sampler": "ddim", "grid": "fitted", "steps": 5, "guidance": 1.0},
        range={"t_min": 0.01, "t_max": 1.0},
    )  # fmt: skip
    notes = diffusers.write(tmp_path / "there", spec, model_of(spec).denoiser.state_dict())
    assert any("the fitted grid 'fitted' stays" in note for note in notes)
    assert any("undiffuse.safetensors: conditioner.parts.text.absent" in note for note in notes)
    assert any("trained from t = 0.01; the table, and grids over it, start at 0.001" in note for note in notes)
    assert diffusers.read(tmp_path / "there").spec["sampling"]["grid"] == pipeline.DEFAULTS["grid"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {**UNET, "patch": 2, "resample": "narrow"}}, "network.patch=2, network.resample='narrow'$"),
        ({"network": {**UNET, "dimensions": 1}}, "network.dimensions=1"),
        ({"network": {**UNET, "attention": True, "heads": [2, 2]}}, r"network.heads=\[2, 2, 2\] over \[8, 16, 16\]"),
        ({"network": {**UNET, "width": 48, "groups": 32}}, r"network.groups=32 \(16, 32 in different norms\)"),
        ({"network": {**UNET, "attention": [True, False]}, **TEXT}, "network.middle_attention=False with"),
        ({"network": {**UNET, "attention": True, "resample": "residual"}, **TEXT}, "network.resample='residual' with"),
        ({"network": {"name": "mlp"}}, "network.name='mlp'"),
        ({"network": {**DIT, "positions": "rope", "frequency_shift": 0}, **LABEL},
         "network.positions='rope', network.frequency_shift=0"),
        ({"network": DIT}, r"no label \(a DiT has one there\)"),
        ({"network": DIT, **LABEL, "shape": (3, 8, 16)}, r"samples of 8 x 16 \(a DiT is square there\)"),
        ({"network": {**UNET, "learned_variance": True}, **PICTURE}, "learned_variance=True with network.condition"),
        ({"schedule": {"name": "edm"}, "prediction": {"name": "edm"}},
         r"schedule.name='edm' \(not variance preserving\), prediction.name='edm'"),
        ({"schedule": {"name": "flow"}, "prediction": {"name": "flow"}}, "schedule.name='flow' .* prediction.name"),
        ({"prediction": {"name": "score"}, "range": {"t_min": None, "t_max": 0.9}},
         "prediction.name='score', range.t_max=0.9"),
        ({"prediction": {"name": "v", "label": "log-snr"}}, "prediction.label='log-snr'"),
        ({"condition": {"size": {"name": "vector"}}, "facts": {"size": {"size": 2}}}, "condition.size='vector'"),
        ({"condition": {"low": {"name": "image", "factor": 2}}, "facts": {"low": {"channels": 3}}},
         "condition.low='image'"),
        ({"condition": {"a": {"name": "label"}, "b": {"name": "label"}}, "facts": {}},
         "condition.a='label', condition.b='label'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_has_no_equal_there_is_refused_by_name(tmp_path, changes, message):
    spec = recipe(changes.pop("network", UNET), **changes)
    with pytest.raises(InputError, match=f"^diffusers has no equal of .*{message}"):
        diffusers.write(tmp_path / "there", spec, {})
    assert not (tmp_path / "there").exists()


def test_a_recipe_with_several_is_told_all_of_them(tmp_path):
    spec = recipe({**UNET, "patch": 2}, schedule={"name": "ve"}, prediction={"name": "flow", "label": "log-snr"})
    names = ["schedule.name", "prediction.name", "prediction.label", "network.patch"]
    with pytest.raises(InputError) as error:
        diffusers.write(tmp_path / "there", spec, {})
    places = [str(error.value).find(name) for name in names]
    assert places == sorted(places) and -1 not in places


def test_the_rotation_is_exact_in_float64():
    from undiffuse.formats.diffusers.time_embedding import told_one_less
    from undiffuse.networks.unet import sinusoidal

    matrix = torch.randn(5, 12, dtype=torch.float64)
    for shift in (0, 1):
        frequencies = torch.exp(torch.arange(6).double() * (-math.log(10000) / (6 - shift)))

        def features(n, frequencies=frequencies):
            return torch.cat([(n * frequencies).cos(), (n * frequencies).sin()])

        for n in (0, 17, 999):
            assert_close(told_one_less(matrix, shift) @ features(n), matrix @ features(n + 1), rtol=0, atol=1e-11)
        assert_close(sinusoidal(torch.tensor([3.0]), 12, shift)[0], features(3).float(), rtol=0, atol=1e-5)


def test_a_learned_variance_goes_out_with_the_scheduler_that_splits_it_off(tmp_path):
    spec = recipe({**UNET, "learned_variance": True})
    diffusers.write(tmp_path / "there", spec, model_of(spec).denoiser.state_dict())
    config = json.loads((tmp_path / "there" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["variance_type"]) == ("DDPMScheduler", "learned_range")
    index = json.loads((tmp_path / "there" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    library = peers.diffusers()
    pictures = library.DDPMPipeline.from_pretrained(tmp_path / "there")(num_inference_steps=2, output_type="np").images
    assert pictures.shape[0] == 1 and diffusers.load(tmp_path / "there", device="cpu").denoiser.learns_variance
