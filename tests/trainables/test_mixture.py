"""The mixture against torch.distributions, and the targets of training steps."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from trainables.parts.mixture import Mixture, Posterior, flipped

HAIR = (0, 1, 2)
COMPONENTS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)), dtype=torch.float64)  # (32, 5)


def log_prob(distribution: Distribution, styles: Tensor) -> Tensor:
    density: Tensor = distribution.log_prob(styles)
    return density


def gaussian(y: Tensor, dims: int, sigma: float) -> Distribution:
    """The component of labels y (S,), written out number by number."""
    mean = torch.tensor([2 * float(y[i // dims]) - 1 for i in range(len(y) * dims)], dtype=torch.float64)
    return Independent(Normal(mean, torch.full_like(mean, sigma)), 1)


@pytest.mark.parametrize(("dims", "sigma"), [(8, 0.5), (3, 0.2)])
def test_the_divergence_is_that_of_torch_distributions(dims: int, sigma: float) -> None:
    mixture, generator = Mixture(5, dims, sigma), torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 32, 5 * dims, generator=generator, dtype=torch.float64)
    expected = [
        kl_divergence(Independent(Normal(m, (v / 2).exp()), 1), gaussian(y, dims, sigma))
        for m, v, y in zip(mean, logvar, COMPONENTS, strict=True)
    ]
    found = mixture.kl(Posterior(mean, logvar), COMPONENTS)
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-12, atol=0)
    assert mixture.kl(Posterior(mean.float(), logvar.bfloat16()), COMPONENTS).dtype == torch.float32


def test_a_component_is_no_distance_from_itself_and_the_divergence_is_never_negative() -> None:
    mixture = Mixture(5)
    own = Posterior(mixture.means(COMPONENTS), torch.full((32, 40), 0.25, dtype=torch.float64).log())
    assert abs(float(mixture.kl(own, COMPONENTS))) < 1e-12
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = Posterior(*torch.randn(2, 32, 40, generator=generator, dtype=torch.float64))
        assert float(mixture.kl(other, COMPONENTS)) > 0


def test_samples_have_the_means_and_the_deviation_of_their_component() -> None:
    mixture, generator = Mixture(5), torch.Generator().manual_seed(0)
    y = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).expand(20_000, -1)
    styles = mixture.sample(y, torch.randn(20_000, 40, generator=generator))
    assert styles.mean(0).view(5, 8).sign().tolist() == [[sign] * 8 for sign in (-1, 1, -1, 1, -1)]
    assert (styles.mean(0).abs() - 1).abs().max() < 0.02 and (styles.std(0) - 0.5).abs().max() < 0.02


def test_between_two_domains_the_means_lie_on_the_line() -> None:
    mixture, (a, b) = Mixture(5), COMPONENTS[[3, 20]]
    between = mixture.means(torch.lerp(a, b, 0.3)[None])
    torch.testing.assert_close(between, torch.lerp(mixture.means(a[None]), mixture.means(b[None]), 0.3))


def test_the_density_is_that_of_torch_distributions() -> None:
    mixture = Mixture(5)
    styles = torch.randn(32, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack([log_prob(gaussian(y, 8, 0.5), s) for y, s in zip(COMPONENTS, styles, strict=True)])
    torch.testing.assert_close(mixture.log_density(styles, COMPONENTS).sum(1), expected)
    whole = MultivariateNormal(mixture.means(COMPONENTS), 0.25 * torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(expected, log_prob(whole, styles))


@pytest.mark.parametrize("exclusive", [(), (HAIR,), (HAIR, (3, 4))])
def test_the_most_likely_component_is_the_best_of_all_that_are_allowed(exclusive: tuple[tuple[int, ...], ...]) -> None:
    mixture = Mixture(5, dims=2)
    styles = 2 * torch.randn(200, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    allowed = COMPONENTS[[all(sum(y[i] for i in group) <= 1 for group in exclusive) for y in COMPONENTS.tolist()]]
    densities = torch.stack([log_prob(gaussian(y, 2, 0.5), styles) for y in allowed], dim=1)  # (200, components)
    assert torch.equal(mixture.most_likely(styles, exclusive), allowed[densities.argmax(1)])


LABELS = st.lists(st.integers(0, 1), min_size=5, max_size=5)


@settings(max_examples=200)
@given(labels=LABELS, seed=st.integers(0, 2**32))
def test_a_target_differs_in_one_attribute_and_never_contradicts_itself(labels: list[int], seed: int) -> None:
    wanted = flipped(labels, [HAIR], torch.Generator().manual_seed(seed))
    assert set(wanted) <= {0, 1} and wanted != labels and sum(wanted[i] for i in HAIR) <= 1
    elsewhere = [i for i in (3, 4) if wanted[i] != labels[i]]
    hair = [i for i in HAIR if wanted[i] != labels[i]]
    assert (len(elsewhere), bool(hair)) in ((1, False), (0, True))
    if hair:
        assert sum(wanted[i] for i in HAIR) == 1  # to a colour, never to none
    if sum(labels[i] for i in HAIR) > 1:
        assert hair, "two hair colours must not stay in a target"


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 0, 0, 1], {0: 0.3, 2: 0.3, 3: 0.2, 4: 0.2})])
def test_every_attribute_is_flipped_as_often(labels: list[int], expected: dict[int, float]) -> None:
    """From blond, three draws of five are hair: black or brown, alike; male and young one draw in five each."""
    generator = torch.Generator().manual_seed(0)
    targets = Counter(tuple(flipped(labels, [HAIR], generator)) for _ in range(4000))
    found: dict[int, float] = {}
    for target, count in targets.items():
        changed = [i for i in range(5) if target[i] != labels[i]]
        found[next(i for i in changed if target[i] or i > 2)] = count / 4000
    assert found == pytest.approx(expected, abs=0.03)


def test_of_many_domains_every_other_one_is_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = Counter(tuple(flipped([0, 0, 1, 0], [range(4)], generator)) for _ in range(3000))
    shares = {target.index(1): count / 3000 for target, count in targets.items() if sum(target) == 1}
    assert shares == pytest.approx({0: 1 / 3, 1: 1 / 3, 3: 1 / 3}, abs=0.04)
