"""What an emoji's code points say: its base, gender and skin tone, and its name in plain words.

Unicode composes people from parts: a skin-tone modifier after a person, a male or female sign or
person behind a joiner. Taking these off leaves the base that all compositions share. This module
knows no font, file or split. Middle floor, standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

JOINER = 0x200D
VARIATION = 0xFE0F
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}
GENDER_SIGNS = {0x2640: "woman", 0x2642: "man"}
RIGHT_ARROW = 0x27A1  # behind a joiner: the same person facing right

# a gendered person -> the neutral one it is a composition of
_NEUTRAL = {
    0x1F468: ("man", (0x1F9D1,)),
    0x1F469: ("woman", (0x1F9D1,)),
    0x1F466: ("boy", (0x1F9D2,)),
    0x1F467: ("girl", (0x1F9D2,)),
    0x1F474: ("man", (0x1F9D3,)),
    0x1F475: ("woman", (0x1F9D3,)),
    0x1F934: ("man", (0x1FAC5,)),
    0x1F478: ("woman", (0x1FAC5,)),
    0x1F385: ("man", (0x1F9D1, JOINER, 0x1F384)),
    0x1F936: ("woman", (0x1F9D1, JOINER, 0x1F384)),
    0x1F57A: ("man", (0x1F483,)),
    0x1F46B: ("woman man", (0x1F9D1, JOINER, 0x1F91D, JOINER, 0x1F9D1)),
    0x1F46C: ("man man", (0x1F9D1, JOINER, 0x1F91D, JOINER, 0x1F9D1)),
    0x1F46D: ("woman woman", (0x1F9D1, JOINER, 0x1F91D, JOINER, 0x1F9D1)),
}
# two spellings of one base: the long one appears only with two skin tones
_SAME_BASE = {
    (0x1F9D1, JOINER, 0x2764, JOINER, 0x1F48B, JOINER, 0x1F9D1): (0x1F48F,),
    (0x1F9D1, JOINER, 0x2764, JOINER, 0x1F9D1): (0x1F491,),
    (0x1FAF1, JOINER, 0x1FAF2): (0x1F91D,),
}
_FAMILY = (0x1F46A,)
_FAMILY_MEMBERS = {0x1F9D1, 0x1F9D2}

_KEYCAP_NAMES = {"#": "number sign", "*": "asterisk"}


@dataclass(frozen=True)
class Composition:
    """An emoji taken apart.

    Attributes:
        base: code points in hex without tone, gender, direction and variation selectors.
        gender: `woman`, `man`, `woman man`, ..., or empty.
        tone: `light`, ..., `dark`, two of them joined by `+`, or empty.
        faces_right: the mirrored drawing of a person.
    """

    base: str
    gender: str
    tone: str
    faces_right: bool = False

    @property
    def family(self) -> str:
        """Key of the emoji that differ in tone alone."""
        gender = self.gender.replace(" ", "+")
        return ":".join(filter(None, [self.base, gender, "right" if self.faces_right else ""]))


def hex_sequence(emoji: str) -> str:
    """Code points in hex joined by `-`, without variation selectors.

    >>> hex_sequence("❤️")
    '2764'
    """
    return "-".join(f"{ord(char):x}" for char in emoji if ord(char) != VARIATION)


def decompose(emoji: str) -> Composition:
    """Take an emoji apart into base, gender and skin tone.

    >>> decompose("👩🏽‍🚀")
    Composition(base='1f9d1-200d-1f680', gender='woman', tone='medium', faces_right=False)
    >>> decompose("👩🏻‍🤝‍👨🏿").family == decompose("👫").family
    True
    """
    points = [ord(char) for char in emoji if ord(char) != VARIATION]
    tones = [TONES[point] for point in points if point in TONES]
    faces_right = points[-2:] == [JOINER, RIGHT_ARROW]
    if faces_right:
        del points[-2:]
    genders: list[str] = []
    neutral: list[int] = []
    for point in points:
        if point in TONES:
            continue
        if point in GENDER_SIGNS and neutral[-1:] == [JOINER]:
            genders.append(GENDER_SIGNS[point])
            neutral.pop()  # the joiner that held the sign
        elif point in _NEUTRAL:
            gender, person = _NEUTRAL[point]
            genders.append(gender)
            neutral.extend(person)
        else:
            neutral.append(point)
    base = _SAME_BASE.get(tuple(neutral), tuple(neutral))
    if len(base) > 1 and set(base) <= _FAMILY_MEMBERS | {JOINER}:
        base = _FAMILY
    return Composition(
        base="-".join(f"{point:x}" for point in base),
        gender=" ".join(genders),
        tone="+".join(tones),
        faces_right=faces_right,
    )


def plain_name(name: str) -> str:
    """A name as lower-case words: no underscores, no punctuation but hyphens inside words.

    >>> plain_name(":woman_astronaut_medium-light_skin_tone:")
    'woman astronaut medium-light skin tone'
    >>> plain_name("Japanese “free of charge” button")
    'japanese free of charge button'
    >>> plain_name("keycap: #")
    'keycap number sign'
    """
    words = name.lower().replace("_", " ").replace("&", " and ")
    if "keycap" in words:
        words = re.sub(r"[#*]", lambda found: _KEYCAP_NAMES[found.group()], words)
    words = re.sub(r"['’ʼ.!]", "", words)
    words = re.sub(r"[^\w\s-]", " ", words)
    words = re.sub(r"(?<!\w)-|-(?!\w)", " ", words)
    return " ".join(words.split())


def emoji_name(emoji: str, name: str) -> str:
    """The official name in plain words; flags say that they are flags.

    >>> emoji_name("🇳🇴", ":Norway:")
    'flag norway'
    """
    plain = plain_name(name)
    first = ord(emoji[0])
    is_region = 0x1F1E6 <= first <= 0x1F1FF or any(
        0xE0020 <= ord(char) <= 0xE007F for char in emoji
    )
    return f"flag {plain}" if is_region and not plain.startswith("flag") else plain
