"""What of a text becomes a term, in the scripts of the world and in no language at all."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.lexical.tokeniser import LONGEST_TERM, Tokeniser, tokeniser_name

SAME = [
    ("Straße", "STRASSE"),
    ("Füße", "fusse"),
    ("Größenänderung", "GROSSENANDERUNG"),
    ("café", "CAFÉ"),
    ("cafe\u0301", "café"),
    ("naïve", "naive"),
    ("Smørrebrød", "smorrebrod"),
    ("Łódź", "lodz"),
    ("Ἀθῆναι", "αθηναι"),
    ("ΟΔΟΣ", "οδος"),
    ("ёлка", "елка"),
    ("İstanbul", "istanbul"),
    ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
    ("ｶﾀｶﾅ", "カタカナ"),
    ("ﬁne", "fine"),
    ("①", "1"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_case_accents_and_forms_of_a_letter_make_no_difference(left: str, right: str) -> None:
    assert Tokeniser().terms(left) == Tokeniser().terms(right) != []


def test_words_are_runs_of_letters_digits_and_marks() -> None:
    text = "A dog's 3.5-kg_ball,\tisn't it?\nüber-groß"
    assert " ".join(Tokeniser().terms(text)) == "a dog s 3 5 kg ball isn t it uber gross"


def test_marks_that_are_vowels_stay() -> None:
    assert Tokeniser().terms("हिन्दी की") == ["हिन्दी", "की"]
    assert Tokeniser().terms("कि") != Tokeniser().terms("का")


@pytest.mark.parametrize("text", ["東京タワー", "ひらがな", "한국어", "ภาษาไทย"])
def test_scripts_without_spaces_match_by_any_part_of_them(text: str) -> None:
    document = set(Tokeniser().terms(f"x{text}を 12"))
    for start in range(len(text)):
        for stop in range(start + 1, len(text) + 1):
            query = Tokeniser().terms(text[start:stop], is_query=True)
            assert query
            assert set(query) <= document


def test_a_query_in_such_a_script_asks_for_pairs_so_that_single_characters_do_not_drown_them() -> (
    None
):
    assert Tokeniser().terms("東京へ", is_query=True) == ["東京", "京へ"]
    assert Tokeniser().terms("猫", is_query=True) == ["猫"]
    assert Tokeniser().terms("3月と猫x", is_query=True) == ["3", "月と", "と猫", "x"]


def test_emoji_are_words() -> None:
    assert Tokeniser().terms("a🐱🐶 ok") == ["a", "🐱", "🐶", "ok"]


@pytest.mark.parametrize("text", ["", " \t\n", "\x00\x01\x1b", "!?…—", "\u0301\u200d", "\ud800"])
def test_a_text_without_words_has_no_terms(text: str) -> None:
    assert Tokeniser().terms(text) == []
    assert Tokeniser().terms(text, is_query=True) == []


def test_control_characters_part_words() -> None:
    assert Tokeniser().terms("a\x00b\x7fc\u2028d") == ["a", "b", "c", "d"]


def test_an_endless_word_is_cut() -> None:
    assert Tokeniser().terms("A" * 10_000) == ["a" * LONGEST_TERM]


@given(st.one_of(*(st.text(st.characters(max_codepoint=last)) for last in (127, 255, 0xDFF))))
def test_texts_in_alphabets_give_the_same_terms_by_their_shorter_way(text: str) -> None:
    assert Tokeniser().terms(text) == Tokeniser().terms(f"{text} 🐱")[:-1]


@given(st.text())
def test_any_text_gives_terms_that_can_be_stored_and_found(text: str) -> None:
    terms = Tokeniser().terms(text)
    assert all(term and len(term) <= LONGEST_TERM and term.encode() for term in terms)
    assert set(Tokeniser().terms(text, is_query=True)) <= set(terms)


def test_a_stemmer_joins_the_forms_of_a_word() -> None:
    pytest.importorskip("Stemmer")
    assert set(Tokeniser("english").terms("dog dogs DOG")) == {"dog"}
    assert set(Tokeniser("german").terms("Haus Häuser Hauses")) == {"haus"}
    assert Tokeniser("english").terms("東京") == Tokeniser().terms("東京")


def test_an_unknown_stemmer_is_named() -> None:
    pytest.importorskip("Stemmer")
    with pytest.raises(UserError, match="stemmer 'germann' is not there; did you mean german"):
        Tokeniser("germann")


def test_the_name_tells_what_made_the_terms() -> None:
    pytest.importorskip("Stemmer")
    assert tokeniser_name(None) == "words-1"
    assert re.fullmatch(r"words-1, snowball [\d.]+ german", tokeniser_name("german"))
