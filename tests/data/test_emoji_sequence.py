import pytest

from rematch_ray.data.emoji_sequence import Composition, decompose, emoji_name, plain_name


@pytest.mark.parametrize(
    ("emoji", "expected"),
    [
        ("🦦", Composition("1f9a6", "", "")),
        ("❤️", Composition("2764", "", "")),
        ("👋🏿", Composition("1f44b", "", "dark")),
        ("🧑‍🚀", Composition("1f9d1-200d-1f680", "", "")),
        ("👨🏻‍🚀", Composition("1f9d1-200d-1f680", "man", "light")),
        ("🤷🏽‍♀️", Composition("1f937", "woman", "medium")),
        ("🕵️‍♂️", Composition("1f575", "man", "")),
        ("🚶🏾‍♀️‍➡️", Composition("1f6b6", "woman", "medium-dark", faces_right=True)),
        ("👩‍👧‍👦", Composition("1f46a", "woman girl boy", "")),
        ("🇳🇴", Composition("1f1f3-1f1f4", "", "")),
    ],
)
def test_an_emoji_is_taken_apart(emoji, expected):
    assert decompose(emoji) == expected


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("👫", "👩🏻‍🤝‍👨🏿"),
        ("👬🏽", "👨🏻‍🤝‍👨🏿"),
        ("💏", "🧑🏻‍❤️‍💋‍🧑🏿"),
        ("👩‍❤️‍👨", "👩🏻‍❤️‍👨🏿"),
        ("🤝🏽", "🫱🏻‍🫲🏿"),
    ],
)
def test_couples_in_either_spelling_are_one_family(short, long):
    assert decompose(short).family == decompose(long).family
    assert decompose(long).tone == "light+dark"


def test_a_family_differs_in_tone_alone_and_a_base_in_gender_too():
    woman, man = decompose("👩🏽‍🚀"), decompose("👨🏽‍🚀")
    assert woman.base == man.base
    assert woman.family != man.family
    assert woman.family == decompose("👩‍🚀").family
    assert decompose("🚶‍♀️").family != decompose("🚶‍♀️‍➡️").family


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (":woman_astronaut_medium-light_skin_tone:", "woman astronaut medium-light skin tone"),
        (":ON!_arrow:", "on arrow"),
        (":Côte_d’Ivoire:", "côte divoire"),
        (":A_button_(blood_type):", "a button blood type"),
        (":keycap_*:", "keycap asterisk"),
        (":Trinidad_&_Tobago:", "trinidad and tobago"),
        (":yo-yo:", "yo-yo"),
        ("- dash -", "dash"),
    ],
)
def test_names_become_plain_words(name, plain):
    assert plain_name(name) == plain


def test_flags_say_that_they_are_flags():
    assert emoji_name("🇳🇴", ":Norway:") == "flag norway"
    assert emoji_name("🏴󠁧󠁢󠁷󠁬󠁳󠁿", ":Wales:") == "flag wales"
    assert emoji_name("🏴‍☠️", ":pirate_flag:") == "pirate flag"
