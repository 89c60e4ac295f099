"""The memory against a plain-loop statement of eqs. 2-6 and 8 of the paper, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainables.parts.losses import memory_contrast, memory_triplet
from trainables.parts.memory import ClassAwareMemory, MemoryState

CLASSES = {"background": 3, "car": 2, "sign": 1}


def literal(**changes: object) -> ClassAwareMemory:
    """The paper's own form: soft assignment, both temperatures 1, plain sums."""
    form = {"read_temperature": 1.0, "update_temperature": 1.0, "assignment": "soft", "update_rate": None}
    memory = ClassAwareMemory(CLASSES, 4, 3, generator=torch.Generator().manual_seed(0), **{**form, **changes}).double()  # type: ignore[arg-type]
    memory.keys.copy_(F.normalize(memory.keys, dim=-1))  # unit to fp64, too
    memory.values.copy_(F.normalize(memory.values, dim=-1))
    return memory


def maps(seed: int = 0, batch: int = 2, size: int = 3, channels: int = 4) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(seed: int = 0, batch: int = 2, size: int = 3, kinds: int = 3) -> Tensor:
    return torch.randint(0, kinds, (batch, size, size), generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())  # eq. 3


def pixels(content: Tensor, classes: Tensor) -> list[tuple[Tensor, int, tuple[int, int, int]]]:
    batch, _, height, width = content.shape
    places = [(b, i, j) for b in range(batch) for i in range(height) for j in range(width)]
    return [(content[b, :, i, j], int(classes[b, i, j]), (b, i, j)) for b, i, j in places]


def loop_update(memory: ClassAwareMemory, contents: list[Tensor], styles: list[Tensor], classes: list[Tensor]) -> MemoryState:
    """Eqs. 5 and 6, item by item and pixel by pixel; the content that is written is unit-norm, as MGUIT's is."""
    keys, values = [], [[], []]
    for n, key in enumerate(memory.keys):
        new_key = key
        for x in (0, 1):
            own = [(c, p) for c, k, p in pixels(contents[x], classes[x]) if k == int(memory.item_class[n])]
            total = sum((torch.exp(cosine(c, key)) for c, _ in own), torch.zeros((), dtype=torch.float64))
            new_value = memory.values[x, n]
            for c, (b, i, j) in own:
                beta = torch.exp(cosine(c, key)) / total
                new_key = new_key + beta * c / c.norm()
                new_value = new_value + beta * styles[x][b, :, i, j]
            values[x].append(new_value / new_value.norm() if own else new_value)
        keys.append(new_key / new_key.norm() if not torch.equal(new_key, key) else key)
    return MemoryState(torch.stack(keys), torch.stack([torch.stack(v) for v in values]), torch.zeros(0))


def loop_read(memory: ClassAwareMemory, content: Tensor, domain: int, classes: Tensor | None) -> Tensor:
    """Eqs. 2 and 4."""
    style = torch.zeros(content.shape[0], memory.values.shape[2], *content.shape[2:], dtype=torch.float64)
    for c, k, (b, i, j) in pixels(
        content, classes if classes is not None else torch.zeros(content.shape[0], *content.shape[2:]).long()
    ):
        items = [n for n in range(len(memory.keys)) if classes is None or int(memory.item_class[n]) == k]
        scores = torch.stack([torch.exp(cosine(c, memory.keys[n])) for n in items])
        style[b, :, i, j] = sum(s / scores.sum() * memory.values[domain, n] for s, n in zip(scores, items, strict=True))
    return style


def test_the_literal_form_is_equations_5_and_6_in_values_and_gradients() -> None:
    memory = literal()
    contents, styles = [maps(1), maps(2)], [maps(3, channels=3), maps(4, channels=3)]
    classes = [labels(5), labels(6, kinds=2)]  # domain 1 has no sign
    inputs = [t.clone().requires_grad_() for t in (*contents, *styles)]
    state = memory.update(inputs[:2], inputs[2:], classes)
    copies = [t.clone().requires_grad_() for t in (*contents, *styles)]
    expected = loop_update(memory, copies[:2], copies[2:], classes)
    torch.testing.assert_close(state.keys, expected.keys, rtol=0, atol=1e-10)
    torch.testing.assert_close(state.values, expected.values, rtol=0, atol=1e-10)
    probe = torch.randn(1, generator=torch.Generator().manual_seed(7)).double()
    grads = torch.autograd.grad((state.keys.cos() * probe).sum() + state.values.sin().sum(), inputs)
    wanted = torch.autograd.grad((expected.keys.cos() * probe).sum() + expected.values.sin().sum(), copies)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_classes", [True, False])
def test_the_literal_read_is_equations_2_and_4(with_classes: bool) -> None:
    memory, content, classes = literal(), maps(1), labels(2) if with_classes else None
    style, weights = memory.read(content, 1, classes)
    torch.testing.assert_close(style, loop_read(memory, content, 1, classes), rtol=0, atol=1e-10)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 3, 3, dtype=torch.float64))
    if classes is not None:
        outside = classes[:, None] != memory.item_class[None, :, None, None]
        assert weights[outside].abs().max() == 0


def test_equation_8_is_a_cross_entropy_with_the_nearest_item_of_the_class_as_the_label() -> None:
    memory, content, classes = literal(), maps(1), labels(2)
    losses: dict[int, list[float]] = {}
    for c, k, _ in pixels(content, classes):
        scores = torch.stack([cosine(c, key) for key in memory.keys])
        positive = max((n for n in range(len(scores)) if int(memory.item_class[n]) == k), key=lambda n: float(scores[n]))
        losses.setdefault(k, []).append(float(-scores[positive] / 0.2 + (scores / 0.2).exp().sum().log()))
    expected = sum(sum(own) / len(own) for own in losses.values()) / len(losses)  # each class weighs alike
    loss = memory_contrast(content, memory.keys, 0.2, classes, memory.item_class)
    assert float(loss) == pytest.approx(expected, abs=1e-10)
    plain = memory_contrast(content, memory.keys, 0.2)
    scores = F.normalize(content, dim=1).movedim(1, -1).flatten(0, 2) @ memory.keys.T / 0.2
    assert float(plain) == pytest.approx(float(F.cross_entropy(scores, scores.argmax(1))), abs=1e-10)


def test_the_contrast_does_not_depend_on_resolution_and_falls_under_descent() -> None:
    memory = literal()
    content = maps(1, size=2).requires_grad_()
    coarse = memory_contrast(content, memory.keys, 0.1)
    fine = memory_contrast(content.repeat_interleave(3, 2).repeat_interleave(3, 3), memory.keys, 0.1)
    torch.testing.assert_close(coarse, fine)
    for _ in range(20):
        (grad,) = torch.autograd.grad(memory_contrast(content, memory.keys, 0.1), content)
        content = (content - 0.5 * grad).detach().requires_grad_()
    assert memory_contrast(content, memory.keys, 0.1) < coarse


def test_the_triplet_takes_the_second_nearest_of_all_items_as_its_negative() -> None:
    memory, content, classes = literal(), maps(1), labels(2)
    losses: dict[int, list[float]] = {}
    for c, k, _ in pixels(content, classes):
        distances = [(c / c.norm() - key).norm() for key in memory.keys]
        positive = min((n for n in range(len(distances)) if int(memory.item_class[n]) == k), key=lambda n: float(distances[n]))
        negative = min((n for n in range(len(distances)) if n != positive), key=lambda n: float(distances[n]))
        losses.setdefault(k, []).append(max(0.0, float(distances[positive] - distances[negative] + 0.3)))
    expected = sum(sum(own) / len(own) for own in losses.values()) / len(losses)
    loss = memory_triplet(content, memory.keys, 0.3, classes, memory.item_class)
    assert float(loss) == pytest.approx(expected, abs=1e-10)
    at_the_item = memory.keys[:1].reshape(1, 4, 1, 1).clone().requires_grad_()
    (grad,) = torch.autograd.grad(memory_triplet(at_the_item, memory.keys, 3.0), at_the_item)
    assert grad.isfinite().all()
    with pytest.raises(ValueError, match="at least two"):
        memory_triplet(content, memory.keys[:1])


@pytest.mark.parametrize("with_classes", [True, False])
def test_collected_values_are_the_unit_sums_of_each_items_own_cells(with_classes: bool) -> None:
    memory, content, style = literal(), maps(1), maps(2, channels=3)
    classes = labels(3, kinds=2) if with_classes else None  # no sign
    values, cells = memory.collect(content, style, 1, classes)
    for b in range(2):
        for n in range(len(memory.keys)):
            own = []
            for i in range(3):
                for j in range(3):
                    scores = [float(cosine(content[b, :, i, j], key)) for key in memory.keys]
                    items = [m for m in range(6) if classes is None or int(memory.item_class[m]) == int(classes[b, i, j])]
                    if max(items, key=lambda m: scores[m]) == n:
                        own.append(F.normalize(style[b, :, i, j], dim=0))
            assert int(cells[b, n]) == len(own)
            expected = F.normalize(sum(own, torch.zeros(3).double()), dim=0) if own else memory.values[1, n]
            torch.testing.assert_close(values[b, n], expected)


def test_idle_items_are_counted_while_their_class_is_written_and_start_anew() -> None:
    memory = literal(assignment="hard").float()
    content = memory.keys[0].reshape(1, 4, 1, 1).expand(1, 4, 3, 3)  # every pixel is item 0's
    for _ in range(3):
        write = memory.update([content, None], [maps(1, 1, channels=3).float(), None], [torch.zeros(1, 3, 3).long(), None])
        memory.commit(write)
    assert memory.idle.tolist() == [0, 3, 3, 0, 0, 0]  # no car and no sign was shown: theirs do not count
    before = memory.values.clone()
    memory.revive(torch.tensor([2]), 1, torch.tensor([[0.0, 2, 0, 0]]), torch.tensor([[3.0, 0, 0]]))
    assert memory.keys[2].tolist() == [0, 1, 0, 0] and memory.values[1, 2].tolist() == [1, 0, 0]
    assert torch.equal(memory.values[0], before[0]) and memory.idle.tolist() == [0, 3, 0, 0, 0, 0]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    assignment=st.sampled_from(["hard", "soft"]),
    temperature=st.sampled_from([0.03, 0.1, 1.0]),
    rate=st.sampled_from([None, 0.02, 0.5, 1.0]),
)
def test_properties_of_a_write(seed: int, assignment: str, temperature: float, rate: float | None) -> None:
    memory = literal(assignment=assignment, update_temperature=temperature, update_rate=rate).float()
    content, style, classes = maps(seed).float(), maps(seed + 1, channels=3).float(), labels(seed, kinds=2)  # no sign
    state = memory.update([content, None], [style, None], [classes, None])
    torch.testing.assert_close(state.keys.norm(dim=-1), torch.ones(6))
    torch.testing.assert_close(state.values.norm(dim=-1), torch.ones(2, 6))
    untouched = state.mass == 0
    assert untouched[1].all() and untouched[0, 5]  # the absent domain, and the class that nobody shows
    assert torch.equal(state.values[untouched], memory.values[untouched])
    assert torch.equal(state.keys[untouched.all(0)], memory.keys[untouched.all(0)])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    shuffle = lambda t: t.flatten(-2)[..., order].reshape(t.shape)  # noqa: E731
    again = memory.update([shuffle(content), None], [shuffle(style), None], [shuffle(classes), None])
    torch.testing.assert_close(again.keys, state.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.values, state.values, rtol=1e-5, atol=1e-5)


def test_classes_never_mix() -> None:
    memory = literal(assignment="hard")
    contents, styles, classes = [maps(1), maps(2)], [maps(3, channels=3), maps(4, channels=3)], [labels(5), labels(6)]
    state = memory.update(contents, styles, classes)
    changed = [torch.where(k[:, None] == 1, t + 1.0, t) for t, k in zip(contents, classes, strict=True)]
    other = memory.update(changed, styles, classes)
    cars = memory.item_class == 1
    assert torch.equal(state.keys[~cars], other.keys[~cars]) and not torch.equal(state.keys[cars], other.keys[cars])
    assert torch.equal(state.values[:, ~cars], other.values[:, ~cars])


def gaussian_stream(memory: ClassAwareMemory, writes: int) -> float:
    """Write ten Gaussian clusters to ten items; the mean cosine between different keys afterwards."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(10, 16, generator=generator), dim=-1)
    for _ in range(writes):
        chosen = torch.randint(0, 10, (64,), generator=generator)
        content = F.normalize(centres[chosen] + 0.2 * torch.randn(64, 16, generator=generator), dim=-1).T.reshape(1, 16, 8, 8)
        memory.commit(memory.update([content, None], [content[:, :8], None], [torch.zeros(1, 8, 8).long(), None]))
    return memory.health()["memory/cosine/background"]


def test_items_of_a_class_stay_apart_at_the_defaults_and_collapse_in_the_literal_form() -> None:
    generator = torch.Generator().manual_seed(1)
    apart = ClassAwareMemory({"background": 10}, 16, 8, generator=generator)
    assert gaussian_stream(apart, 500) < 0.5
    form = {"read_temperature": 1.0, "update_temperature": 1.0, "assignment": "soft", "update_rate": None}
    collapsed = ClassAwareMemory({"background": 10}, 16, 8, generator=generator, **form)  # type: ignore[arg-type]
    assert gaussian_stream(collapsed, 100) > 0.99


def test_a_read_temperature_chooses_between_one_item_and_all() -> None:
    memory = literal(read_temperature=0.02)
    content = memory.keys[:3].T.reshape(1, 4, 1, 3)
    _, sharp = memory.read(content, 0)
    assert (sharp.argmax(1).flatten() == torch.arange(3)).all() and sharp.amax(1).min() > 0.9
    _, flat = literal().read(content, 0)
    entropy = -(flat * flat.log()).sum(1)
    assert entropy.min() > 0.85 * math.log(6)


def test_a_read_works_in_bf16_autocast_with_fp32_similarities() -> None:
    memory = literal().float()
    content = maps(1).float()
    with torch.autocast("cpu", torch.bfloat16):
        style, weights = memory.read(content.bfloat16(), 0)
        state = memory.update([content.bfloat16(), None], [maps(2, channels=3).bfloat16(), None], [labels(3), None])
    assert style.dtype == weights.dtype == state.keys.dtype == torch.float32
    torch.testing.assert_close(style, memory.read(content, 0)[0], rtol=0.05, atol=0.02)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="without: car"):
        ClassAwareMemory({"background": 2, "car": 0}, 4, 4)
    with pytest.raises(ValueError, match="temperatures"):
        ClassAwareMemory({"background": 2}, 4, 4, read_temperature=0)
    with pytest.raises(ValueError, match="update_rate"):
        ClassAwareMemory({"background": 2}, 4, 4, update_rate=1.5)
    with pytest.raises(ValueError, match="truck.*background, car, sign"):
        literal().items_of("truck")
    with pytest.raises(ValueError, match="2 domains"):
        literal().update([maps()], [maps(channels=3)], [labels()])


def test_usage_is_a_running_share_per_class() -> None:
    memory = literal(assignment="hard").float()
    content = memory.keys[0].reshape(1, 4, 1, 1).expand(1, 4, 3, 3)  # every pixel is item 0's
    state = memory.update([content, None], [maps(1, 1, channels=3).float(), None], [torch.zeros(1, 3, 3).long(), None])
    memory.commit(state, usage_rate=1.0)
    assert memory.usage.tolist() == [1, 0, 0, 0, 0, 0]
    assert memory.health()["memory/dead/background"] == 2
