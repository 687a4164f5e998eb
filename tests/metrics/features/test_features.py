"""The contract that every member of FEATURES keeps, and names and files."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from undiffuse.errors import InputError
from undiffuse.metrics import Classifier
from undiffuse.metrics.features import FEATURES, ClassifierFeatures, Module, Pixels, named
from undiffuse.metrics.features.base import fingerprint
from undiffuse.metrics.seen import look

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    made = Classifier(3, 40, 32, 5)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
    return made


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


MADE = {
    "classifier": lambda fixture: ClassifierFeatures(fixture("classifier")),
    "clip": lambda fixture: named("clip", source=str(fixture("clip"))),
    "dinov2": lambda fixture: named("dinov2", source=str(fixture("dinov2"))),
    "pixels": lambda fixture: named("pixels"),
    "a module": lambda fixture: Module(net(), "x"),
}


@pytest.fixture(params=[*(name for name in FEATURES if name != "inception"), "a module"])  # that has tests of its own
def features(request):
    return MADE[request.param](request.getfixturevalue)


def test_a_picture_has_the_same_features_whatever_it_stands_beside(features, pictures):
    images = pictures(7)
    whole, scores = features(images)
    features.batch_size = 2
    parts, _ = features(images)
    assert whole.dtype == torch.float32 and whole.device == images.device and not whole.is_inference()
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(whole[3:4], features(images[3:4])[0], atol=1e-5)
    assert scores is None or len(scores) == 7
    assert features.dim in (None, whole.shape[1])
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_a_training_step_in_half_precision_does_not_reach_them(features, pictures):
    whole, _ = features(pictures(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(pictures(2))[0], whole)


def test_one_pass_leaves_the_features_and_their_moments(features, pictures):
    seen = look(features, pictures(7))
    assert (seen.name, seen.key, seen.n, seen.is_inception) == (features.name, features.key, 7, False)
    assert torch.allclose(seen.moments.mean.float(), seen.features.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(0, 3, 8, 8).byte()]
)
def test_what_is_no_set_of_pictures_is_refused(features, images):
    with pytest.raises(InputError, match=r"images must be uint8 \(N, C, H, W\), not empty"):
        features(images)


def test_classifier_features_are_the_classifiers_own(classifier, pictures, tmp_path):
    images = pictures(5)
    features, scores = ClassifierFeatures(classifier)(images)
    assert torch.equal(features, classifier.features(images))
    assert torch.equal(scores.argmax(1), classifier.predict(images))
    classifier.save(tmp_path / "judge.safetensors")
    again = named(str(tmp_path / "judge.safetensors"))
    assert torch.equal(again(images)[0], features)
    assert again.key == ClassifierFeatures(classifier).key and again.name == "64 classifier features"
    with pytest.raises(InputError, match=r"takes images \(3, 40, 32\), not \(3, 8, 8\)"):
        again(images[..., :8, :8])


def test_pixels_are_means_over_boxes(pictures):
    images = pictures(2, 1, 16, 8)
    found, scores = Pixels()(images)
    means = images.double().reshape(2, 1, 8, 2, 8, 1).mean((3, 5)) / 255
    assert scores is None and torch.allclose(found.double(), means.flatten(1), atol=1e-6)
    assert torch.equal(Pixels(4)(images)[0], F.adaptive_avg_pool2d(images / 255, 4).flatten(1))
    assert len({Pixels().key, Pixels(4).key}) == len({Pixels().name, Pixels(4).name}) == 2


def test_the_key_is_of_the_network_and_of_the_preparation():
    keys = [
        Module(net(), "x").key,
        Module(net(1), "x").key,
        Module(nn.Sequential(net(), nn.ReLU()), "x").key,
        Module(net(), "x", size=8).key,
        Module(net(), "x", size=8, resize="legacy").key,
        Module(net(), "x", normalise="symmetric").key,
        Module(net(), "x", colour=True).key,
    ]
    assert len(set(keys)) == len(keys)
    assert Module(net(), "another name").key == keys[0]
    assert fingerprint("a", "bc") != fingerprint("ab", "c")


def test_preparation_is_what_it_says(pictures):
    grey = pictures(2, 1, 8, 8)
    rgb = Module(nn.Flatten(), "x", colour=True)(grey)[0].reshape(2, 3, 8, 8)
    assert torch.allclose(rgb, grey.expand(-1, 3, -1, -1) / 255)
    assert torch.allclose(Module(nn.Flatten(), "x", normalise="symmetric")(grey)[0], grey.flatten(1) / 127.5 - 1)
    assert torch.allclose(Module(nn.Flatten(), "x", normalise="levels")(grey)[0], grey.flatten(1).float(), atol=1e-3)
    red = Module(nn.Flatten(), "x", normalise="imagenet", colour=True)(grey)[0].reshape(2, 3, 8, 8)[:, :1]
    assert torch.allclose(red, (grey / 255 - 0.485) / 0.229, atol=1e-5)
    assert Module(nn.Flatten(), "x", size=4)(grey)[0].shape == (2, 16)


def test_scores_and_other_outputs(pictures):
    class Two(nn.Module):
        def forward(self, x):
            return x.flatten(1), x.mean((2, 3))

    features, scores = Module(Two(), "x")(pictures())
    assert features.shape == (3, 3 * 40 * 32) and scores.shape == (3, 3)
    with pytest.raises(InputError, match=r"features must be numbers \(N, d\), a row a picture, not \(3, 3, 40, 32\)"):
        Module(nn.Identity(), "x")(pictures())
    with pytest.raises(InputError, match="does not take pictures"):
        Module(net(), "x")(pictures(channels=1))
    with pytest.raises(InputError, match="the normalisation imagenet is of RGB, not of 1 channels"):
        Module(net(), "x", normalise="imagenet")(pictures(channels=1))
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        Module(net(), "x", colour=True)(pictures(channels=4))
    poisoned = net()
    poisoned[0].weight.data[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        Module(poisoned, "x")(pictures())


def test_a_torchscript_file(pictures, tmp_path):
    network = net().eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 20, 20)), tmp_path / "net.pt")
    found = named(f"{tmp_path}/net.pt:size=20,normalise=imagenet")
    assert found.name == "features of net.pt" and not found.is_inception
    expected = Module(network, "x", size=20, normalise="imagenet")(pictures())[0]
    assert torch.allclose(found(pictures())[0], expected, atol=1e-6)
    assert found.key != named(f"{tmp_path}/net.pt").key
    (tmp_path / "run:step=3.pt").write_bytes((tmp_path / "net.pt").read_bytes())
    assert named(f"{tmp_path}/run:step=3.pt").name == "features of run:step=3.pt"


def test_an_onnx_file(pictures, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(3 * 20 * 20, 6)).astype(np.float32)
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["x"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "w"], ["features"]),
            onnx.helper.make_node("Relu", ["features"], ["scores"]),
        ],
        "net",
        [value("x", kind, ["n", 3, 20, 20])],
        [value("features", kind, ["n", 6]), value("scores", kind, ["n", 6])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    features, scores = named(str(tmp_path / "net.onnx"))(pictures())  # resized to what the file fixes
    flat = Module(nn.Flatten(), "x", size=20)(pictures())[0]
    assert torch.allclose(features, flat @ torch.from_numpy(weight), atol=1e-4)
    assert torch.equal(scores, features.relu())
    with pytest.raises(InputError, match="does not take pictures") as caught:
        named(str(tmp_path / "net.onnx"), size=8)(pictures())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".pt", ".onnx", ".safetensors"])
def test_missing_and_damaged_files_are_one_line(ending, tmp_path):
    damaged = tmp_path / f"damaged{ending}"
    damaged.write_bytes(b"nothing of the kind" * 10)
    for path in (damaged, tmp_path / f"missing{ending}"):
        with pytest.raises(InputError) as caught:
            named(str(path))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("incepton", "unknown features 'incepton': did you mean 'inception'"),
        ("pixels:sise=4", "unknown argument of features pixels 'sise': did you mean 'side'"),
        ("pixels:side=0", "a side of 1 or more, not 0"),
        ("pixels:side=4,8", "the form name:key=value, not '8'"),
        ("net.gguf", "a file ending in .onnx"),
        ("inception:resize=lanczos", "unknown resizing 'lanczos'"),
        ("classifier", "features classifier needs classifier"),
        ("", "not by ''"),
    ],
)
def test_unknown_names_and_arguments_are_refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        named(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("torch_fidelity", "inception"),
        ("transformers", "dinov2"),
        ("transformers", "clip"),
        ("onnxruntime", "net.onnx"),
    ],
)
def test_without_the_extra_it_is_one_line_that_names_it(package, text, monkeypatch, tmp_path):
    (tmp_path / "net.onnx").touch()
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'undiffuse\[metrics\]'") as caught:
        named(text)
    assert "\n" not in str(caught.value)


def test_only_inception_may_be_called_fid():
    assert [name for name, cls in FEATURES.items() if cls.is_inception] == ["inception"]
