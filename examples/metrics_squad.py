"""SQuAD's exact match and F1: answers compared as bags of words, without case, punctuation and articles.

The measure is that of Rajpurkar et al. 2016 and 2018; an empty answer stands for "no answer".
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The answer in lower case, without punctuation and articles, its words one space apart.

    Example:
        >>> normalised("The  U.S. Senate, an")
        'us senate'
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, wanted: str) -> float:
    """1 if both are the same after `normalised`, else 0."""
    return float(normalised(answer) == normalised(wanted))


def f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words; with an empty side, 1 only if both are empty."""
    given, right = normalised(answer).split(), normalised(wanted).split()
    if not given or not right:
        return float(given == right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


def scores(answers: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Mean exact match and F1 in per cent, each question by its best reference.

    Args:
        answers: question id -> text, empty for no answer.
        wanted: question id -> reference texts, none for a question without an answer.

    Returns:
        `exact_match` and `f1`; where some questions have no answer, also each over the questions
        that have one (`has_answer_...`) and over the others (`no_answer_...`).
    """
    measures = {"exact_match": exact_match, "f1": f1}
    # A reference of articles or punctuation only would match "no answer": it does not count.
    kept = {key: [text for text in texts if normalised(text)] for key, texts in wanted.items()}
    each = {
        name: {key: max(measure(answers[key], text) for text in texts or [""]) for key, texts in kept.items()}
        for name, measure in measures.items()
    }
    parts = {"": list(kept)}
    if not all(kept.values()):
        parts |= {"has_answer_": [key for key in kept if kept[key]], "no_answer_": [k for k in kept if not kept[k]]}
    return {
        prefix + name: 100 * sum(each[name][key] for key in keys) / len(keys)
        for prefix, keys in parts.items()
        if keys
        for name in measures
    }
