"""RG-UNIT: retrieval-guided multi-domain translation (Gomez, Liu, De Nadai, Karatzas, Lepri, Sebe; ACM MM 2020): stage 3.

Figure 1 in words: stage 1 (`gmm_unit.py`) learned to take pictures apart into content and style, stage 2 (`retriever.py`) to find
pictures alike in content to x that have the style z already. Here the decoder learns to draw with what was found: the
contents of the r nearest pictures are fused into one map, that one with the picture's own content, and G draws from it.

    r_1..r_n = the nearest to R(E_c(x), z)      c~ = f(E_c(x) + f(E_c(r_1) + ... + E_c(r_n)))      x^ = G(c~, z)      # eq. 9

(+ joins channels, f is a 3x3 convolution with ReLU.) Everything else is stage 1's, with c~ in place of the content in eqs. 2-7.
Encoders and R stay as they were: the index was made with them.

Legend: B pictures, n neighbours, C channels, h x w cells of the content, Z style dimensions.

Decisions, and where this departs from the paper or its released code:
- Neighbours are sorted by distance: the fusion joins them in order. They come by `queries`, top-n for the whole batch at once.
- A picture never finds itself, by its id. In the released code it does, which makes reconstruction a copy.
- Both fusing convolutions are trained. In the released code the inner one is detached, so its random weights never change.
- `fusion = "residual"` (preset `tiny`) adds the fused map to the picture's own content, from zero on, so that training starts at
  what stage 1 ended with; `"paper"` draws from the fused map alone, and has to learn to draw again.
- `Guide.strength` goes from the picture's own content (0) to the fused one (1). It is offered by the residual fusion only: there
  both are maps that the decoder has learned to draw from; the paper's decoder never saw a content that is not fused.
- `guidance` has the controls: `random` pictures in place of neighbours, drawn by step and slot, and `none`, which trains the
  decoder for as long with frozen encoders and no fusion.
- The perceptron of the decoder is trained, as in the paper (frozen in the released code of 2020). The critic goes on training.
- The divergence has no weight: its encoder is frozen.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.batch import Domains, Guide
from recollect.bundle import must_agree, open_parent
from recollect.config import Choice, Parent
from recollect.trainable import Part, Phase, Queries, Step, weights_digest
from trainables.gmm_unit import GMMUNIT, GMMUNITConfig, GMMUNITWeights
from trainables.parts.blocks import initialise
from trainables.parts.embedding import Embedding, EmbeddingConfig
from trainables.retriever import RetrieverConfig

INHERITED = set(GMMUNITConfig.model_fields) - {"name", "vgg16", "gan"}  # what stage 3 takes over, whatever it is given


class RGUNITConfig(GMMUNITConfig):
    """Stage 1's networks and R, as the parent has them; the fusion; and what guides."""

    name: Literal["rg_unit"] = "rg_unit"  # type: ignore[assignment]
    parent: Parent = Parent()  # the retriever's bundle, which holds stage 1 too
    embedding: EmbeddingConfig = EmbeddingConfig()
    guidance: Literal["none", "random", "retrieved"] = "retrieved"
    neighbours: Annotated[int, Field(ge=1), Choice((1, 3, 5, 10), shape=True)] = 3  # n; r in Table 4
    fusion: Literal["paper", "residual"] = "paper"

    def with_parents(self) -> Self:
        if self.parent.digest:
            return self
        opened = open_parent(self.parent, "retriever", self.name)
        retriever = opened.run.model
        assert isinstance(retriever, RetrieverConfig)
        stage1 = {name: getattr(retriever.translator, name) for name in INHERITED}
        must_agree(self, retriever.translator, INHERITED, self.parent.bundle)
        must_agree(self, retriever, ("embedding",), self.parent.bundle)
        parent = Parent(bundle=self.parent.bundle, digest=opened.digest)
        return self.model_copy(update={**stage1, "parent": parent, "embedding": retriever.embedding})

    def inherited(self) -> frozenset[str]:
        return frozenset({*INHERITED, "embedding"})

    def parents(self) -> dict[str, str]:
        return {"retriever": self.parent.digest}


class RGUNITWeights(GMMUNITWeights):
    """Stage 1's. The divergence moves nothing here, its encoder being frozen: it has no weight, and no range to search."""

    kl: float = 0.0


class Fusion(nn.Module):
    """f of eq. 9: the contents of neighbours into one, and that with the picture's own."""

    def __init__(self, channels: int, neighbours: int, residual: bool, init_std: float | None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(neighbours * channels, channels, 3, 1, 1), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, 1, 1), *([] if residual else [nn.ReLU()]))
        self.residual = residual
        initialise(self, init_std)
        if residual:
            nn.init.zeros_(self.outer[0].weight)  # type: ignore[arg-type]

    def forward(self, content: Tensor, found: Tensor) -> Tensor:
        """Content (B, C, h, w) and that of its neighbours (B, n * C, h, w)."""
        fused: Tensor = self.outer(torch.cat([content, self.inner(found)], dim=1))  # eq. 9
        return content + fused if self.residual else fused


class RGUNIT(GMMUNIT):
    """GMM-UNIT guided by what a retriever finds.

    Args:
        config: as the parent has it, and the fusion.
        domains: the domains and attributes of the data, which the parents were trained on too.

    Raises ValueError where `Guide.neighbours` are not as many as it was trained with. Everything obeys `step.reduce`.
    """

    Config = RGUNITConfig
    Weights = RGUNITWeights
    config: RGUNITConfig
    frozen = ("content_encoder", "style_encoder", "embedding")
    guides = (*GMMUNIT.guides, "neighbours")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, on retriever:tiny
            "data": {"size": 64},
            "model": {"fusion": "residual"},
            "optimisers": {"default": {"lr": 5e-4, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 4, "ema": 0.99},
        },
        "paper": {  # appendix A.3: as stage 1
            "data": {"size": 128},
            "optimisers": {"default": {"lr": 1e-4, "halve_every": 200_000}},
            "engine": {"steps": 1_000_000, "batch_size": 1},
        },
    }

    def __init__(self, config: RGUNITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        channels = config.width * 2**config.downs
        self.embedding = Embedding(config.embedding, channels, self.mixture.size)
        self.fusion: Fusion | None = None
        if config.guidance != "none":
            self.fusion = Fusion(channels, config.neighbours, config.fusion == "residual", config.init_std)
            if config.fusion == "residual":
                self.guides = (*self.guides, "strength")  # type: ignore[misc]
        else:
            self.guides = GMMUNIT.guides  # type: ignore[misc]  # neighbours would do nothing
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)

    def begin(self) -> None:
        state = open_parent(self.config.parent, "retriever", self.config.name).state("best")
        own = {name.removeprefix("translator."): tensor for name, tensor in state.items()}
        missing, strange = self.load_state_dict(own, strict=False)
        assert not strange and all(name.startswith("fusion.") for name in missing), (missing, strange)

    def phases(self) -> tuple[Phase, ...]:
        trained = ("decoder",) if self.fusion is None else ("decoder", "fusion")
        return (
            Phase("translate", (Part(trained, self.translation_terms),)),
            Phase("criticise", (Part(("critic",), self.critic_terms),)),
        )

    def guidance(self, neighbours: Tensor | None) -> Tensor | None:
        """The contents (B, n * C, h, w) of neighbours (B, n, 3, H, W), in their order."""
        if self.fusion is None:
            return None
        wanted = self.config.neighbours
        if neighbours is None or neighbours.shape[1] != wanted:
            found = "none" if neighbours is None else str(neighbours.shape[1])
            raise ValueError(f"this {self.config.name} draws with {wanted} neighbours, and there are {found}")
        with torch.no_grad():
            contents = self.content(neighbours.flatten(0, 1))  # (B * n, C, h, w)
        return contents.reshape(neighbours.shape[0], -1, *contents.shape[-2:])

    def fused(self, content: Tensor, guidance: Tensor | None, strength: Tensor | None = None) -> Tensor:
        """c~ of eq. 9; with a strength (B,) so far from the content towards it."""
        if self.fusion is None:
            return content
        assert guidance is not None
        if guidance.shape[-2:] != content.shape[-2:]:  # the picture is not of the library's size
            guidance = F.interpolate(guidance, content.shape[-2:], mode="bilinear")
        fused: Tensor = self.fusion(content, guidance)
        return fused if strength is None else content.lerp(fused, strength[:, None, None, None])

    def queries(self, step: Step) -> Queries | None:
        """A query a picture: its content in the style that it will be drawn in; or a draw of pictures."""
        if self.fusion is None:
            return None
        ids = tuple(id for batch in step.batches for id in batch.ids)
        if self.config.guidance == "random":
            generators = [
                step.draws.generator(f"neighbours/{i}", slot) for i, batch in enumerate(step.batches) for slot in batch.slots
            ]
            return Queries(self.config.neighbours, ids, seeds=tuple(generator.initial_seed() for generator in generators))
        task = self.task(step)
        own = self.style(task.images) if task.keeps else task.noise[0]  # which nothing takes then
        style = self.target_style(task, own)
        return Queries(self.config.neighbours, ids, self.embedding(self.content(task.images), style))

    def look_up(self, images: Tensor, source: int, target: int, guide: Guide) -> Queries | None:
        """As in training; the random control draws by the picture itself, so that an answer does not depend on its batch."""
        if self.fusion is None:
            return None
        nobody = ("",) * len(images)
        if self.config.guidance == "random":
            return Queries(self.config.neighbours, nobody, seeds=tuple(_seed(image) for image in images))
        vectors = self.embedding(self.content(images), self.guided_style(images, source, target, guide))
        return Queries(self.config.neighbours, nobody, vectors)

    def embed(self, images: Tensor) -> Tensor:
        """The vectors (B, E) by which pictures (B, 3, H, W) are found, as the parent's."""
        vectors: Tensor = self.embedding(self.content(images), self.style(images))
        return vectors

    def query(self, images: Tensor, attributes: Tensor) -> Tensor:
        """The vectors (B, E) near which pictures lie that are like these in content, with attributes (B, S)."""
        vectors: Tensor = self.embedding(self.content(images), self.mixture.means(attributes.to(images)))
        return vectors

    def embedding_digest(self) -> str:
        """SHA-256 of E_c, E_s and R: the parent's, so that its index serves."""
        return weights_digest(self.content_encoder, self.style_encoder, self.embedding)


def _seed(image: Tensor) -> int:
    """A seed from what a picture (3, H, W) shows, to the grey level."""
    levels = ((image.float() + 1) * 127.5).round().to(torch.uint8)
    return int.from_bytes(hashlib.blake2b(bytes(levels.flatten().tolist()), digest_size=8).digest(), "little") >> 1
