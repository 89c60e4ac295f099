"""The only place where a term meets its weight.

One name per lambda, everywhere: `con_k` is the key of the term, the field of the method's `Weights`, the curve `loss/con_k`,
the search name `weights.con_k` and the row in the card.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recollect.config import Weights, did_you_mean

Terms = dict[str, Tensor]


def active(weights: Weights) -> frozenset[str]:
    """The names of the terms that are to be computed: those with a weight above zero."""
    return frozenset(name for name, value in weights if value > 0)


def weigh(terms: Mapping[str, Tensor], weights: Weights) -> Tensor:
    """The weighted sum of unweighted terms, a scalar with gradient.

    Raises ValueError for a term without a weight of its name, and for a phase that computed nothing at all.

    >>> import torch
    >>> class Two(Weights):
    ...     cyc: float = 10.0
    ...     adv: float = 1.0
    >>> weigh({"cyc": torch.tensor(0.5), "adv": torch.tensor(2.0)}, Two())
    tensor(7.)
    """
    known = dict(weights)
    unknown = [name for name in terms if name not in known]
    if unknown:
        raise ValueError(f"no weight is named {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    weighted = [known[name] * term for name, term in terms.items() if known[name] > 0]
    if not weighted:
        raise ValueError("a phase returned no term with a weight above zero; give one, or leave the phase out")
    total: Tensor = weighted[0]
    for term in weighted[1:]:
        total = total + term
    return total
