"""Activities as poses of a jointed figure, each with the words that tell it from the others.

A direction is an angle in degrees, clockwise from straight up: 90 points to the right of the
picture, 180 down. Pictures are drawn mirrored half of the time, so that words name no side.
"""

from dataclasses import dataclass

Limb = tuple[float, float]
"""Directions of its upper and its lower half."""


@dataclass(frozen=True)
class Pose:
    """One activity.

    Attributes:
        words: What can be seen that makes it this one; what a model is taught to reason with.
        arms: Of both arms.
        legs: Of both legs.
        trunk: Direction from hips to shoulders.
        hips: Where they are, fractions of the picture.
    """

    words: str
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb] = ((173, 178), (187, 182))
    trunk: float = 0.0
    hips: tuple[float, float] = (0.5, 0.56)


POSES: dict[str, Pose] = {
    "arms_up": Pose("Both arms up.", ((30, 14), (330, 346))),
    "balance": Pose("Both arms up, one leg up.", ((30, 14), (330, 346)), ((105, 235), (181, 180))),
    "bow": Pose("The back bent.", ((176, 178), (184, 182)), trunk=88, hips=(0.36, 0.54)),
    "hands_on_hips": Pose("Both arms bent.", ((128, 238), (232, 122))),
    "handstand": Pose(
        "The head down.", ((156, 168), (204, 192)), ((12, 6), (348, 354)), 180, (0.5, 0.44)
    ),
    "jump": Pose("Both arms up, legs apart.", ((42, 36), (318, 324)), ((142, 148), (218, 212))),
    "kick": Pose("One leg out.", ((118, 112), (242, 248)), ((92, 88), (184, 180))),
    "lie": Pose("The back flat.", ((96, 98), (84, 82)), ((88, 90), (94, 92)), 270, (0.5, 0.8)),
    "lunge": Pose("One leg bent.", ((165, 172), (195, 188)), ((112, 186), (222, 228))),
    "plank": Pose(
        "The back low, arms down.", ((182, 180), (190, 186)), ((106, 106), (110, 108)), 290,
        (0.52, 0.68),
    ),
    "point": Pose("One arm out.", ((90, 90), (194, 188))),
    "sit": Pose("Both legs bent.", ((148, 100), (156, 104)), ((90, 178), (97, 182))),
    "spread_arms": Pose("Both arms out.", ((90, 90), (270, 270))),
    "squat": Pose(
        "Both legs bent apart.", ((126, 66), (234, 294)), ((112, 196), (248, 164)), 0, (0.5, 0.66)
    ),
    "stand": Pose("Both arms down.", ((163, 171), (197, 189))),
    "wave": Pose("One arm up.", ((40, 12), (196, 190))),
}  # fmt: skip
"""Poses by the name of the class, in the alphabet's order."""
