"""RG-UNIT's retriever: finds pictures alike in content to a picture, and in the style that is wanted (stage 2).

Gomez, Liu, De Nadai, Karatzas, Lepri, Sebe: Retrieval Guided Unsupervised Multi-domain Image-to-Image Translation (ACM MM 2020),
section 3.2, appendix A.2. What stage 1 learned to take apart (content c, style s) and to put together (G) makes the examples,
so no picture needs a label that says which other picture is like it.

Figure 2 in words: a picture x with the style z_t that is wanted is the anchor; the same picture translated, x^ = G(c, z_t),
encoded again, the positive. Negatives, easy to hard: another picture x_r; that picture translated to the wanted style (the
content is wrong); x translated to another style (the style is wrong), and x drawn anew in the style that it has already.

    anchor    R(E_c(x),   z_t)
    positive  R(E_c(x^),  E_s(x^))     x^ = G(E_c(x), z_t)
    easy      R(E_c(x_r), E_s(x_r))            released: R(E_c(x_r), z_r) and R(E_c(x_r), z_t)
    medium    R(E_c(x'),  E_s(x'))     x' = G(E_c(x_r), z_t)
    hard      R(E_c(x"),  E_s(x"))     x" = G(E_c(x), z_r), r another domain than t
    own       R(E_c(x~),  E_s(x~))     x~ = G(E_c(x), z_i), i the domain that x is of

Legend: B pictures, S attributes, Z style dimensions, C channels, h x w cells, E dimensions of an embedding.

Decisions:
- `negatives` are cumulative as under Table 6: `medium` has the easy ones too, `all` is hard and own as well.
- `easy = "printed"` is the text's: the style of another picture is another style, so even these teach what style is. The released
  code's (`"released"`) pair another picture's content with a drawn style and with the wanted one, so half of them teach content
  alone; Table 6's easy negatives, hardly better than chance, are more like these. The two count as one kind.
- The loss is the mean over the kinds that are chosen (released: a sum, or a step each; the paper draws one kind a step, which has
  the same mean and more noise).
- The wanted domain is any but the picture's own (`targets = "any"`); the released code flips one attribute (`"flip"`).
- x_r is any other picture, of whatever domain (the text: of another than the wanted one): the other one of a pair of neighbouring
  slots, so the joint batch is even on every rank.
- Units are dropped by the step's own draws, as everything random.
- E_c, E_s and G are the parent's, frozen, and are inside this bundle, so that stage 3 and an index need no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from recollect.batch import Domains, onto
from recollect.bundle import must_agree, open_parent
from recollect.config import ModelConfig, Parent, Range, Weights
from recollect.objective import Terms
from recollect.trainable import Part, Phase, Step, Trainable, weights_digest
from trainables.gmm_unit import GMMUNIT, GMMUNITConfig, Task
from trainables.parts.blocks import initialise
from trainables.parts.embedding import Embedding, EmbeddingConfig
from trainables.parts.mixture import drawn_other

KINDS = ("easy", "medium", "hard", "own")  # of negatives
RELEASED_EASY = ("easy_any", "easy_wanted")
CUMULATIVE = {"easy": 1, "medium": 2, "hard": 3, "all": 4}  # how many of them a setting has


class RetrieverConfig(ModelConfig):
    """R, and the translator that makes its examples; `translator` is what the parent says."""

    name: Literal["retriever"] = "retriever"
    parent: Parent = Parent()
    translator: GMMUNITConfig = GMMUNITConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    negatives: Literal["easy", "medium", "hard", "all"] = "all"
    easy: Literal["printed", "released"] = "printed"
    targets: Literal["any", "flip"] = "any"
    margin: Annotated[float, Field(gt=0), Range(0.05, 2, log=True)] = 0.2
    init_std: float | None = None  # None: Kaiming's

    def with_parents(self) -> Self:
        if self.parent.digest:
            return self
        opened = open_parent(self.parent, "gmm_unit", self.name)
        must_agree(self.translator, opened.run.model, GMMUNITConfig.model_fields, self.parent.bundle, "model.translator")
        parent = Parent(bundle=self.parent.bundle, digest=opened.digest)
        return self.model_copy(update={"parent": parent, "translator": opened.run.model})

    def inherited(self) -> frozenset[str]:
        return frozenset({"translator"})

    def parents(self) -> dict[str, str]:
        return {"translator": self.parent.digest}


class RetrieverWeights(Weights):
    """The only term."""

    triplet: float = 1.0  # eq. 8


class Retriever(Trainable):
    """Embeds pictures, and queries of a picture with the attributes that are wanted of it.

    Args:
        config: the networks, the negatives and the margin.
        domains: the domains and attributes of the data, which the parent was trained on too.

    Raises ValueError where a share of the batch (a worker's, or a part of it) is odd. Everything obeys `step.reduce`: pairs lie
    within a share.
    """

    Config = RetrieverConfig
    Weights = RetrieverWeights
    config: RetrieverConfig
    domains_needed = 1
    frozen = ("translator",)
    judged_by = "recollect.evaluation.retrieval:RetrievalJudge"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, on gmm_unit:tiny
            "data": {"size": 64},
            "model": {"embedding": {"widths": (64, 48, 32), "hidden": 256, "dim": 64}},
            "optimisers": {"default": {"lr": 1e-3, "betas": (0.9, 0.999), "hold": 0.5}},
            "engine": {"steps": 600, "batch_size": 8},
        },
        "paper": {  # appendix A.2; 20,000 steps is the checkpoint that the released pipeline goes on with
            "data": {"size": 128},
            "optimisers": {"default": {"kind": "sgd", "lr": 0.01, "momentum": 0.9, "halve_every": 10_000}},
            "engine": {"steps": 20_000, "batch_size": 32},
        },
    }

    def __init__(self, config: RetrieverConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        self.translator = GMMUNIT(config.translator, domains).requires_grad_(False)
        channels = config.translator.width * 2**config.translator.downs
        self.embedding = Embedding(config.embedding, channels, self.translator.mixture.size)
        initialise(self.embedding, config.init_std)

    @property
    def stride(self) -> int:
        return self.translator.stride

    def begin(self) -> None:
        opened = open_parent(self.config.parent, "gmm_unit", self.config.name)
        self.translator.load_state_dict(opened.state("best"))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("rank", (Part(("embedding",), self.terms),)),)

    def terms(self, step: Step) -> Terms:
        """Eq. 8 over the chosen kinds of negatives."""
        if not step.wants("triplet"):
            return {}
        model, noise = self.translator, self._noise(step)
        task, kinds = self._task(step), self._kinds()
        with torch.no_grad():
            content, style = model.content(task.images), model.mixture.sample(task.wanted, task.noise[0])
            positive = self._encoded(model.decode(content, style, task.images).images)
            others = {kind: self._negative(kind, step, task, content, style) for kind in kinds}
        anchor = self.embedding(content, style, noise("anchor"))
        near = self.embedding(*positive, noise("positive"))
        losses = {
            kind: F.triplet_margin_loss(anchor, near, self.embedding(*pair, noise(kind)), self.config.margin)
            for kind, pair in others.items()
        }
        shares = {kind: 0.5 if kind in RELEASED_EASY else 1.0 for kind in losses}
        total = torch.stack([share * losses[kind] for kind, share in shares.items()]).sum()
        return {"triplet": total / sum(shares.values())}  # eq. 8

    def _kinds(self) -> tuple[str, ...]:
        """The kinds of negatives; the easy ones of the released code are two."""
        kinds = KINDS[: CUMULATIVE[self.config.negatives]]
        return kinds if self.config.easy == "printed" else (*RELEASED_EASY, *kinds[1:])

    def _negative(self, kind: str, step: Step, task: Task, content: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Content (B, C, h, w) and style (B, Z) of the negatives of a kind."""
        model, other = self.translator, torch.arange(len(content), device=content.device) ^ 1  # the pair's other picture
        if kind == "easy":
            return content[other], model.style(task.images)[other]
        if kind == "easy_wanted":
            return content[other], style
        if kind == "easy_any":
            return content[other], model.mixture.sample(self._moved_labels(step, "easy", task), task.noise[1])
        if kind == "medium":
            return self._encoded(model.decode(content[other], style, task.images[other]).images)
        attributes = task.own if kind == "own" else self._moved_labels(step, "wrong", task)
        drawn = model.mixture.sample(attributes, task.noise[1])
        return self._encoded(model.decode(content, drawn, task.images).images)

    def _task(self, step: Step) -> Task:
        """The translator's task, with targets of this method."""
        for batch in step.batches:
            if len(batch) % 2:
                raise ValueError(
                    f"the retriever takes its negatives from pairs of pictures, and a share of its batch has {len(batch)}; make "
                    "engine.batch_size a multiple of twice the number of workers, times engine.accumulate"
                )
        task = self.translator.task(step)
        if self.config.targets == "flip":
            return task
        wanted = self._labels(step, "target", task.here[0])
        return replace(task, wanted=onto(wanted, task.own.device, task.own.dtype), here=(task.here[0], wanted))

    def _moved_labels(self, step: Step, name: str, task: Task) -> Tensor:
        """Attributes (B, S) at random other than those that are wanted."""
        return onto(self._labels(step, name, task.here[1]), task.own.device, task.own.dtype)

    def _labels(self, step: Step, name: str, but: Tensor) -> Tensor:
        """Attributes (B, S) at random, by slot, other than these; on the host."""
        slots = [(index, slot) for index, batch in enumerate(step.batches) for slot in batch.slots]
        rows = [
            drawn_other(row, self.translator.groups, step.draws.generator(f"{name}/{index}", slot))
            for (index, slot), row in zip(slots, but.int().tolist(), strict=True)
        ]
        return but.new_tensor(rows)

    def _noise(self, step: Step) -> Any:
        """By name, what drops units: (B, hidden)."""

        def draw(name: str) -> Tensor:
            parts = [
                step.draws.normal(f"dropout/{name}/{index}", batch.slots, (self.embedding.hidden,), batch.images)
                for index, batch in enumerate(step.batches)
            ]
            return torch.cat(parts)

        return draw

    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.translator.content(images), self.translator.style(images)

    def embed(self, images: Tensor) -> Tensor:
        """The vectors (B, E) by which pictures (B, 3, H, W) are found: of their contents and styles."""
        vectors: Tensor = self.embedding(*self._encoded(images))
        return vectors

    def query(self, images: Tensor, attributes: Tensor) -> Tensor:
        """The vectors (B, E) near which pictures lie that are like these in content, with attributes (B, S)."""
        style = self.translator.mixture.means(attributes.to(images))
        vectors: Tensor = self.embedding(self.translator.content(images), style)
        return vectors

    def embedding_digest(self) -> str:
        """SHA-256 of E_c, E_s and R."""
        return weights_digest(self.translator.content_encoder, self.translator.style_encoder, self.embedding)

    def style_attributes(self) -> tuple[str, ...]:
        """The attributes that a query can ask for."""
        return self.translator.style_attributes()

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        """Groups of which a picture has at most one."""
        return self.translator.exclusive_attributes()
