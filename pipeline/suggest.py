"""The nearest known word to one that is not known: for customers, keys of YAML files, verbs, options, versions."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 100
_LISTED = 12


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` most likely stands for, None when nothing is near.

    Case does not count. A beginning that fits only one known word (``prod``) counts as near. Equal candidates are
    settled by the alphabet, so that the same mistake always gets the same answer.
    """
    from difflib import get_close_matches

    if not word or len(word) > _LONGEST:
        return None
    folded: dict[str, str] = {}
    for candidate in sorted(set(known)):
        folded.setdefault(candidate.casefold(), candidate)
    wanted = word.casefold()
    if wanted in folded:
        return folded[wanted]
    beginning = [candidate for candidate in folded if len(wanted) >= 3 and candidate.startswith(wanted)]
    if len(beginning) == 1:
        return folded[beginning[0]]
    # Two swapped letters in a word of four (`tset`) score exactly .75; a third of difference in short words is noise.
    close = get_close_matches(wanted, list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A tail for the sentence that refuses ``word``: `` (did you mean 'acme'?)``, or the known words when few, or ``""``.

    It begins with a blank, so that it is put straight behind the sentence.
    """
    words = sorted(set(known))
    best = nearest(word, words)
    if best is not None:
        return f" (did you mean '{best}'?)"
    if 0 < len(words) <= _LISTED:
        return f" (known: {', '.join(words)})"
    return ""
