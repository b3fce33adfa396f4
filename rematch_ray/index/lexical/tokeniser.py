"""Text -> terms of the lexical index: case, accents, words, and scripts without spaces.

What Unicode calls a script, a letter or a mark is the `regex` library's to know, how words are
shortened to stems is Snowball's (PyStemmer, extra `lexical`); chosen here is only what of it makes
a term. The same text gives the same terms everywhere. Knows nothing of documents or scores.
Middle floor.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import regex

from rematch_ray.errors import UserError, did_you_mean

# another number whenever the same text would give other terms: indexes name what made theirs
VERSION = "words-1"
LONGEST_TERM = 64

# scripts that are written without spaces, or (Hangul) with particles joined to the noun
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Bopomofo}\p{Hangul}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
)
_UNSPACED_RUN = rf"[[\p{{L}}\p{{N}}\p{{M}}]&&[{_UNSPACED}]]+"
_UNSPACED_WORD = regex.compile(_UNSPACED_RUN, regex.VERSION1)
_WORD = regex.compile(
    _UNSPACED_RUN
    + r"|[\p{Extended_Pictographic}&&[\u2000-\U0010ffff]]"
    + rf"|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]*",
    regex.VERSION1,
)
# what follows below gives the same for texts without such scripts and emoji, several times faster
_BEYOND = re.compile("[\u0e00-\U0010ffff]")
_SPACED_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
_ASCII_WORD = re.compile("[a-z0-9]+")
# a mark on these is an accent; elsewhere (Devanagari, Arabic) it may be a vowel
_ACCENTED = regex.compile(r"[\p{Latin}\p{Greek}\p{Cyrillic}]")
_UNDECOMPOSED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})


class Tokeniser:
    """Cuts text into terms; for one thread at a time when it stems.

    Letters are folded by NFKC and case, accents of Latin, Greek and Cyrillic letters are dropped. A
    word is a run of letters, digits and marks; an emoji is a word of its own. A run of a script
    without spaces gives all its characters and all pairs of neighbours; in a query only the pairs,
    unless it is a single character.

    Args:
        stemmer: Snowball language whose endings are cut off (`english`, `german`), or None.

    Raises:
        UserError: PyStemmer is not installed, or knows no such language.

    >>> Tokeniser().terms("Füße, CAFÉ! 3 Straßen")
    ['fusse', 'cafe', '3', 'strassen']
    >>> Tokeniser().terms("東京へ"), Tokeniser().terms("東京へ", is_query=True)
    (['東', '京', 'へ', '東京', '京へ'], ['東京', '京へ'])
    """

    def __init__(self, stemmer: str | None = None) -> None:
        self._stem = None if stemmer is None else _load_stemmer(stemmer)

    def terms(self, text: str, *, is_query: bool = False) -> list[str]:
        """The terms of a text, as often as they occur."""
        return [self.term(word) for word in self.words(text, is_query=is_query)]

    def words(self, text: str, *, is_query: bool = False) -> list[str]:
        """The words of a text before stems and accents are cut: what `term` takes."""
        if text.isascii():
            return _ASCII_WORD.findall(text.lower())
        folded = _fold_case(text)
        if not _BEYOND.search(folded):
            return _SPACED_WORD.findall(folded)
        words: list[str] = []
        for word in _WORD.findall(folded):
            if _UNSPACED_WORD.match(word):
                words += _grams(word, is_query=is_query)
            else:
                words.append(word)
        return words

    def term(self, word: str) -> str:
        """The term of a word: its stem, without accents, cut to `LONGEST_TERM` characters."""
        if self._stem is not None:
            word = self._stem(word)
        if not word.isascii() and _ACCENTED.match(word):
            marked = unicodedata.normalize("NFD", word)
            word = "".join(letter for letter in marked if not unicodedata.combining(letter))
            word = word.translate(_UNDECOMPOSED)
        return word[:LONGEST_TERM]


def tokeniser_name(stemmer: str | None) -> str:
    """What makes the terms of an index, as its manifest records it.

    >>> tokeniser_name(None)
    'words-1'
    """
    if stemmer is None:
        return VERSION
    return f"{VERSION}, snowball {_import_stemmer().version()} {stemmer}"


def _fold_case(text: str) -> str:
    # case folding can undo a composition, hence twice
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _grams(run: str, *, is_query: bool) -> Sequence[str]:
    pairs = [first + second for first, second in pairwise(run)]
    return pairs if is_query and pairs else [*run, *pairs]


def _load_stemmer(language: str) -> Callable[[str], str]:
    library = _import_stemmer()
    known = library.algorithms()
    if language not in known:
        raise UserError(f"stemmer '{language}' is not there; {did_you_mean(language, known)}")
    # without its cache, whose size says nothing of memory; whoever indexes remembers every word
    stem: Callable[[str], str] = library.Stemmer(language, 0).stemWord
    return stem


def _import_stemmer() -> Any:
    try:
        import Stemmer
    except ImportError as missing:
        raise UserError(
            "stemming needs PyStemmer, which is not installed: pip install 'rematch-ray[lexical]', "
            "or build the index without a stemmer"
        ) from missing
    return Stemmer
