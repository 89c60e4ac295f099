"""The exact index: every vector is compared, by matrix products in chunks. The reference for all others; runs on a GPU too."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from recollect.retrieval.index import Vectors
from recollect.retrieval.local import Candidates, LocalIndex, Searcher, reranked

FILE = "vectors.safetensors"
CHUNK = 65_536  # rows compared at a time: with 64 queries their distances take 16 MB
SPARE = 8  # candidates beyond those asked for: what rounding may have put in the wrong order


class ExactSearcher:
    """Vectors (N, E), compared one and all.

    Products are of vectors relative to the mean of the set, which changes no distance and spares digits where the whole set is
    far from zero; that copy is made at the first search and lives on `device`.
    """

    def __init__(self, vectors: Vectors, device: str = "cpu", chunk: int = CHUNK) -> None:
        self._vectors, self.device, self.chunk = vectors, device, chunk
        self._lock = threading.Lock()
        self._centred: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    def vectors(self) -> Vectors:
        return self._vectors

    def settings(self) -> dict[str, Any]:
        return {"device": self.device, "chunk": self.chunk}

    def _prepared(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean (E,), the vectors relative to it (N, E), and their squared lengths (N,)."""
        with self._lock:
            if self._centred is None:
                mean = self._vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
                centred = torch.from_numpy(self._vectors - mean).to(self.device)
                self._centred = torch.from_numpy(mean).to(self.device), centred, centred.square().sum(dim=1)
            return self._centred

    @torch.inference_mode()
    def nearest(self, queries: Vectors, w: int, allowed: NDArray[np.bool_] | None) -> Candidates:
        mean, vectors, lengths = self._prepared()
        q = torch.tensor(queries, device=self.device) - mean
        kept = None if allowed is None else torch.from_numpy(allowed).to(self.device)
        best = q.new_full((len(q), 0), torch.inf)
        where = torch.zeros((len(q), 0), dtype=torch.int64, device=q.device)
        for start in range(0, len(vectors), self.chunk):
            rows = slice(start, start + self.chunk)
            scores = torch.addmm(lengths[rows], q, vectors[rows].T, alpha=-2)  # |x - q|^2 - |q|^2
            if kept is not None:
                scores.masked_fill_(~kept[rows], torch.inf)
            near = scores.topk(min(w + SPARE, scores.shape[1]), dim=1, largest=False)
            best = torch.cat([best, near.values], dim=1)
            where = torch.cat([where, near.indices + start], dim=1)
            near = best.topk(min(w + SPARE, best.shape[1]), dim=1, largest=False)
            best, where = near.values, where.gather(1, near.indices)
        positions = where.masked_fill(best == torch.inf, -1).cpu().numpy()
        return reranked(queries, self._vectors[positions], positions, w)


class ExactIndex(LocalIndex):
    """All vectors, compared one by one. Settings: `device`, `chunk` (rows compared at a time)."""

    back_end = "exact"

    @classmethod
    def searcher(cls, vectors: Vectors, **options: Any) -> Searcher:
        return ExactSearcher(vectors, **options)

    small_searcher = searcher

    @classmethod
    def save_searcher(cls, searcher: Searcher, directory: Path) -> None:
        save_file({"vectors": np.ascontiguousarray(searcher.vectors())}, directory / FILE)

    @classmethod
    def open_searcher(cls, directory: Path, mmap: bool, settings: Mapping[str, Any]) -> Searcher:
        with safe_open(directory / FILE, framework="pt") as file:  # torch's tensors stay in the mapped file, numpy's are copied
            vectors = file.get_tensor("vectors")
        device = settings["device"] if torch.cuda.is_available() else "cpu"  # an index may move to a machine without the GPU
        return ExactSearcher(vectors.numpy() if mmap else vectors.clone().numpy(), device, settings["chunk"])
