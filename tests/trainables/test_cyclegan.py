"""CycleGAN keeps the promises of a Trainable, computes what the paper says, and its pool is one pool on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from recollect.batch import Domains
from recollect.config import Run, overlay, preset
from recollect.testing import TrainableContract, largest_difference, noise_batches, train_ranks
from recollect.trainable import Draws, Step
from recollect.training.trainer import Trainer, build
from trainables.cyclegan import CycleGAN, ImagePool, exchange

DOMAINS = Domains(("sunny", "night"), ("background", "car"))


def small(**model: object) -> Run:
    size = {"width": 8, "blocks": 1, "critic_width": 8, "critic_layers": 2, "pool_size": 3, "picture_size": 32}
    return preset("cyclegan:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**size, **model})


class TestContract(TrainableContract):
    """With a pool of 3: two steps of a joint batch of 4 fill it and exchange with it, on one rank and on two."""

    run = small()
    domains = DOMAINS
    random_styles = False

    def test_the_rank_check_notices_a_missing_sum(self) -> None:
        (alone,) = train_ranks(self._exact(), self.domains, 1)
        assert largest_difference(alone, train_ranks(self._exact(), self.domains, 2, unreduced=True)[0])[0] > 1e-3


class TestContractWithoutAPool(TrainableContract):
    variant = True
    run = small(pool_size=0, downs=2, blocks=2)
    domains = DOMAINS
    random_styles = False


def made(run: Run) -> CycleGAN:
    model = build(run, DOMAINS)
    assert isinstance(model, CycleGAN)
    return model


def step_of(run: Run, *names: str, number: int = 0, slots: tuple[int, ...] = (0, 1)) -> Step:
    return Step(noise_batches(run, DOMAINS, 2, slots, number), number, Draws(0, number), frozenset(names))


def test_the_terms_are_those_of_the_paper() -> None:
    run = small()
    model, step = made(run), step_of(run, "adv_domain", "cyc_rec", "identity", "critic_domain")
    a, b = (batch.images for batch in step.batches)
    to_a, to_b = model.generator.nets
    of_a, of_b = model.domain_critic.nets
    terms = model.translation_terms(step) | model.domain_critic_terms(step)
    expected = {
        "adv_domain": ((of_b(to_b(a)) - 1) ** 2).mean() + ((of_a(to_a(b)) - 1) ** 2).mean(),
        "cyc_rec": F.l1_loss(to_a(to_b(a)), a) + F.l1_loss(to_b(to_a(b)), b),
        "identity": F.l1_loss(to_a(a), a) + F.l1_loss(to_b(b), b),
        "critic_domain": sum(  # the pool is still being filled, so critics see the fresh translations
            ((critic(real) - 1) ** 2).mean() + (critic(fake) ** 2).mean()
            for critic, real, fake in ((of_a, a, to_a(b)), (of_b, b, to_b(a)))
        ),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


class PlainPool:
    """The pool as the paper tells it, with a list."""

    def __init__(self, size: int) -> None:
        self.size, self.pictures = size, list[Tensor]()

    def query(self, picture: Tensor, swap: bool, place: int) -> Tensor:
        if len(self.pictures) < self.size:
            self.pictures.append(picture)
            return picture
        if swap:
            old, self.pictures[place] = self.pictures[place], picture
            return old
        return picture


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 6))
def test_the_pool_does_what_a_list_does(data: st.DataObject, size: int) -> None:
    ours, plain, count = ImagePool(size, 2), PlainPool(size), 0
    for batch in data.draw(st.lists(st.integers(1, 5), max_size=5)):
        draws = data.draw(st.lists(st.tuples(st.booleans(), st.integers(0, size - 1)), min_size=batch, max_size=batch))
        fresh = torch.arange(count, count + batch)[:, None, None, None] * torch.ones(1, 3, 2, 2)
        count += batch
        done = exchange(size, int(ours.filled), draws)
        shown = ours.show(done.shown, fresh)
        expected = [plain.query(picture, *draw) for picture, draw in zip(fresh, draws, strict=True)]
        assert torch.equal(shown, torch.stack(expected))
        ours.commit(done, fresh)
        assert int(ours.filled) == len(plain.pictures)
        assert all(torch.equal(a, b) for a, b in zip(ours.pictures, plain.pictures, strict=False))


def test_the_pool_shows_the_first_50_and_then_an_old_one_half_of_the_time() -> None:
    pool, first = ImagePool(50, 2), torch.rand(50, 3, 2, 2)
    done = pool.offer(50, Draws(0, 0), "pool/0")
    assert done.shown == tuple(range(50, 100)) and done.filled == 50
    pool.commit(done, first)
    assert torch.equal(pool.pictures, first)
    pooled, places = 0, set[int]()
    for step in range(1, 101):
        done = pool.offer(10, Draws(0, step), "pool/0")
        for number, fresh in zip(done.shown, range(50, 60), strict=True):
            pooled += number != fresh
        places |= {place for place, number in enumerate(done.held) if number >= 50}
    assert pooled == pytest.approx(500, abs=60)  # 1000 pictures, deviation 16
    assert places == set(range(50))


def test_the_pool_changes_after_the_step_only_and_keeps_the_steps_translations() -> None:
    run = small()
    trainer = Trainer(run, DOMAINS, device="cpu")
    model = trainer.model
    assert isinstance(model, CycleGAN)
    step = step_of(run, "adv_domain", "critic_domain")
    model.translation_terms(step)
    model.domain_critic_terms(step)
    assert all(int(pool.filled) == 0 and not pool.pictures.any() for pool in model.pools)
    model.after_step(step)
    for x, pool in enumerate(model.pools):
        assert int(pool.filled) == 2
        assert torch.equal(pool.pictures[:2], step.cache["fakes"][x]) and not pool.pictures[2:].any()


def test_critics_see_old_translations_once_the_pool_is_full() -> None:
    run = small(pool_size=2)
    model = made(run)
    first = step_of(run, "critic_domain")
    model.translation_terms(first)
    model.domain_critic_terms(first)
    model.after_step(first)
    shown_old = 0
    for number in range(1, 9):
        step = step_of(run, "critic_domain", number=number)
        model.translation_terms(step)
        old = [pool.pictures.clone() for pool in model.pools]
        for x, shown in enumerate(model._from_pools(step)):
            shown_old += sum(any(torch.equal(picture, kept) for kept in old[x]) for picture in shown)
    assert 4 <= shown_old <= 28  # of 32


def test_pictures_that_do_not_fit_the_pool_are_refused_with_what_to_set() -> None:
    run = small(picture_size=64)
    with pytest.raises(ValueError, match="64 x 64, and these are 32 x 32: set model.picture_size=32, or model.pool_size=0"):
        Trainer(run, DOMAINS, device="cpu").update(noise_batches(run, DOMAINS, 2, range(2)))


def test_the_presets_pools_fit_their_pictures() -> None:
    for name in CycleGAN.presets:
        run = preset(f"cyclegan:{name}", data={"domains": DOMAINS.names})
        assert run.model.picture_size == run.data.size  # type: ignore[attr-defined]


def test_a_step_runs_in_bf16() -> None:
    run = overlay(small(), {"engine.precision": "bf16"})
    trainer = Trainer(run, DOMAINS, device="cpu")
    for number in range(3):
        terms = trainer.update(noise_batches(run, DOMAINS, 2, range(2), number))
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())


def test_two_domains_and_no_other_number() -> None:
    with pytest.raises(ValueError, match="2 domains, not 3"):
        build(small(), Domains(("a", "b", "c")))


# Layers of the paper's networks at 256 px as (inputs, outputs, kernel, side at which the kernel is applied); a transposed
# convolution is applied at every pixel of its input.
ENDS = [(3, 64, 7, 256), (64, 128, 3, 128), (128, 256, 3, 64), (256, 128, 3, 64), (128, 64, 3, 128), (64, 3, 7, 256)]
BLOCK = [(256, 256, 3, 64)] * 2
CRITIC = [(3, 64, 4, 128), (64, 128, 4, 64), (128, 256, 4, 32), (256, 512, 4, 31), (512, 1, 4, 30)]


def paper(**model: object) -> CycleGAN:
    with torch.device("meta"):
        return CycleGAN(preset("cyclegan:paper", data={"domains": DOMAINS.names}, model=model).model, DOMAINS)  # type: ignore[arg-type]


@pytest.mark.parametrize("blocks, parameters", [(9, 11_378_179), (6, 7_837_699)])
def test_the_generators_have_the_papers_size(blocks: int, parameters: int) -> None:
    layers = ENDS + BLOCK * blocks
    net = paper(blocks=blocks).generator
    assert sum(p.numel() for p in net.parameters()) == 2 * parameters
    assert parameters == sum(a * b * k * k + b for a, b, k, _ in layers)
    with FlopCounterMode(display=False) as flops:
        assert net(torch.empty(1, 3, 256, 256, device="meta"), 0).shape == (1, 3, 256, 256)
    assert flops.get_total_flops() == sum(2 * a * b * k * k * side * side for a, b, k, side in layers)


def test_the_critics_judge_patches_of_70_pixels() -> None:
    net = paper().domain_critic
    assert sum(p.numel() for p in net.parameters()) == 2 * 2_764_737
    assert sum(a * b * k * k + b for a, b, k, _ in CRITIC) == 2_764_737
    with FlopCounterMode(display=False) as flops:
        assert net(torch.empty(1, 3, 256, 256, device="meta"), 0)[0].shape == (1, 1, 30, 30)
    assert flops.get_total_flops() == sum(2 * a * b * k * k * side * side for a, b, k, side in CRITIC)
    seen = 1
    for layer in reversed([layer for layer in net.nets[0].modules() if isinstance(layer, nn.Conv2d)]):
        seen = (seen - 1) * layer.stride[0] + layer.kernel_size[0]
    assert seen == 70
