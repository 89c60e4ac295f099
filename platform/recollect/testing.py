"""Test batteries that ship: a new method inherits `TrainableContract` in its test and gets its promises checked.

    class TestMyMethod(TrainableContract):
        run = preset("mymethod:tiny", data={"domains": ("sunny", "night")})
        domains = Domains(("sunny", "night"), ("background", "car"))

The checks are those of `recollect.trainable`, on pictures of noise: terms and weights have the same names, a part's gradient
reaches only its nets, state changes in `after_step` only, two ranks take the step of one process, answers do not depend on
their batch, and a bundle gives back the translator that was written.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from recollect import bundle as bundles
from recollect.batch import Batch, Domains, Guide
from recollect.config import Optimiser, Run, overlay
from recollect.objective import active
from recollect.pipeline import Pipeline
from recollect.pretended import pretended_gpu
from recollect.retrieval.contract import IndexContract as IndexContract  # the battery for indexes
from recollect.trainable import Guided, Queries, Translator
from recollect.training.optim import trained_nets
from recollect.training.sync import Group, Ranks
from recollect.training.trainer import Trainer, build


def noise_batches(run: Run, domains: Domains, stride: int, slots: Iterable[int], step: int = 0) -> tuple[Batch, ...]:
    """Batches of noise, a pure function of (slot, step): one per domain. Slots from 2 on lack the last class.

    So in a joint batch of 4 on two ranks, the second rank never sees that class. Boxes are noise of their own; every fourth
    picture has none. Where the data has attributes, each is set or not as a coin falls; where it has regions, the left half of
    every third picture is of an unknown one, and as many pictures have no known style.
    """
    slots = tuple(slots)
    size = run.data.size
    batches = []
    for index, name in enumerate(domains.names):
        images, classes, boxes, labels, attributes = [], [], [], [], []
        for slot in slots:
            generator = torch.Generator().manual_seed(hash((index, slot, step)) % 2**31)
            images.append(torch.rand(3, size, size, generator=generator) * 2 - 1)
            present = max(len(domains.classes) - (slot >= 2), 1)
            classes.append(torch.randint(0, present, (size // stride, size // stride), generator=generator))
            count = slot % 4 if present > 1 else 0
            corner, extent = torch.rand(2, count, 2, generator=generator) * size / 2
            boxes.append(torch.cat([corner, corner + extent + 1e-3], dim=1))
            labels.append(torch.randint(1, max(present, 2), (count,), generator=generator))
            attributes.append(torch.randint(0, 2, (len(domains.attributes),), generator=generator).float())
        batches.append(
            Batch(
                torch.stack(images),
                torch.full((len(slots),), index),
                tuple(f"{name}-{slot}" for slot in slots),
                slots,
                torch.stack(classes),
                torch.stack(attributes) if domains.attributes else None,
                boxes=tuple(boxes),
                labels=tuple(labels),
                regions=torch.stack([_noise_regions(domains, size, stride, slot, index) for slot in slots])
                if domains.regions
                else None,
                modes=torch.tensor([slot % 3 - 1 for slot in slots]) if domains.regions else None,
            )
        )
    return tuple(batches)


def _noise_regions(domains: Domains, size: int, stride: int, slot: int, index: int) -> Tensor:
    """A map (size, size) that is alike in each cell."""
    generator = torch.Generator().manual_seed(1000 * index + slot)
    cells = torch.randint(1, len(domains.regions) + 1, (size // stride, size // stride), generator=generator)
    if slot % 3 == 0:
        cells[:, : size // stride // 2] = 0
    return cells.repeat_interleave(stride, 0).repeat_interleave(stride, 1)


def _train_rank(rank: int, world: int, meeting: str, job: Mapping[str, Any], out: str) -> None:
    """One process of a small training: its gradients, parameters and buffers after each step go to `out`."""
    torch.set_num_threads(1)
    run, domains = Run.model_validate_json(job["run"]), Domains(**job["domains"])
    ranks: Ranks = Ranks()
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        ranks = _Unreduced() if job["unreduced"] else Group()
    trainer = Trainer(run, domains, ranks, device="cpu", search=noise_search)
    gradients: dict[str, Tensor] = {}
    for net, optimiser in trainer.optimisers.items():
        optimiser.register_step_pre_hook(_recorder(gradients, net, trainer))
    share = run.engine.batch_size // world
    for step in range(job["steps"]):
        slots = range(rank * share, (rank + 1) * share)
        trainer.update(noise_batches(run, domains, trainer.model.stride, slots, step))
    state = {f"state/{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    everything = {**state, **gradients}
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in everything.items()}, out)
    if world > 1:
        dist.destroy_process_group()


class _Unreduced(Group):
    """Ranks that forget to sum: what the equality test must notice."""

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor


def _recorder(gradients: dict[str, Tensor], net: str, trainer: Trainer) -> Any:
    def record(optimiser: Any, args: Any, kwargs: Any) -> None:
        for name, parameter in trainer.model.get_submodule(net).named_parameters():
            if parameter.grad is not None:
                gradients[f"grad/{trainer.step}/{net}.{name}"] = parameter.grad.detach().clone()

    return record


def train_ranks(run: Run, domains: Domains, world: int, steps: int = 2, unreduced: bool = False) -> list[dict[str, Tensor]]:
    """Train in `world` real processes over gloo, a single one in this; returns each rank's gradients, parameters and buffers."""
    job = {"run": run.model_dump_json(), "domains": asdict(domains), "steps": steps, "unreduced": unreduced}
    context = multiprocessing.get_context("forkserver")  # whose server imports torch once, not each rank of each test
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        outs = [f"{folder}/{rank}.safetensors" for rank in range(world)]
        if world == 1:
            threads = torch.get_num_threads()
            try:
                _train_rank(0, 1, "", job, outs[0])
            finally:
                torch.set_num_threads(threads)
            return [load_file(outs[0])]
        processes = [
            context.Process(target=_train_rank, args=(rank, world, f"{folder}/meeting", job, outs[rank])) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert all(process.exitcode == 0 for process in processes), "a rank failed; its traceback is above"
        return [load_file(out) for out in outs]


def noise_search(queries: Queries) -> Tensor:
    """Pictures (Q, k, 3, 32, 32) that depend smoothly on what is asked: instead of a retrieval set, where any will do."""
    found = []
    for row in range(len(queries.exclude)):
        if queries.vectors is None:
            assert queries.seeds is not None
            found.append(torch.rand(queries.k * 3 * 32 * 32, generator=torch.Generator().manual_seed(queries.seeds[row])))
        else:
            vector = queries.vectors[row].detach().double().cpu()
            directions = torch.randn(queries.k * 3 * 32 * 32, len(vector), generator=torch.Generator().manual_seed(0)).double()
            found.append((directions @ vector).tanh())
    return torch.stack(found).view(-1, queries.k, 3, 32, 32).float()


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest absolute difference between two sets of tensors of the same names, and where it is."""
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    return max((float((a[name].double() - b[name].double()).abs().max()), name) for name in a)


LONG = (  # of the contract's tests
    "test_two_ranks_take_the_step_of_one_process",
    "test_activations_that_are_computed_again_change_nothing",
    "test_a_gpu_is_handed_a_step_without_being_waited_for",
    "test_resuming_goes_on_bit_equal",
)


class TrainableContract:
    """Inherit this and set `run` and `domains` (small ones: every check trains or translates)."""

    run: ClassVar[Run]
    domains: ClassVar[Domains]
    variant: ClassVar[bool] = False  # a form of a method that another class tests whole: what takes long is left to slow tests
    guides: ClassVar[tuple[str, ...]] = ()  # the guides that the method understands, for the check that it refuses the others
    together: ClassVar[int] = 1  # pictures that a part of a batch has at least
    waits: ClassVar[str] = ""  # why a step has to read numbers from the device, where it has to
    random_styles: ClassVar[bool] = True  # False: one translation a picture, and `sample_guide` says so in a ValueError

    @property
    def _target(self) -> int:
        """The domain that pictures of the first are translated to: the second, or the only one."""
        return min(1, len(self.domains.names) - 1)

    def _trainer(self, run: Run | None = None) -> Trainer:
        torch.manual_seed(0)
        return Trainer(run or self.run, self.domains, device="cpu", search=noise_search)

    def _all_terms(self, run: Run) -> Run:
        return overlay(run, {f"weights.{name}": 1.0 for name, _ in run.weights})

    def _batches(self, trainer: Trainer, slots: Iterable[int] = range(2)) -> tuple[Batch, ...]:
        return noise_batches(trainer.run, self.domains, trainer.model.stride, slots)

    def test_terms_and_weights_have_the_same_names(self) -> None:
        trainer = self._trainer(self._all_terms(self.run))
        terms = trainer.update(self._batches(trainer))
        assert set(terms) == {name for name, _ in self.run.weights}
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())

    def test_a_term_without_weight_is_not_computed(self) -> None:
        trainer = self._trainer(self._all_terms(self.run))
        full = trainer.run
        for name, _ in full.weights:
            trainer.run = overlay(full, {f"weights.{name}": 0.0})
            trainer.active, trainer.step = active(trainer.run.weights), 0  # when every phase runs
            assert name not in trainer.update(self._batches(trainer))

    def test_every_net_learns_and_only_in_its_own_phases(self) -> None:
        trainer = self._trainer(self._all_terms(self.run))
        (step,) = trainer.prepare(0, self._batches(trainer))
        if (queries := trainer.queries(step)) is not None:
            step.neighbours = noise_search(queries)
        for phase in trainer.phases:
            before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            trainer.run_phase(phase, (step,))
            owned = tuple(f"{net}." for part in phase.parts for net in part.nets)
            after = trainer.model.state_dict()
            changed = {name for name in before if not torch.equal(before[name], after[name])}
            assert all(name.startswith(owned) for name in changed), f"phase {phase.name} changed more than its nets"
            for net in owned:
                assert any(name.startswith(net) for name in changed), f"phase {phase.name} did not change {net}"

    def test_a_step_depends_on_its_seed_only(self) -> None:
        first, second = self._trainer(), self._trainer()
        for trainer in (first, second):
            torch.manual_seed(hash(id(trainer)) % 1000)  # the global generator must not matter
            trainer.update(self._batches(trainer))
        assert largest_difference(first.model.state_dict(), second.model.state_dict())[0] == 0

    def test_two_ranks_take_the_step_of_one_process(self) -> None:
        run = self._exact()
        (alone,) = train_ranks(run, self.domains, 1)
        for rank in train_ranks(overlay(run, {"engine.channels_last": True}), self.domains, 2):  # in either memory format
            difference, name = largest_difference(alone, rank)
            assert difference < 1e-10, f"{name} differs by {difference}"

    def test_activations_that_are_computed_again_change_nothing(self) -> None:
        states = []
        for again in (False, True):
            run = overlay(self._exact(), {"engine.recompute": again, "engine.batch_size": 2})
            trainer = Trainer(run, self.domains, device="cpu", search=noise_search)
            for _ in range(2):
                trainer.update(noise_batches(run, self.domains, trainer.model.stride, range(2)))
            states.append(trainer.model.state_dict())
        assert largest_difference(*states)[0] == 0

    def test_a_batch_in_parts_takes_the_step_of_the_whole(self) -> None:
        runs = [overlay(self._exact(), {"engine.accumulate": count}) for count in (1, 4 // self.together)]
        (whole,), (parts,) = (train_ranks(run, self.domains, 1) for run in runs)
        difference, name = largest_difference(whole, parts)
        assert difference < 1e-10, f"{name} differs by {difference}"

    def test_a_gpu_is_handed_a_step_without_being_waited_for(self) -> None:
        """Every tensor is where it is needed, and none is read before the step after it is handed over."""
        if self.waits:
            pytest.skip("the device is waited for: " + self.waits)
        run = self._all_terms(self.run)
        with pretended_gpu() as pretended:
            trainer = Trainer(run, self.domains, device="cuda", search=noise_search)
            for step in range(2):
                pretended.strict = step > 0  # at first there are weights to read
                terms = trainer.update(noise_batches(run, self.domains, trainer.model.stride, range(2), step))
        assert trainer.watch.behind and all(term.device.type == "cuda" for term in terms.values())

    def _exact(self) -> Run:
        plain = Optimiser(kind="sgd", lr=0.01)
        changed = overlay(self.run, {"engine.precision": "fp64", "engine.batch_size": 4, "engine.ema": 0.0})
        return changed.model_copy(update={"optimisers": {"default": plain}})

    def _translator(self) -> Translator:
        model = build(self.run, self.domains).eval()
        if not isinstance(model, Translator):
            pytest.skip("this method does not translate pictures")
        return model

    def _pictures(self, model: Translator, count: int = 3) -> Tensor:
        height, width = 4 * model.stride * 4, 5 * model.stride * 4  # not square, not the training size
        return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def _guide(self, model: Translator, images: Tensor) -> Guide:
        """The neighbours that a guided method asks for; nothing for others."""
        queries = model.look_up(images, 0, self._target, Guide()) if isinstance(model, Guided) else None
        return Guide() if queries is None else Guide(neighbours=noise_search(queries).to(images))

    def test_frozen_nets_stay_as_they_are(self) -> None:
        trainer = self._trainer(self._all_terms(self.run))
        before = trainer.model.frozen_digest()
        trainer.update(self._batches(trainer))
        assert trainer.model.frozen_digest() == before
        owned = {name for net in trainer.model.frozen for name, _ in trainer.model.get_submodule(net).named_parameters()}
        assert not set(trainer.model.frozen) & set(trainer.optimisers) and (owned or not trainer.model.frozen)

    @torch.no_grad()
    def test_a_translation_does_not_depend_on_its_batch(self) -> None:
        model = self._translator()
        images = self._pictures(model)
        guide = self._guide(model, images)
        together = model.translate(images, 0, self._target, guide).images
        assert together.shape == images.shape and together.abs().max() <= 1
        torch.testing.assert_close(model.translate(images, 0, self._target, guide).images, together, rtol=0, atol=0)
        for index in range(len(images)):
            own = self._guide(model, images[index : index + 1])
            alone = model.translate(images[index : index + 1], 0, self._target, own).images
            torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_a_random_style_depends_on_its_own_seed_only(self) -> None:
        model = self._translator()
        images = self._pictures(model)[:1].expand(3, -1, -1, -1)
        pipeline = Pipeline(model, search=noise_search)
        target = self.domains.names[self._target]
        if not self.random_styles:
            with pytest.raises(ValueError, match=self.run.model.name):
                model.sample_guide(self._target, [torch.Generator()])
            with pytest.raises(ValueError, match=self.run.model.name):
                pipeline(images, target, seeds=[5, 6, 5])
            return
        first = pipeline(images, target, seeds=[5, 6, 5]).images
        torch.testing.assert_close(first[0], first[2], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(first[0], first[1], atol=1e-3), "two seeds gave one style"

    def test_guides_that_are_not_understood_are_refused_by_name(self) -> None:
        model = self._translator()
        images = self._pictures(model, 1)
        everything: dict[str, Any] = {
            "noise": images,
            "exemplar": images,
            "neighbours": images[:, None],
            "attributes": torch.zeros(1, 1),
            "values": {},
        }
        for name, value in everything.items():
            if name not in self.guides:
                with pytest.raises(ValueError, match=name):
                    model.translate(images, 0, self._target, Guide(**{name: value}))

    def test_a_bundle_gives_back_the_translator(self, tmp_path: Path) -> None:
        trainer = self._trainer()
        trainer.update(self._batches(trainer))
        trainer.save(tmp_path / "bundle", [], {})
        model = trainer.model.eval()
        if not isinstance(model, Translator):
            pytest.skip("this method does not translate pictures")
        images = self._pictures(model)
        opened = Pipeline.open(bundles.open_bundle(tmp_path / "bundle"), which="model", search=noise_search)
        with torch.no_grad():
            expected = model.translate(images, 0, self._target, self._guide(model, images)).images
        torch.testing.assert_close(opened(images, self.domains.names[self._target]).images, expected, rtol=0, atol=0)

    def test_resuming_goes_on_bit_equal(self, tmp_path: Path) -> None:
        run = overlay(self.run, {"engine.ema": 0.9, "engine.steps": 4})
        whole, stopped = self._trainer(run), self._trainer(run)
        for step in range(4):
            whole.update(noise_batches(run, self.domains, whole.model.stride, range(2), step))
        for step in range(2):
            stopped.update(noise_batches(run, self.domains, stopped.model.stride, range(2), step))
        stopped.save(tmp_path / "last", [], {})
        fresh = self._trainer(run)
        fresh.resume(tmp_path / "last", {})
        for step in range(2, 4):
            fresh.update(noise_batches(run, self.domains, fresh.model.stride, range(2), step))
        assert largest_difference(whole.model.state_dict(), fresh.model.state_dict())[0] == 0
        assert whole.ema is not None and fresh.ema is not None
        assert largest_difference(whole.ema.module.state_dict(), fresh.ema.module.state_dict())[0] == 0

    def test_every_optimiser_belongs_to_a_net_that_some_phase_trains(self) -> None:
        trainer = self._trainer()
        assert set(trainer.optimisers) == set(trained_nets(trainer.model)) <= {name for name, _ in trainer.model.named_children()}
