"""The native kernels against the formulas they stand for, in double precision, and what happens without them."""

import ctypes
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from undiffuse import kernels
from undiffuse.networks import UNet, attention
from undiffuse.networks.attention import _by_products, attend
from undiffuse.networks.normalisation import GroupNorm, _Normalised, normalised
from undiffuse.networks.ordinary import ordinary

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}
needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels here: {kernels.missing()}")


def error(found, expected):
    return float((found.detach().double() - expected).norm() / expected.norm())


def layer(batch, channels, space, dtype, modulated, mean=1.0):
    """x, scale and shift, which learn."""
    torch.manual_seed(0)
    x = (2 * torch.randn(batch, channels, *space) + mean).to(dtype).to(memory_format=torch.channels_last)
    rows = batch if modulated else 1
    return [t.requires_grad_() for t in (x, 1 + 0.3 * torch.randn(rows, channels), torch.randn(rows, channels))]


def in_double(x, scale, shift, groups, silu):
    """torch's own normalisation, in float64."""
    z = F.group_norm(x, groups, eps=1e-5) * scale[..., None, None] + shift[..., None, None]
    return F.silu(z) if silu else z


# one sample of many rows is shared out among the threads, more samples are not
SIZES = [(3, 16, (5, 3), 4), (2, 48, (9, 7), 16), (1, 64, (40, 30), 32), (4, 128, (7, 7), 8), (1, 16, (1, 1), 4)]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "channels", "space", "groups"), SIZES, ids=str)
def test_normalisation_and_its_gradients(batch, channels, space, groups, dtype):
    for silu, modulated in itertools.product((True, False), (True, False)):
        given = layer(batch, channels, space, dtype, modulated)
        assert kernels.normalises(given[0].flatten(2).transpose(1, 2))
        wide = [t.detach().double().requires_grad_() for t in given]
        y, expected = _Normalised.apply(*given, groups, 1e-5, silu), in_double(*wide, groups, silu)
        assert error(y, expected.detach()) < TOLERANCE[dtype]
        slope = torch.randn_like(y)
        found = torch.autograd.grad(y, given, slope)
        for got, want in zip(found, torch.autograd.grad(expected, wide, slope.double()), strict=True):
            assert error(got, want) < 2 * TOLERANCE[dtype]
            assert got.stride() == got.new_empty(0).set_(got).stride()


@needs_kernels
def test_a_large_mean_costs_no_more_digits_than_it_must():
    x, scale, shift = layer(2, 32, (16, 16), torch.float32, False, mean=3000.0)
    y = _Normalised.apply(x, scale, shift, 8, 1e-5, False)
    exact = in_double(x.double(), scale.double(), shift.double(), 8, False).detach()
    assert error(y, exact) < 3e-4  # an ulp of 3000 is 2.4e-4


@needs_kernels
def test_a_sample_is_the_same_in_any_batch_and_with_any_number_of_threads():
    x, scale, shift = layer(3, 32, (33, 31), torch.float32, False)
    slope, before = torch.randn_like(x), torch.get_num_threads()

    def both(rows, threads):
        torch.set_num_threads(threads)
        try:
            part = x[rows].detach().requires_grad_()
            y = _Normalised.apply(part, scale, shift, 8, 1e-5, True)
            return y, *torch.autograd.grad(y, part, slope[rows])
        finally:
            torch.set_num_threads(before)

    alone, together = both(slice(1, 2), 2), both(slice(0, 3), 1)
    for one, three in zip(alone, together, strict=True):
        assert torch.equal(one[0], three[1])


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_keeps_to_its_sample(bad):
    x, scale, shift = layer(2, 16, (4, 4), torch.float32, False)
    with torch.no_grad():
        x[0, 3, 1, 1] = bad
        y = _Normalised.apply(x, scale, shift, 4, 1e-5, True)
    assert y[0, :4].isnan().all() and y[1].isfinite().all() and y[0, 4:].isfinite().all()


@needs_kernels
def test_activations_far_out_are_exact():
    z = torch.linspace(-200, 200, 16 * 64).reshape(1, 16, 8, 8).to(memory_format=torch.channels_last)
    mean, std = z.double().mean(), z.double().std(correction=0)
    one = torch.ones(1, 16)
    y = _Normalised.apply(z, one * float(std), one * float(mean), 1, 0.0, True)
    torch.testing.assert_close(y, F.silu(z), rtol=3e-5, atol=3e-5)


HEADS = [(2, 3, 17, 17), (1, 2, 5, 40), (2, 2, 64, 16), (1, 1, 1, 1)]


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "heads", "queries", "keys"), HEADS, ids=str)
def test_the_gradients_of_attention(batch, heads, queries, keys, dtype, width):
    torch.manual_seed(0)
    # as the projections around attention lay them out
    q, k, v = (
        torch.randn(batch, n, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for n in (queries, keys, keys)
    )
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    out, expected = attend(q, k, v), F.scaled_dot_product_attention(*wide)
    assert error(out, expected.detach()) < TOLERANCE[dtype]
    slope = torch.randn_like(out)
    exact = torch.autograd.grad(expected, wide, slope.double())
    log_sum = (wide[0] @ wide[1].mT / width**0.5).logsumexp(-1).float()
    by_products = _by_products(slope, *(t.detach() for t in (q, k, v)), log_sum.detach())
    for found in (torch.autograd.grad(out, (q, k, v), slope), by_products):
        for got, want in zip(found, exact, strict=True):
            assert float((got.double() - want).norm()) < 2 * TOLERANCE[dtype] * float(want.norm().clamp(min=1))


def test_heads_in_several_parts_are_the_heads_at_once(monkeypatch):
    torch.manual_seed(0)
    q, k, v, slope = (torch.randn(2, 3, n, 32).bfloat16() for n in (6, 9, 9, 6))
    log_sum = (q.float() @ k.float().mT / 32**0.5).logsumexp(-1)
    at_once = _by_products(slope, q, k, v, log_sum)
    monkeypatch.setattr(attention, "SCORES", 4 * 6 * 9)  # four heads, then the two that are left
    for found, expected in zip(_by_products(slope, q, k, v, log_sum), at_once, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [16, 64])
def test_large_scores_cost_no_more_than_in_torch(width):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 40, width).bfloat16().requires_grad_() for _ in range(3))
    slope = torch.randn(2, 2, 40, width).bfloat16()

    def gradients(attending, dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in (6 * q, k, v)]
        return torch.autograd.grad(attending(*given), given, slope.to(dtype))

    exact = gradients(F.scaled_dot_product_attention, torch.float64)
    ours, theirs = gradients(attend, torch.bfloat16), gradients(F.scaled_dot_product_attention, torch.bfloat16)
    for found, torchs, want in zip(ours, theirs, exact, strict=True):
        assert error(found, want) < 1.5 * error(torchs, want)


@needs_kernels
def test_keys_that_are_not_there_weigh_nothing():
    """17 keys stand in two tiles of 16; where all scores are low, a score of 0 would be worth e^109."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 8) for n in (3, 17, 17))
    q, k = q.abs() * 20, -k.abs() * 20
    given = [t.requires_grad_() for t in (q, k, v)]
    wide = [t.detach().double().requires_grad_() for t in given]
    found = torch.autograd.grad(attend(*given).square().sum(), given)
    exact = torch.autograd.grad(F.scaled_dot_product_attention(*wide).square().sum(), wide)
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_attention_takes_all_that_torch_takes():
    """Other layouts, one k and v for several samples, values of another width, another type under autocast."""
    torch.manual_seed(0)
    plain = [torch.randn(2, 2, 6, 8) for _ in range(3)]
    layouts = [
        [t.mT.contiguous().mT for t in plain],
        [plain[0], plain[1].mT.contiguous().mT, plain[2].transpose(0, 1).contiguous().transpose(0, 1)],
        [plain[0], plain[1][:1], plain[2][:1]],
        [plain[0], plain[1], torch.randn(2, 2, 6, 16)],
    ]
    for q, k, v in layouts:
        given = [t.detach().requires_grad_() for t in (q, k, v)]
        wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
        out, expected = attend(*given), F.scaled_dot_product_attention(*wide)
        slope = torch.randn(expected.shape).mT.contiguous().mT
        assert error(out, expected.detach()) < 3e-6
        exact = torch.autograd.grad(expected, wide, slope.double())
        for got, want in zip(torch.autograd.grad(out, given, slope), exact, strict=True):
            assert error(got, want) < 1e-5
    given = [t.requires_grad_() for t in plain]
    with torch.autocast("cpu", torch.bfloat16):
        learning = attend(*given).dtype
        with torch.no_grad():
            assert attend(*given).dtype == learning


@needs_kernels
def test_a_gradient_may_lie_in_memory_in_any_way():
    given = layer(2, 16, (6, 5), torch.float32, True)
    wide = [t.detach().double().requires_grad_() for t in given]
    slope = torch.randn(2, 16, 6, 5)  # channels first
    y, expected = _Normalised.apply(*given, 4, 1e-5, True), in_double(*wide, 4, True)
    for one, all_of_it in ((slope, slope.double()), (torch.ones(()).expand_as(slope), torch.ones_like(slope).double())):
        exact = torch.autograd.grad(expected, wide, all_of_it, retain_graph=True)
        for got, want in zip(torch.autograd.grad(y, given, one, retain_graph=True), exact, strict=True):
            assert error(got, want) < 1e-5


@needs_kernels
def test_an_outlier_in_a_corner_costs_no_digits():
    """Zero padding makes corners special; a pivot taken there would be far from all else."""
    x = torch.randn(1, 16, 64, 64).to(memory_format=torch.channels_last)
    x[:, :, 0, 0] = 1e4
    one = torch.ones(1, 16)
    y = _Normalised.apply(x, one, 0 * one, 4, 1e-5, False)
    assert error(y, in_double(x.double(), one.double(), 0 * one.double(), 4, False)) < 2e-5


@needs_kernels
def test_torchs_defaults_are_no_matter():
    given = layer(2, 16, (4, 4), torch.float32, False)
    expected = torch.autograd.grad(_Normalised.apply(*given, 4, 1e-5, True).sum(), given)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            found = torch.autograd.grad(_Normalised.apply(*given, 4, 1e-5, True).sum(), given)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def small():
    torch.manual_seed(0)
    network = UNet(3, 16, (1, 2), 1, (False, True), head_width=8)
    for parameter in network.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return network, torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])


def loss_and_gradients(network, x, c_noise):
    loss = network(x, c_noise).square().mean()
    return [loss, *torch.autograd.grad(loss, list(network.parameters()))]


def test_a_network_is_the_same_without_kernels(monkeypatch):
    network, x, c_noise = small()
    with_kernels = loss_and_gradients(network, x, c_noise)
    monkeypatch.setattr(kernels, "available", lambda: False)
    for found, expected in zip(with_kernels, loss_and_gradients(network, x, c_noise), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_derivative_of_a_derivative(monkeypatch):
    network, x, c_noise = small()
    x, tangent = x.double().float().requires_grad_(), torch.randn_like(x)

    def everything():
        (slope,) = torch.autograd.grad(network(x, c_noise).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((slope * tangent).sum(), x)
        return slope.detach(), second

    with_kernels = everything()
    network.requires_grad_(False)  # as a loaded pipeline's is
    frozen = everything()
    for found, expected in zip(frozen, with_kernels, strict=True):
        torch.testing.assert_close(found, expected)
    monkeypatch.setattr(kernels, "available", lambda: False)
    # attention of the CPU has no second derivative in torch
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    )
    for found, expected in zip(with_kernels, everything(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_kernels
def test_what_looks_into_operations_gets_formulas():
    """torch.func, forward-mode derivatives, batches of gradients, tracing, counting, and a compiler without a break."""
    torch.manual_seed(0)
    norm, x = GroupNorm(16), torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    q = torch.randn(2, 2, 5, 8)

    def function(x, q):
        return norm(x, silu=True).square().sum() + attend(q, q, q).square().sum()

    tangents = torch.randn_like(x), torch.randn_like(q)
    with sdpa_kernel(SDPBackend.MATH):  # the other has no such derivatives
        _, slope = torch.func.jvp(function, (x, q), tangents)
        with forward_ad.dual_level():
            dual = function(*(forward_ad.make_dual(*pair) for pair in zip((x, q), tangents, strict=True)))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    given = [t.clone().requires_grad_() for t in (x, q)]
    y = function(*given)
    expected = torch.autograd.grad(y, given, retain_graph=True)
    torch.testing.assert_close(sum((a * b).sum() for a, b in zip(expected, tangents, strict=True)), slope)
    batched = torch.autograd.grad(y, given, torch.tensor([1.0, 2.0]), is_grads_batched=True)
    for one, two in zip(expected, batched, strict=True):
        torch.testing.assert_close(two, torch.stack([one, 2 * one]), rtol=1e-4, atol=1e-5)
    assert ordinary(x)
    with FlopCounterMode(display=False):
        assert not ordinary(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert norm(mode.from_tensor(x), silu=True).shape == x.shape
    norm.requires_grad_(False)
    traced = torch.jit.trace(lambda x: norm(x, silu=True), x)
    torch.testing.assert_close(traced(2 * x), norm(2 * x, silu=True))


@needs_kernels
@pytest.mark.slow
def test_a_compiler_finds_no_break():
    norm, x = GroupNorm(16), torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    whole = torch.compile(lambda x, q: (norm(x, silu=True), attend(q, q, q)), fullgraph=True)
    q = torch.randn(2, 2, 5, 8, requires_grad=True)
    for found, expected in zip(whole(x, q), (norm(x, silu=True), attend(q, q, q)), strict=True):
        torch.testing.assert_close(found, expected)


def test_what_the_kernels_do_not_take_goes_by_the_formula():
    for x in (
        torch.randn(2, 12, 4, 4),  # channels that are no multiple of 16
        torch.randn(2, 16, 4, 4),  # channels first
        torch.randn(2, 16, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.randn(2, 16, 4, 4).half().to(memory_format=torch.channels_last),
        torch.randn(2, 16, 9),
    ):
        assert not kernels.normalises(x.flatten(2).transpose(1, 2))
        norm = GroupNorm(x.shape[1], groups=4)
        expected = normalised(x, norm.weight[None], norm.bias[None], 4, 1e-5, True)
        torch.testing.assert_close(norm(x, silu=True), expected.to(x.dtype))


def test_without_a_compiler_it_is_said_why(monkeypatch, tmp_path):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "undiffuse"))
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    assert "no-compiler" in kernels._library.__wrapped__()
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "0")
    assert "UNDIFFUSE_KERNELS=0" in kernels._library.__wrapped__()


@needs_kernels
def test_they_are_compiled_once_and_again_where_the_file_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "undiffuse"))
    monkeypatch.setattr(kernels, "FLAGS", ("-O0", *kernels.FLAGS[1:]))  # made faster
    library = kernels._compile()
    assert [path.name for path in (tmp_path / "undiffuse").iterdir()] == [library.name]
    written = library.stat().st_mtime_ns
    assert kernels._compile() == library and library.stat().st_mtime_ns == written
    whole = library.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * len(whole)):
        (tmp_path / "damaged").write_bytes(damaged)
        (tmp_path / "damaged").replace(library)  # in the place of the file, whose bytes are in use
        assert isinstance(kernels._library.__wrapped__(), ctypes.CDLL)
        assert len(library.read_bytes()) == len(whole)
