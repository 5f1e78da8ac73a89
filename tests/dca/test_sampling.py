import pytest
import torch

from dca import ModelConfig, build_model, generate
from dca.errors import FieldError
from dca.sampling import check_sampling


class Fixed(torch.nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits_v = torch.tensor(probabilities).log()

    def new_cache(self, **_) -> None:
        return None

    def forward(self, ids_bt: torch.Tensor, _: None) -> torch.Tensor:
        return self.logits_v.expand(*ids_bt.shape, -1)


PROBABILITIES = [0.1, 0.4, 0.2, 0.3]


def draw(**options) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.zeros(64, 1, dtype=torch.long)
    ids = generate(Fixed(PROBABILITIES), prompt, max_new_tokens=8, generator=generator, **options)
    return set(ids[:, 1:].flatten().tolist())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"temperature": 0}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.71}, {1, 2, 3}),
        ({"top_p": 1e-6}, {1}),
        ({"temperature": 0.01}, {1}),
    ],
)
def test_only_the_allowed_symbols_are_drawn(options, expected):
    assert draw(**options) == expected


def test_frequencies_follow_the_distribution():
    prompt = torch.zeros(4000, 1, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    ids = generate(Fixed(PROBABILITIES), prompt, max_new_tokens=4, generator=generator)
    shares = torch.bincount(ids[:, 1:].flatten(), minlength=4) / 16_000
    torch.testing.assert_close(shares, torch.tensor(PROBABILITIES), rtol=0, atol=0.02)


def test_it_returns_the_prompt_and_a_continuation_that_a_seed_repeats():
    model = build_model(ModelConfig(dim=16, depth=2, heads=2))
    prompt = torch.tensor([[1, 2, 3]])

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompt, max_new_tokens=20, generator=generator)

    assert sample(0).shape == (1, 23)
    assert torch.equal(sample(0)[:, :3], prompt)
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


PARTS = {"kv_heads": 1, "qk_norm": True, "activation": "swiglu", "logit_softcap": 2.0}


@pytest.mark.parametrize(("batch", "parts"), [(1, {}), (5, {}), (1, PARTS)])
def test_decoding_by_kernels_gives_the_logits_of_training(batch, parts):
    config = ModelConfig(dim=32, depth=4, heads=2, attention_windows=(6, None), **parts)
    model = build_model(config, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(256, (batch, 12), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(batch=batch, capacity=12)
    with torch.inference_mode():
        parts = [model(ids[:, :2], cache)]
        parts += [model(ids[:, t : t + 1], cache) for t in range(2, 12)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=1e-4, atol=1e-5)


def test_a_cache_holds_the_heads_of_keys_and_values_only():
    config = ModelConfig(dim=32, depth=1, heads=4, kv_heads=2)
    (layer,) = build_model(config).new_cache(batch=3, capacity=5).layers
    assert layer.keys.shape == layer.values.shape == (3, 2, 5, 8)


def test_a_windowed_block_keeps_only_its_window():
    config = ModelConfig(dim=16, depth=3, heads=2, attention_windows=(4, 8, None))
    cache = build_model(config).new_cache(batch=2, capacity=100)
    assert [layer.keys.shape for layer in cache.layers] == [
        (2, 2, 4, 8),
        (2, 2, 8, 8),
        (2, 2, 100, 8),
    ]


@pytest.mark.parametrize(
    ("batch", "more", "message"),
    [
        (1, 2, "expected one position after the prompt, got 2"),
        (2, 1, "expected a batch of 1, the cache's, got 2"),
    ],
)
def test_a_cache_takes_only_what_follows(batch, more, message):
    model = build_model(ModelConfig(dim=16, depth=2, heads=2))
    cache = model.new_cache(batch=1, capacity=8)
    model(torch.zeros(1, 4, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(batch, more, dtype=torch.long), cache)


def test_a_full_cache_says_so():
    model = build_model(ModelConfig(dim=16, depth=2, heads=2))
    cache = model.new_cache(batch=1, capacity=3)
    model(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="after 3, but the cache was made for 3"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


def test_what_failed_was_not_read():
    model = build_model(ModelConfig(dim=16, depth=2, heads=2))
    cache = model.new_cache(batch=1, capacity=8)
    with pytest.raises(IndexError):
        model(torch.full((1, 4), 999), cache)
    assert cache.length == 0


def test_greedy_takes_the_likeliest_byte_of_the_whole_context():
    model = build_model(ModelConfig(dim=16, depth=2, heads=2))
    ids = generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=6, temperature=0)
    predicted = model(ids[:, :-1]).argmax(-1)
    assert torch.equal(predicted[:, 2:], ids[:, 3:])


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_a_parameter_out_of_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        draw(**options)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt"):
        generate(Fixed(PROBABILITIES), torch.zeros(1, 0, dtype=torch.long), max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens: expected at least 0, got -1"),
        ({"temperature": -1e-9}, "temperature: expected a finite number of at least 0, got -1e-09"),
        (
            {"temperature": float("inf")},
            "temperature: expected a finite number of at least 0, got inf",
        ),
        (
            {"temperature": float("nan")},
            "temperature: expected a finite number of at least 0, got nan",
        ),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"top_p": 0.0}, "top_p: expected more than 0 and at most 1, got 0.0"),
        ({"top_p": 1.001}, "top_p: expected more than 0 and at most 1, got 1.001"),
    ],
)
def test_a_parameter_just_out_of_range_is_refused(options, message):
    given = {"max_new_tokens": 1, "temperature": 1.0, "top_k": None, "top_p": None} | options
    with pytest.raises(FieldError, match=message):
        check_sampling(**given)


def test_parameters_at_the_ends_of_their_ranges_are_taken():
    check_sampling(0, 0.0, 1, 1.0)
    check_sampling(1, 1e300, None, 1e-300)
    assert draw(top_k=1) == {1}
    assert draw(top_p=1.0) == draw(top_k=4) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1e-300, 5e-324, 1e-50, 1e-38])
@pytest.mark.parametrize("temperature", [1.0, 1e300])
def test_the_smallest_nucleus_is_the_likeliest_byte(top_p, temperature):
    assert draw(top_p=top_p) == {1}
    assert len(draw(top_p=top_p, temperature=temperature)) == 1


@pytest.mark.parametrize("temperature", [-0.0, 5e-324, 1e-300, 1e-39])
def test_the_coldest_takes_the_likeliest(temperature):
    assert draw(temperature=temperature) == draw(temperature=temperature, top_p=1e-300) == {1}


@pytest.mark.parametrize("temperature", [1e38, 1e39, 1e300, 1.7976931348623157e308])
def test_the_hottest_takes_all_alike(temperature):
    assert draw(temperature=temperature) == {0, 1, 2, 3}
    assert draw(temperature=temperature, top_k=10**30, top_p=1 - 1e-16) == {0, 1, 2, 3}


def test_no_new_tokens_are_the_prompt():
    prompt = torch.zeros(2, 3, dtype=torch.long)
    assert torch.equal(generate(Fixed(PROBABILITIES), prompt, max_new_tokens=0), prompt)


def test_the_temperature_divides_the_logits_down_to_the_coldest():
    prompt = torch.zeros(8000, 1, dtype=torch.long)
    for temperature in (2.0, 0.5):
        generator = torch.Generator().manual_seed(0)
        ids = generate(
            Fixed(PROBABILITIES),
            prompt,
            max_new_tokens=1,
            temperature=temperature,
            generator=generator,
        )
        shares = torch.bincount(ids[:, 1], minlength=4) / 8000
        wanted = torch.tensor(PROBABILITIES) ** (1 / temperature)
        torch.testing.assert_close(shares, wanted / wanted.sum(), rtol=0, atol=0.02)
    assert draw(temperature=1e-7) == draw(temperature=2e-6) == {1}
