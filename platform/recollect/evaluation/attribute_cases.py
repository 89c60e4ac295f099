"""What can be asked of a picture by its attributes: single flips, with the true pictures that answer them where a world has them.

An attribute is one of the store's, or a domain, for methods whose attributes are the domains. A flip changes one attribute of a
picture; in a group of attributes that exclude each other it sets another one of the group.

Legend: B pictures, P pixels a side, S attributes that can be set, K true pictures of a scene, F flips, N pictures of any kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import joint_crop
from recollect.evaluation.features import pyramid
from recollect.evaluation.validate import spread

Groups = Sequence[Sequence[str]]


class Flip(NamedTuple):
    """One translation to ask for: which picture, which of the S attributes changes, and all S that are wanted."""

    picture: int
    attribute: int
    wanted: tuple[float, ...]
    answers: tuple[int, ...] = ()  # which of the scene's true pictures answer it equally well; empty: none is known


@dataclass(frozen=True)
class Pictures:
    """Pictures, and which of the S attributes they have. All are cut at the centre in the same way."""

    names: tuple[str, ...]  # S
    groups: tuple[tuple[str, ...], ...]  # of attributes of which a picture has at most one
    ids: tuple[str, ...]
    domains: tuple[str, ...]  # of the pictures
    images: Tensor  # (B, 3, P, P) uint8
    own: Tensor  # (B, S) in {0, 1}

    def __len__(self) -> int:
        return len(self.ids)

    def target(self, picture: int, wanted: Sequence[float]) -> str:
        """The domain that a translation is to: the wanted one where the attributes are domains, else the picture's own."""
        own = self.domains[picture]
        return self.names[max(range(len(wanted)), key=wanted.__getitem__)] if own in self.names else own


@dataclass(frozen=True)
class AttributeCases(Pictures):
    """Pictures with all their flips, and what is known of the answers."""

    flips: tuple[Flip, ...]
    renders: tuple[Tensor, ...] | None  # B times (K, 3, P, P) uint8: the true pictures of each scene
    shown: tuple[Tensor, ...] | None  # B times (K, S): what these show
    real: Tensor | None  # (F, 191) features of a real picture that shows what the flip asks for, where there is no truth


def own_pictures(store: Store, split: str, domains: Sequence[str]) -> tuple[str, ...]:
    """The ids of a split's pictures, in each domain every scene once, as it comes: its first picture; without scenes all of them.

    Raises ValueError for an unknown split or domain, and where there is no picture.
    """
    found = [id for domain in domains for id in store.ids(split, domain)]
    if not found:
        raise ValueError(f"{store.uri} has no {split} picture of {', '.join(domains)}; it has {store.manifest.counts}")
    if not store.manifest.truth:
        return tuple(found)
    facts = zip(found, store.column("scene", found), store.column("domain", found), strict=True)
    return tuple(id for id, scene, domain in facts if scene is None or store.scene(scene, domain)[0] == id)


def has_counterparts(store: Store, ids: Sequence[str], domains: Sequence[str]) -> bool:
    """Whether the store knows what these pictures look like with other attributes: their scenes are drawn more than once."""
    return bool(ids) and all(len(scene) > 1 for scene in scenes_of(store, ids, domains))


def scenes_of(store: Store, ids: Sequence[str], domains: Sequence[str]) -> list[tuple[str, ...]]:
    """For each picture the ids of all pictures of its scene, itself among them; empty where nobody says what scene it is."""
    if not store.manifest.truth:
        return [()] * len(ids)
    scenes = store.column("scene", ids)
    return [tuple(id for domain in domains for id in store.scene(scene, domain)) if scene else () for scene in scenes]


def attributes_of(store: Store, ids: Sequence[str], names: Sequence[str]) -> Tensor:
    """Attributes (N, S) in {0, 1} of pictures, NaN where nobody knows or it does not apply; names may be those of domains.

    Raises ValueError for names that are neither.
    """
    if names and set(names) <= set(store.domains.names):
        index = torch.tensor([store.domains.index(domain) for domain in store.column("domain", ids)], dtype=torch.int64)
        return (index[:, None] == torch.tensor([store.domains.index(name) for name in names])).float()
    known = store.domains.attributes
    for name in names:
        if name not in known:
            raise ValueError(f"{store.uri} has no attribute {name!r}{did_you_mean(name, known)}")
    return torch.from_numpy(store.attributes(ids)[1])[:, [known.index(name) for name in names]]


def cut(store: Store, ids: Sequence[str], run: Run) -> Tensor:
    """The pictures (N, 3, P, P) uint8, cut at the centre to the run's size."""
    size, short_side = run.data.size, run.data.short_side
    samples = [joint_crop(record, size, short_side, classes=store.domains.classes) for record in store.records(ids)]
    return torch.stack([sample.image.as_subclass(Tensor) for sample in samples])


def flips_of(own: Sequence[float], names: Sequence[str], groups: Groups) -> list[tuple[int, tuple[float, ...]]]:
    """All flips of a picture: which attribute changes, and all that are then wanted.

    Args:
        own: (S,) in {0, 1}, at most one of each group: with two, what is wanted would contradict itself.

    >>> flips_of([1, 0, 1], ["Black_Hair", "Blond_Hair", "Male"], [["Black_Hair", "Blond_Hair"]])
    [(1, (0.0, 1.0, 1.0)), (2, (1.0, 0.0, 0.0))]
    """
    found = []
    for index, name in enumerate(names):
        group = next((group for group in groups if name in group), None)
        if group is not None and own[index]:
            continue  # another one of the group replaces it
        wanted = [0.0 if group is not None and other in group else float(value) for other, value in zip(names, own, strict=True)]
        wanted[index] = 1.0 - float(own[index])
        found.append((index, tuple(wanted)))
    return found


def choose(
    store: Store, run: Run, split: str, names: Sequence[str], groups: Groups = (), pictures: int | None = None
) -> Pictures:
    """A fixed, evenly spread choice of `pictures` pictures (None: all) of a split, each scene once.

    Pictures are left out of which some of the S attributes is unknown, and those that have two of a group (of CelebA's, 1 %
    have two hair colours). Raises ValueError for attributes that the store lacks, and where nothing is left.
    """
    known = _known(store, split, run.data.domains, names, groups)
    ids = spread(known, pictures)
    domains, own = store.column("domain", ids), attributes_of(store, ids, names)
    return Pictures(tuple(names), tuple(tuple(group) for group in groups), tuple(ids), domains, cut(store, ids, run), own)


def _known(store: Store, split: str, domains: Sequence[str], names: Sequence[str], groups: Groups) -> list[str]:
    """The own pictures of a split of which all these attributes are known, and that have at most one of each group."""
    candidates = own_pictures(store, split, domains)
    columns = [[names.index(name) for name in group] for group in groups]
    fit = unambiguous(attributes_of(store, candidates, names), columns)
    known = [id for id, fits in zip(candidates, fit.tolist(), strict=True) if fits]
    if not known:
        one = "".join(f", with at most one of {', '.join(group)}" for group in groups)
        raise ValueError(f"{store.uri} has no {split} picture of which {', '.join(names)} are all known{one}")
    return known


def unambiguous(attributes: Tensor, groups: Sequence[Sequence[int]] = ()) -> Tensor:
    """Which pictures (N,) have no unknown attribute among these (N, S), and at most one of each group (of column indices).

    >>> unambiguous(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, torch.nan]]), [[0, 1]])
    tensor([False,  True, False])
    """
    fit = ~attributes.isnan().any(1)
    for group in groups:
        fit &= attributes[:, list(group)].nan_to_num().sum(1) <= 1
    return fit


def gather(
    store: Store, run: Run, split: str, names: Sequence[str], groups: Groups = (), pictures: int | None = None
) -> AttributeCases:
    """Pictures as `choose` has them, each with all of its flips.

    Without true pictures, flips are left out for which the split has too few real pictures with exactly the wanted
    attributes: each stands for one flip of an attribute. Raises ValueError as `choose`, and where nothing can be asked.
    """
    chosen = choose(store, run, split, names, groups, pictures)
    flips = [
        Flip(picture, index, wanted)
        for picture, row in enumerate(chosen.own.tolist())
        for index, wanted in flips_of(row, chosen.names, chosen.groups)
    ]
    renders = shown = real = None
    if has_counterparts(store, chosen.ids, run.data.domains):
        scenes = scenes_of(store, chosen.ids, run.data.domains)
        renders = tuple(cut(store, scene, run) for scene in scenes)
        shown = tuple(attributes_of(store, scene, names) for scene in scenes)
        flips = _answered(store, chosen.ids, scenes, shown, flips)
    else:
        flips, real = _with_real_pictures(store, run, _known(store, split, run.data.domains, names, groups), chosen, flips)
    if not flips:
        raise ValueError(f"no {split} picture of {store.uri} shows what a change of {', '.join(names)} asks for")
    fields = (chosen.names, chosen.groups, chosen.ids, chosen.domains, chosen.images, chosen.own)
    return AttributeCases(*fields, tuple(flips), renders, shown, real)


def _answered(
    store: Store, ids: Sequence[str], scenes: Sequence[Sequence[str]], shown: Sequence[Tensor], flips: Sequence[Flip]
) -> list[Flip]:
    """The flips that some true picture answers, with these answers."""
    tables = [attributes_of(store, (id, *scene), store.domains.attributes) for id, scene in zip(ids, scenes, strict=True)]
    found = []
    for flip in flips:
        right = (shown[flip.picture] == torch.tensor(flip.wanted)).all(1)
        if right.any():
            table = tables[flip.picture]
            found.append(flip._replace(answers=answers(table[0], table[1:], right)))
    return found


def answers(own: Tensor, scene: Tensor, right: Tensor) -> tuple[int, ...]:
    """Those of a scene's pictures that are `right` (K,) and agree most with the picture in whatever else is known of both.

    Args:
        own: (A,) all that is known of the picture.
        scene: (K, A) the same of the scene's pictures.
    """
    differing = ((scene != own) & ~scene.isnan() & ~own.isnan()).sum(1)
    fewest = differing[right].min()
    return tuple((right & (differing == fewest)).nonzero()[:, 0].tolist())


def _with_real_pictures(
    store: Store, run: Run, everyone: Sequence[str], chosen: Pictures, flips: Sequence[Flip]
) -> tuple[list[Flip], Tensor]:
    """The flips that real pictures can be found for, and features (F, 191) of these; none is taken twice for one attribute."""
    pools: dict[tuple[float, ...], list[str]] = {}
    rows = attributes_of(store, everyone, chosen.names).tolist()
    for place in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist():
        pools.setdefault(tuple(rows[place]), []).append(everyone[place])
    taken: Counter[tuple[int, tuple[float, ...]]] = Counter()
    kept, real = [], []
    for flip in flips:
        pool, place = pools.get(flip.wanted, []), taken[flip.attribute, flip.wanted]
        if place < len(pool):
            taken[flip.attribute, flip.wanted] += 1
            kept.append(flip)
            real.append(pool[place])
    features = {id: pyramid(cut(store, [id], run).float() / 255)[0] for id in dict.fromkeys(real)}
    return kept, torch.stack([features[id] for id in real]) if real else torch.empty(0, 0)


def random_targets(attributes: Tensor, queries: Tensor, groups: Sequence[Sequence[int]] = (), seed: int = 0) -> Tensor:
    """For each query (Q,), an index into attributes (N, S), another picture at random, whose attributes it shall have: (Q,).

    Pictures of which something is unknown, or that have two attributes of a group (of column indices), are nobody's target.
    Raises ValueError where there are fewer than two others.
    """
    fit = unambiguous(attributes, groups)
    places = fit.nonzero()[:, 0]
    if len(places) < 2:
        raise ValueError(f"{len(places)} of {len(attributes)} pictures can say what is wanted of another; it takes at least 2")
    others = len(places) - fit[queries].long()  # (Q,) how many can be its target
    chosen = (torch.rand(len(queries), generator=torch.Generator().manual_seed(seed), dtype=torch.double) * others).long()
    return places[chosen + (fit[queries] & (places[chosen] >= queries)).long()]  # its own place is stepped over
