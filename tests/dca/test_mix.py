"""The kernels against the same in PyTorch's own operations, in float64."""

import ctypes
import itertools
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from dca import ModelConfig, build_model, kernels, mix
from tests.dca import reference

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def compiled():
    """Nothing here means anything if the kernels were not built."""
    assert kernels.library() is not None


CASES = list(itertools.product([1, 2, 3], [1, 2, 5], [True, False], [True, False]))


def inputs_of(outputs: int, entries: int, has_w: bool, *, rows: int = 7, dim: int = 48) -> dict:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "entries": [draw(1, rows, dim) for _ in range(entries)],
        "b_ond": draw(outputs, entries, dim),
        "w_od": draw(outputs, dim) if has_w else None,
        "gains": list(draw(outputs, dim)),
        "upstream": [draw(1, rows, dim) for _ in range(1 + outputs + entries)],
    }


def run(
    inputs: dict,
    *,
    norm: bool,
    dtype: torch.dtype,
    used: slice = slice(None),
    types: list[torch.dtype] | None = None,
) -> list:
    """Every output and every gradient; the loss reads the outputs in `used` only.

    Entries have the `types`, if they are given.
    """

    def leaf(tensor: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
        return tensor.detach().to(dtype, copy=True).requires_grad_()

    each = types or [dtype] * len(inputs["entries"])
    entries = [leaf(f, one) for f, one in zip(inputs["entries"], each, strict=True)]
    gains = [leaf(gain) for gain in inputs["gains"]]
    b_ond = leaf(inputs["b_ond"])
    w_od = None if inputs["w_od"] is None else leaf(inputs["w_od"])
    skip, normed, threaded = mix.mix(entries, b_ond, w_od, gains, norm=norm)
    outputs = [skip, *normed, *threaded]
    read = list(zip(outputs, inputs["upstream"], strict=True))[used]
    loss = sum((x * u.to(dtype)).sum() for x, u in read)
    leaves = [*entries, *gains, b_ond, *([] if w_od is None else [w_od])]
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return [*outputs, *gradients]


@pytest.mark.parametrize(("outputs", "entries", "has_w", "norm"), CASES)
def test_outputs_and_gradients_equal_the_unfused_ones(outputs, entries, has_w, norm):
    inputs = inputs_of(outputs, entries, has_w)
    fused = run(inputs, norm=norm, dtype=torch.float32)
    plain = run(inputs, norm=norm, dtype=torch.float64)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


def test_w_trains_from_zero():
    """Where the clamp has its corner, its gradient is 1."""
    inputs = inputs_of(3, 3, True)
    inputs["w_od"] = torch.zeros_like(inputs["w_od"])
    fused = run(inputs, norm=True, dtype=torch.float32)[-1]
    plain = run(inputs, norm=True, dtype=torch.float64)[-1]
    assert (plain != 0).all()
    torch.testing.assert_close(fused.double(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [slice(0, 1), slice(1, 2), slice(3, 4), slice(4, 6)])
def test_outputs_that_nobody_reads_send_no_gradient(used):
    inputs = inputs_of(3, 4, True)
    fused = run(inputs, norm=True, dtype=torch.float32, used=used)
    plain = run(inputs, norm=True, dtype=torch.float64, used=used)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("last_k", [2, None])
@pytest.mark.parametrize("residual", ["grn_v1", "grn_v2", "grn_v3", "dca_v", "dca"])
def test_a_fused_model_gives_the_gradients_of_the_equations(residual, last_k):
    config = ModelConfig(dim=32, depth=5, heads=2, residual=residual, dca={"last_k": last_k})
    generator = torch.Generator().manual_seed(0)
    model = build_model(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ids = torch.randint(256, (2, 9), generator=generator)
    weights = {k: v.detach().double().requires_grad_() for k, v in model.state_dict().items()}
    model(ids).square().mean().backward()
    reference.logits(config, weights, ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        scale = weights[name].grad.abs().max()
        error = (parameter.grad - weights[name].grad).abs().max()
        assert error < 1e-4 * scale + 1e-7, name


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_agree_and_give_the_same_bits_again(two_threads):
    rows = kernels.THREAD_NUMBERS // (2 * 48) + 5
    inputs = inputs_of(3, 2, True, rows=rows)
    assert kernels._threads(rows * 2 * 48) == 2
    first, second = (run(inputs, norm=True, dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for ours, theirs in zip(first, run(inputs, norm=True, dtype=torch.float64), strict=True):
        error = (ours - theirs).abs().max()
        assert error < 1e-5 * theirs.abs().max()


def test_a_value_that_is_not_finite_stays_visible():
    inputs = inputs_of(3, 4, True)
    inputs["entries"][2][0, 3, 5] = float("nan")
    skip, *normed = run(inputs, norm=True, dtype=torch.float32)[:4]
    assert all(x[0, 3].isnan().any() and x[0, 2].isfinite().all() for x in [skip, *normed])


def test_entries_that_are_not_dense_are_taken_too():
    inputs = inputs_of(3, 2, True)
    dense = run(inputs, norm=True, dtype=torch.float32)
    inputs["entries"] = [f.transpose(1, 2).contiguous().transpose(1, 2) for f in inputs["entries"]]
    for ours, theirs in zip(run(inputs, norm=True, dtype=torch.float32), dense, strict=True):
        assert torch.equal(ours, theirs)


def test_no_rows_give_no_rows_and_gradients_of_zero():
    *outputs, b_gradient, w_gradient = run(
        inputs_of(3, 2, True, rows=0), norm=True, dtype=torch.float32
    )
    assert outputs[0].shape == (1, 0, 48)
    assert not b_gradient.any()
    assert not w_gradient.any()


BFLOAT16_ERROR = 2e-2
"""Of numbers of about 1, some of them sums of numbers that were rounded."""


@pytest.mark.parametrize(("outputs", "entries", "has_w", "norm"), CASES)
@pytest.mark.parametrize("autocast", [True, False])
def test_rows_of_bfloat16_beside_float32_give_the_same_but_for_their_rounding(
    outputs, entries, has_w, norm, autocast
):
    """Every second entry is bfloat16, the first float32 under autocast, as a residual stream is."""
    inputs = inputs_of(outputs, entries, has_w)
    half = [bool((i + autocast) % 2 == 0) for i in range(entries)]
    inputs["entries"] = [
        f.bfloat16().double() if is_half else f
        for f, is_half in zip(inputs["entries"], half, strict=True)
    ]
    plain = run(inputs, norm=norm, dtype=torch.float64)
    types = [torch.bfloat16 if is_half else torch.float32 for is_half in half]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fused = run(inputs, norm=norm, dtype=torch.float32, types=types)
    skip, *normed = fused[: 1 + outputs]
    assert skip.dtype == types[0]
    assert {y.dtype for y in normed} == {torch.bfloat16 if autocast else types[0]}
    assert [g.dtype for g in fused[1 + outputs + entries :]][:entries] == types
    for ours, theirs in zip(fused, plain, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < BFLOAT16_ERROR


def test_a_bfloat16_is_the_nearest_one_and_what_is_not_finite_stays_so():
    values = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    values[0, 0, :4] = torch.tensor([math.inf, -math.inf, 1 + 2**-8, 1 + 3 * 2**-8])
    values[0, 0, 4:6] = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32)  # NaN
    nothing, ones_12d = torch.zeros(1, 5, 48, dtype=torch.bfloat16), torch.ones(1, 2, 48)
    skip, _, _ = mix.mix([nothing, values], ones_12d, None, [ones_12d[0, 0]], norm=False)
    assert skip.dtype == torch.bfloat16
    assert torch.allclose(skip, values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_mixed_unfused(dtype, monkeypatch):
    fused = []
    monkeypatch.setattr(mix.autograd._Mix, "apply", fused.append)
    skip = run(inputs_of(3, 2, True), norm=True, dtype=dtype)[0]
    assert skip.dtype == dtype
    assert not fused


def test_a_library_is_not_taken_from_a_folder_that_others_write_to(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "dca-gpt"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(OSError, match="can be written by other users"):
        kernels._built()
    folder.chmod(0o700)
    monkeypatch.setattr(kernels.os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(OSError, match="belongs to another user"):
        kernels._built()
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_damaged_library_is_built_again(monkeypatch, tmp_path):
    """An empty one; one of something else, and one that was cut, under other digests.

    Of a source of one line: the compiler needs a quarter of a minute for the kernels.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    (tmp_path / "kernels.cpp").write_text('extern "C" void mix_forward() {}')
    path = kernels._built()
    key, whole = path.stem.split("-")[1], path.read_bytes()
    for digest, content in ((0, b"another library"), (1, whole[:-1])):
        path.with_name(f"kernels-{key}-{digest:064x}.so").write_bytes(content)
    path.write_bytes(b"")
    assert ctypes.CDLL(str(kernels._built())).mix_forward


def no_home() -> str:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc"])
def test_without_a_home_that_can_be_written_the_library_lies_beside_temporary_files(
    monkeypatch, tmp_path, home
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path in Path(path).parents)
    monkeypatch.setattr(Path, "home", lambda: Path(home or no_home()))
    mkdir = Path.mkdir

    def made(path: Path, *args, **kwargs) -> None:
        if tmp_path not in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", made)
    folder = kernels._cache_folder()
    assert folder == kernels._cache_folder() == tmp_path / f"dca-gpt-kernels-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_compiler_it_says_so_and_mixes_unfused(monkeypatch, tmp_path):
    expected = run(inputs_of(3, 2, True), norm=True, dtype=torch.float32)
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="slower without compiled kernels"):
            got = run(inputs_of(3, 2, True), norm=True, dtype=torch.float32)
    finally:
        kernels.library.cache_clear()
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_products_of_a_few_rows_equal_the_matrix_product(rows, gelu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, 48, generator=generator)
    weight = torch.randn(20, 48, generator=generator)
    expected = torch.nn.functional.linear(x.double(), weight.double())
    if gelu:
        expected = torch.nn.functional.gelu(expected)
    ours = kernels.linear(x, weight, gelu=gelu).double()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_what_a_layer_reads_is_recorded_inside_the_context_only():
    entries = [torch.randn(2, 3, 16) for _ in range(2)]
    b_ond, gains, w_od = torch.rand(1, 2, 16), [torch.ones(16)], torch.rand(1, 16)
    weights = torch.rand(2, 3, 1, 2)
    with mix.recorded() as calls:
        mix.mix(entries, b_ond, w_od, gains, norm=True)
        mix.mix(entries, b_ond, None, gains, norm=True)
        mix.weighted_sums(entries, weights)
        mix.weighted_sums(entries, None, b_ond)
    mix.weighted_sums(entries, weights)
    means = [mix.scores(f_btd, w_od, norm=True).mean((0, 1)) for f_btd in entries]
    zeros, expected = torch.zeros(1, 2), weights.mean((0, 1))
    added = [torch.stack(means, 1), zeros, expected, zeros]
    assert len(calls) == len(added)
    for call, value in zip(calls, added, strict=True):
        torch.testing.assert_close(call.added_on, value)
    assert [call.b_ond.equal(b_ond) for call in calls] == [True, True, False, True]
    assert not calls[2].b_ond.any()


@pytest.mark.parametrize(("n", "tokens"), [(2, 16), (4, 48), (5, 16)])
def test_matrices_are_divided_by_their_sums_in_turn_as_without_the_kernel(n, tokens):
    start = torch.rand(n, n, tokens, dtype=torch.float64, requires_grad=True)
    expected = start
    for step in range(7):
        expected = expected / expected.sum(step % 2, keepdim=True)
    gradient = torch.randn_like(expected)
    (to_start,) = torch.autograd.grad(expected, start, gradient)
    given = start.detach().float()
    found = kernels.sinkhorn(given, 7)
    torch.testing.assert_close(found, expected.detach().float())
    found = kernels.sinkhorn(given, 7, gradient.float())
    torch.testing.assert_close(found, to_start.float(), rtol=1e-4, atol=1e-5)
