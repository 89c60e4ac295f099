"""Features of pictures, trained on the data itself: a small network with several tasks, in whose features sets are compared.

What ImageNet's networks are for photographs, this is for data that they know nothing of: `recollect features train STORE`.

    map = body(I)   features = mean of map over places   each task is a linear head on one of the two

    domain      which domain, or that its colours were tampered with: a class of its own
    tampered    the same of copies of the pictures that were tampered with (`parts.tampering`)
    turned      by how many quarters a picture was turned (no labels needed: what is up, so what things are)
    counts      how many objects of each class, where the data has boxes
    regions     which share of each cell is which region (road, sky, car), where the data has exact maps
    attributes  yes or no, where the data has attributes
    modes       the style that a picture was drawn in, where a world says it: what IS and CIS ask for

A plain classifier of domains is fooled by mere darkening: to it a darkened day is a night. `recollect.evaluation.darkening` tests
that, and docs/metrics.md has the figures of which tasks pass it on which data.

Legend: B pictures, H x W pixels, D domains, K box classes without the background, R regions, A attributes, M modes a domain,
C channels of the map, which are the features.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.batch import Batch, Domains, onto
from recollect.config import Choice, ModelConfig, Weights
from recollect.objective import Terms
from recollect.trainable import Part, Phase, Step, Trainable
from trainables.parts.tampering import tampered

CELL = 8  # pixels of a cell of the map
TURNS = 4


class FeaturesConfig(ModelConfig):
    """The network. `modes` is how many styles a domain may have at most."""

    name: Literal["features"] = "features"
    width: Annotated[int, Field(ge=8, multiple_of=8), Choice((16, 24, 32), shape=True)] = 24  # channels at half resolution
    features: Annotated[int, Field(ge=8, multiple_of=8), Choice((48, 64, 96), shape=True)] = 64  # C
    modes: Annotated[int, Field(ge=2)] = 16  # M


class FeaturesWeights(Weights):
    """One weight a task; a task that the data has nothing for has no loss."""

    domain: float = 1.0
    tampered: float = 1.0
    turned: float = 0.5
    counts: float = 1.0
    regions: float = 1.0
    attributes: float = 1.0
    modes: float = 0.5


class Body(nn.Module):
    """Three halvings to the map (B, C, H / 8, W / 8), each with a second convolution, and one that sees further around."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (width, 2 * width, 3 * width):
            layers += [nn.Conv2d(before, channels, 4, 2, padding=1), nn.GroupNorm(8, channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU()]
            before = channels
        layers += [nn.Conv2d(before, features, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images)
        return found


class Features(Trainable):
    """Describes pictures of the run's domains, by whatever tasks the data has answers for.

    Args:
        config: the network.
        domains: the domains, and what else the data has names for.
    """

    Config = FeaturesConfig
    Weights = FeaturesWeights
    config: FeaturesConfig
    domains_needed = 1
    learns_truth = True
    judged_by = "recollect.evaluation.darkening:FeaturesJudge"
    seen_modes: Tensor
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 to 128 px, a minute or two on a CPU
            "data": {"size": 64},
            "optimisers": {"default": {"lr": 2e-3, "betas": (0.9, 0.999), "hold": 0.4}},
            "engine": {"steps": 500, "batch_size": 8, "log_every": 50},
            "evaluation": {"pictures": 100},
        },
    }

    def __init__(self, config: FeaturesConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        names, objects = len(domains.names), len(domains.classes) - 1
        self.body = Body(config.width, config.features)
        heads = {"domain": names + 1, "turned": TURNS, "modes": names * config.modes}
        heads |= {"counts": objects} if objects else {}
        heads |= {"attributes": len(domains.attributes)} if domains.attributes else {}
        self.heads = nn.ModuleDict({name: nn.Linear(config.features, size) for name, size in heads.items()})
        if domains.regions:
            self.heads["regions"] = nn.Conv2d(config.features, len(domains.regions), 1)
        self.register_buffer("seen_modes", torch.zeros(names, config.modes))  # how many pictures of each style were learnt from

    @property
    def stride(self) -> int:
        return CELL

    def phases(self) -> tuple[Phase, ...]:
        """A single update of the whole network."""
        return (Phase("describe", (Part(("body", "heads"), self.terms),)),)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, C) of pictures (B, 3, H, W) in [-1, 1] of any size."""
        found: Tensor = self.body(images).mean((2, 3))
        return found

    def answers(self, features: Tensor, task: str) -> Tensor:
        """What a head says (B, ...) of features (B, C): logits, or log(1 + count)."""
        found: Tensor = self.heads[task](features)
        return found

    def mode_logits(self, features: Tensor, target: int) -> Tensor:
        """Logits (B, k) of the k styles of a domain that were learnt; k is 0 where the data has none."""
        said = self.answers(features, "modes").view(len(features), -1, self.config.modes)[:, target]
        return said[:, self.seen_modes[target] > 0].contiguous()

    def after_step(self, step: Step) -> None:
        """Count which styles were learnt."""
        if not step.wants("modes"):
            return
        seen = torch.zeros_like(self.seen_modes)
        for index, batch in enumerate(step.batches):
            if batch.modes is not None:
                known = batch.modes[batch.modes >= 0]
                self._check_modes(known)
                seen[index] = onto(torch.bincount(known, minlength=self.config.modes), seen.device, seen.dtype)
        self.seen_modes += step.reduce(seen)

    def _check_modes(self, known: Tensor) -> None:
        if len(known) and int(known.max()) >= self.config.modes:
            raise ValueError(f"a picture has the style {int(known.max())}; set model.modes above it, not to {self.config.modes}")

    def terms(self, step: Step) -> Terms:
        """The losses of the tasks; each is a mean over pictures of the joint batch of which the answer is known."""
        images = torch.cat([batch.images for batch in step.batches])
        places = self.body(images)
        found, truth = places.mean((2, 3)), self._domains(step, images)
        terms: Terms = {}
        if step.wants("domain"):
            terms["domain"] = F.cross_entropy(self.answers(found, "domain"), truth)
        if step.wants("tampered"):
            terms["tampered"] = self._tampered(step)
        if step.wants("turned"):
            terms["turned"] = self._turned(step)
        if step.wants("counts") and "counts" in self.heads and all(batch.labels is not None for batch in step.batches):
            counts = onto(self._counts(step.batches), found.device, found.dtype)
            terms["counts"] = F.smooth_l1_loss(self.answers(found, "counts"), counts)
        if step.wants("regions") and "regions" in self.heads:
            terms["regions"] = self._regions(step, places)
        if step.wants("attributes") and "attributes" in self.heads:
            terms["attributes"] = self._attributes(step, found)
        if step.wants("modes"):
            terms["modes"] = self._modes(step, found)
        return terms

    def _tampered(self, step: Step) -> Tensor:
        """Half of the pictures with other colours; the last class of `domain` is theirs."""
        copies = []
        for index, batch in enumerate(step.batches):
            chosen = [place for place, slot in enumerate(batch.slots) if (slot + step.number) % 2 == 0]
            slots = [batch.slots[place] for place in chosen]
            if chosen:
                copies.append(
                    tampered(torch.stack([batch.images[place] for place in chosen]), step.draws, slots, f"tamper/{index}")
                )
        images = torch.cat(copies) if copies else step.batches[0].images[:0]
        said = self.answers(self.features(images), "domain") if len(images) else self._nothing("domain")
        answer = torch.full((len(said),), len(self.domains.names), device=said.device)
        return _joint_mean(step, F.cross_entropy(said, answer, reduction="none"), torch.ones_like(said[:, 0]))

    def _turned(self, step: Step) -> Tensor:
        """A quarter of the pictures, each turned by 0 to 3 quarters."""
        copies, turns = [], []
        for index, batch in enumerate(step.batches):
            for place, slot in enumerate(batch.slots):
                if (slot + step.number) % 4 == 1:
                    turn = int(torch.randint(TURNS, (), generator=step.draws.generator(f"turn/{index}", slot)))
                    copies.append(batch.images[place].rot90(turn, (1, 2)))
                    turns.append(turn)
        said = self.answers(self.features(torch.stack(copies)), "turned") if copies else self._nothing("turned")
        answer = onto(torch.tensor(turns, dtype=torch.int64), said.device, torch.int64)
        return _joint_mean(step, F.cross_entropy(said, answer, reduction="none"), torch.ones_like(said[:, 0]))

    def _domains(self, step: Step, like: Tensor) -> Tensor:
        """The domain of each picture (B,), where another tensor is."""
        return onto(torch.cat([batch.domain for batch in step.batches]), like.device, torch.int64)

    def _nothing(self, task: str) -> Tensor:
        """What a head says of no picture; a rank whose share of the batch is small may have none to ask about."""
        return self.answers(next(self.heads.parameters()).new_zeros(0, self.config.features), task)

    def _counts(self, batches: tuple[Batch, ...]) -> Tensor:
        """log(1 + objects) of each class (B, K)."""
        labels = [own for batch in batches for own in batch.labels or ()]
        counted = [torch.bincount(own, minlength=len(self.domains.classes))[1:] for own in labels]
        return torch.stack(counted).float().log1p()

    def _regions(self, step: Step, places: Tensor) -> Tensor:
        """Cross entropy to the share of each region in each cell, where all of the cell is known."""
        known_maps = [batch.regions for batch in step.batches if batch.regions is not None]
        if len(known_maps) < len(step.batches):
            return places.new_zeros(())
        regions = torch.cat(known_maps).to(places.device)
        shares = F.one_hot(regions, len(self.domains.regions) + 1).movedim(-1, 1).to(places)
        shares = F.avg_pool2d(shares, CELL)
        said = self.heads["regions"](places).log_softmax(1)
        known = (shares[:, 0] == 0).to(places)
        return _joint_mean(step, -(shares[:, 1:] * said).sum(1), known)

    def _attributes(self, step: Step, found: Tensor) -> Tensor:
        known_of = [batch.attributes for batch in step.batches if batch.attributes is not None]
        truth = onto(torch.cat(known_of), found.device, found.dtype)
        known = ~truth.isnan()
        said = self.answers(found, "attributes")
        losses = F.binary_cross_entropy_with_logits(said, truth.nan_to_num(), reduction="none")
        return _joint_mean(step, losses, known.to(found))

    def _modes(self, step: Step, found: Tensor) -> Tensor:
        """Cross entropy over the styles of each picture's own domain."""
        said = self.answers(found, "modes").view(len(found), -1, self.config.modes)
        own = self._domains(step, found)
        modes = torch.cat([_modes_of(batch) for batch in step.batches])
        self._check_modes(modes)
        modes = onto(modes, found.device, modes.dtype)
        losses = F.cross_entropy(said[torch.arange(len(own)), own], modes.clamp_min(0), reduction="none")
        return _joint_mean(step, losses, (modes >= 0).to(found))


def _modes_of(batch: Batch) -> Tensor:
    return torch.full((len(batch),), -1) if batch.modes is None else batch.modes


def _joint_mean(step: Step, losses: Tensor, known: Tensor) -> Tensor:
    """The mean over what is known in the JOINT batch, as a term that is averaged over its shares; 0 where nothing is known."""
    return (losses * known).sum() * step.shares / step.reduce(known.sum()).clamp_min(1)
