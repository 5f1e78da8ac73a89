import pytest
import torch

from dca import ModelConfig, build_model, generate


class Fixed(torch.nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits_v = torch.tensor(probabilities).log()

    def forward(self, ids_bt: torch.Tensor) -> torch.Tensor:
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
