"""From start and end logits of windows to one answer for each question."""

from dataclasses import dataclass

import numpy
from data_squad import Windows
from numpy import ndarray


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question.

    Attributes:
        text: the best span, whether or not there should be an answer.
        null_odds: score of "no answer" less the score of the best span.
    """

    text: str
    null_odds: float


def answers(windows: Windows, start: ndarray, end: ndarray, best: int, longest: int) -> dict[str, Answer]:
    """Question id -> answer.

    A span's score is its start logit plus its end logit; the best span of all windows of a question is
    taken. The question's null score is the lowest of its windows, because a context answers a question
    if one window does.

    Args:
        start, end: logits (windows, tokens).
        best: starts and ends with the highest logits that are combined in each window.
        longest: tokens of an answer at most.
    """
    texts, tops, nulls = {}, {}, {}
    spans, null_tokens = windows.spans.numpy(), windows.nulls.numpy()
    for i, owner in enumerate(windows.owner):
        null = float(start[i, null_tokens[i]]) + float(end[i, null_tokens[i]])
        nulls[owner] = min(null, nulls.get(owner, null))
        score, first, last = best_span(start[i], end[i], spans[i], best, longest)
        if score > tops.get(owner, -numpy.inf):
            tops[owner] = score
            question = windows.questions[owner]
            texts[owner] = question.context[spans[i, first, 0] : spans[i, last, 1]].strip()
    return {
        question.id: Answer(texts.get(owner, ""), nulls[owner] - tops.get(owner, -numpy.inf))
        for owner, question in enumerate(windows.questions)
    }


def best_span(start: ndarray, end: ndarray, spans: ndarray, best: int, longest: int) -> tuple[float, int, int]:
    """Score, first and last token of the best span in one window; the score is -inf if there is none.

    Args:
        start, end: logits (tokens).
        spans: (tokens, 2) characters in the context, -1 for other tokens, which no answer holds.
    """
    context = numpy.nonzero(spans[:, 1] > spans[:, 0])[0]
    if not len(context):
        return -numpy.inf, 0, 0
    starts = context[numpy.argsort(-start[context], kind="stable")[:best]]
    ends = context[numpy.argsort(-end[context], kind="stable")[:best]]
    length = ends[None, :] - starts[:, None] + 1
    scores = numpy.where(
        (length >= 1) & (length <= longest),
        start[starts].astype(numpy.float64)[:, None] + end[ends][None, :],
        -numpy.inf,
    )
    row, column = numpy.unravel_index(int(numpy.argmax(scores)), scores.shape)
    return float(scores[row, column]), int(starts[row]), int(ends[column])
