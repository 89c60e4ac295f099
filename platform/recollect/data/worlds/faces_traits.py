"""Who a face is: its attributes, how often each occurs, and which of them a combination of style attributes leaves meaningful.

A face has an own combination (hair colour, gender, age), content (traits that no combination changes) and genes (sizes, colours
and places that nobody names). At `correlation` 0 combinations are equally frequent and traits independent, except where one
excludes another by its nature (nobody is turned to both sides); at 1 they are about as imbalanced as CelebA's; in between, mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

HAIRS = ("Black_Hair", "Blond_Hair", "Brown_Hair")  # every face has exactly one
STYLE = (*HAIRS, "Male", "Young")


class Combination(NamedTuple):
    """One setting of the style attributes; `hair` indexes HAIRS."""

    hair: int
    male: bool
    young: bool

    @property
    def name(self) -> str:
        """As it stands in ids: `blond-male-young`."""
        colour = HAIRS[self.hair].removesuffix("_Hair").lower()
        return f"{colour}-{'male' if self.male else 'female'}-{'young' if self.young else 'old'}"


COMBINATIONS = tuple(Combination(hair, male, young) for hair in range(3) for male in (False, True) for young in (False, True))


class Rate(NamedTuple):
    """How often a trait occurs: at correlation 0, and at 1 among young men and women, and by how much age multiplies the odds."""

    even: float
    man: float
    woman: float
    old: float = 1.0


# CelebA's names where it has the trait. The imbalanced rates follow CelebA's, rounded; what CelebA does not name is ours.
RATES = {
    "Smiling": Rate(0.50, 0.40, 0.54),
    "Mouth_Slightly_Open": Rate(0.45, 0.41, 0.54, 0.8),
    "Eyeglasses": Rate(0.25, 0.10, 0.03, 3.0),
    "Wearing_Hat": Rate(0.08, 0.07, 0.03),  # a hat hides hair, whose colour must be seen: never frequent
    "Bangs": Rate(0.30, 0.07, 0.21, 0.5),
    "Wavy_Hair": Rate(0.40, 0.13, 0.45, 0.7),
    "Wearing_Earrings": Rate(0.30, 0.02, 0.31, 1.2),
    "Wearing_Necklace": Rate(0.30, 0.02, 0.19),
    "Wearing_Necktie": Rate(0.25, 0.17, 0.01, 1.5),
    "Oval_Face": Rate(0.40, 0.20, 0.34, 0.6),
    "Chubby": Rate(0.25, 0.08, 0.02, 2.5),
    "Big_Nose": Rate(0.30, 0.36, 0.09, 2.0),
    "Pointy_Nose": Rate(0.35, 0.20, 0.34, 0.7),
    "Big_Lips": Rate(0.30, 0.17, 0.29, 0.7),
    "Bushy_Eyebrows": Rate(0.30, 0.24, 0.07),
    "Arched_Eyebrows": Rate(0.30, 0.06, 0.42, 0.7),
    "Narrow_Eyes": Rate(0.25, 0.13, 0.10, 1.2),
    "Bags_Under_Eyes": Rate(0.30, 0.30, 0.09, 1.8),
    "Rosy_Cheeks": Rate(0.25, 0.01, 0.11, 0.5),
    "Pale_Skin": Rate(0.25, 0.03, 0.06, 0.6),
    "Blurry": Rate(0.12, 0.05, 0.05),
    "Freckles": Rate(0.20, 0.04, 0.08, 0.5),
    "Turned_Left": Rate(0.30, 0.20, 0.20),
    "Turned_Right": Rate(0.30, 0.20, 0.20),
    "Tilted": Rate(0.35, 0.20, 0.30),
    "Bright_Background": Rate(0.45, 0.35, 0.42),
    "Patterned_Background": Rate(0.35, 0.30, 0.30),
    "Dark_Clothes": Rate(0.45, 0.60, 0.35),
    "Sunglasses": Rate(0.40, 0.40, 0.40, 0.4),  # of those with glasses
    # Bound to men
    "Mustache": Rate(0.30, 0.10, 0.10, 1.6),
    "No_Beard": Rate(0.60, 0.65, 0.65),
    "Goatee": Rate(0.50, 0.45, 0.45, 0.7),  # of those with a beard
    "5_o_Clock_Shadow": Rate(0.35, 0.40, 0.40, 0.6),  # of those without
    "Sideburns": Rate(0.35, 0.14, 0.14),
    "Receding_Hairline": Rate(0.40, 0.15, 0.15, 2.5),
    # Bound to women
    "Wearing_Lipstick": Rate(0.50, 0.80, 0.80, 0.6),
    "Heavy_Makeup": Rate(0.45, 0.65, 0.65, 0.4),
}
CONTENT = tuple(RATES)
ATTRIBUTES = STYLE + CONTENT

MEN = ("Mustache", "No_Beard", "Goatee", "5_o_Clock_Shadow", "Sideburns", "Receding_Hairline")
WOMEN = ("Wearing_Lipstick", "Heavy_Makeup")
BEHIND_DARK_GLASSES = ("Narrow_Eyes", "Bags_Under_Eyes", "Heavy_Makeup")

# What varies without a name, each uniform in [0, 1).
GENES = (
    *("skin", "undertone", "head", "jaw", "chin", "eye_size", "eye_gap", "iris", "brow", "nose", "mouth", "lip_tone", "ear"),
    *("turn", "roll", "roll_side", "x", "y", "scale", "parting", "length", "volume", "fringe", "shoulders", "collar"),
    *("cloth", "cloth_tone", "stripes", "tie", "pattern", "back", "back_tone", "back_kind", "light"),
    *("hat", "hat_colour", "frame", "frame_colour", "jewel", "shadow_colour", "beard_length", "grain", "gaze", "freckles"),
)


@dataclass(frozen=True, slots=True)
class Face:
    """One person in one picture, whatever the combination: `own` is the one that comes with the face, `traits` are of CONTENT.

    A trait is decided even where it cannot show (a woman's beard), so that every counterpart is determined.
    """

    seed: int
    own: Combination
    traits: dict[str, bool]
    genes: dict[str, float]

    def attributes(self, combination: Combination) -> dict[str, int]:
        """What is true of the picture of this face in that combination, 0 or 1; names that do not apply there are missing."""
        shown = {name: int(combination.hair == index) for index, name in enumerate(HAIRS)}
        shown |= {"Male": int(combination.male), "Young": int(combination.young)}
        hidden = self.hidden(combination)
        return shown | {name: int(value) for name, value in self.traits.items() if name not in hidden}

    def hidden(self, combination: Combination) -> frozenset[str]:
        """The traits that nobody can see in that combination, or that make no sense in it."""
        names = set(WOMEN if combination.male else MEN)
        if self.traits["Sunglasses"]:
            names.update(BEHIND_DARK_GLASSES)
        if self.traits["Wearing_Hat"] or self.traits["Bangs"]:
            names.add("Receding_Hairline")
        return frozenset(names)


def check_correlation(correlation: float) -> None:
    """Raise ValueError unless it is between 0 (independent attributes) and 1 (imbalanced as CelebA's)."""
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it must be from 0 (independent) to 1 (imbalanced as CelebA)")


def draw_face(seed: int, correlation: float = 0.0) -> Face:
    """The face of this seed. `correlation` shifts thresholds only: genes, and the chance behind every trait, stay the same."""
    if seed < 0:
        raise ValueError(f"a face needs a seed >= 0, not {seed}")
    check_correlation(correlation)
    chances = np.random.default_rng(seed).random(1 + len(RATES) + len(GENES)).tolist()
    own = own_combination(chances[0], correlation)
    drawn = zip(RATES.items(), chances[1:], strict=False)
    traits = {name: chance < probability(rate, own, correlation) for (name, rate), chance in drawn}
    genes = dict(zip(GENES, chances[1 + len(RATES) :], strict=True))
    settle(traits, genes)
    return Face(seed, own, traits, genes)


def settle(traits: dict[str, bool], genes: dict[str, float]) -> None:
    """What excludes one another, in place."""
    if traits["Turned_Left"] and traits["Turned_Right"]:
        traits["Turned_Left" if genes["turn"] < 0.5 else "Turned_Right"] = False
    traits["Sunglasses"] &= traits["Eyeglasses"]
    traits["Goatee"] &= not traits["No_Beard"]
    traits["5_o_Clock_Shadow"] &= traits["No_Beard"]


def combination_rates(correlation: float) -> tuple[float, ...]:
    """The share of each of COMBINATIONS.

    >>> sum(combination_rates(0.7)).__round__(9), combination_rates(0)[0] == 1 / 12
    (1.0, True)
    """
    return tuple((1 - correlation) / 12 + correlation * celeba_share(one) for one in COMBINATIONS)


def celeba_share(one: Combination) -> float:
    """About the share of a combination among CelebA's pictures that have one of the three hair colours."""
    hairs = (0.62, 0.05, 0.33) if one.male else (0.30, 0.36, 0.34)
    young = 0.66 if one.male else 0.86
    return (0.42 if one.male else 0.58) * hairs[one.hair] * (young if one.young else 1 - young)


def own_combination(chance: float, correlation: float) -> Combination:
    """The combination at this place in [0, 1) of the cumulated shares."""
    total = 0.0
    for one, rate in zip(COMBINATIONS, combination_rates(correlation), strict=True):
        total += rate
        if chance < total:
            return one
    return COMBINATIONS[-1]  # rounding


def probability(rate: Rate, own: Combination, correlation: float) -> float:
    """Of a trait, for a face that comes with this combination."""
    biased = rate.man if own.male else rate.woman
    if not own.young:
        biased = biased * rate.old / (1 - biased + biased * rate.old)
    return (1 - correlation) * rate.even + correlation * biased
