"""What the fine-tuning scripts read and measure: tables, windows over contexts, answers, and metrics by hand."""

import argparse
import sys

import example_runs as runs
import numpy
import pytest
import scipy.stats
import torch
from finetune_data import bert_tokenizer, write_glue, write_squad

sys.path.append(str(runs.EXAMPLES))  # as python does for a script in that folder

import data_glue
import data_rows
import data_squad
import metrics_glue
import metrics_squad
import span_answers


def test_tables_are_read_as_written(tmp_path):
    """No header, byte order mark, quotation marks, packed files, a label by name."""
    write_glue(tmp_path)
    made = argparse.Namespace(task="cola", data_dir=tmp_path, eval_split=None, max_eval_examples=None)
    train, held = data_glue.glue_examples(made)
    assert (len(train), len(held)) == (400, 60)
    made.task = "mrpc"
    train, _ = data_glue.glue_examples(made)
    assert [label for _, label in train] == [0, 1] * 200
    assert all(texts[1].startswith('"') for texts, _ in train)  # an open quotation mark swallows no line
    assert data_glue._target("not_entailment", data_glue.TASKS["rte"], "here") == 1


@pytest.mark.slow
def test_windows_hold_the_answers(tmp_path):
    """Logits that point at the targets give every answer back, however the context was cut."""
    text, _ = runs.write_texts(tmp_path)
    tokenizer = bert_tokenizer(text)
    made = argparse.Namespace(seq_length=48, stride=30, max_question_length=8)
    questions = data_squad._of_file(write_squad(tmp_path, impossible=True))[:300]
    cut = data_squad.windows(questions, tokenizer, made)
    assert len(cut.owner) > 1.5 * len(questions)
    start, end = (
        torch.nn.functional.one_hot(cut.rows.columns[name], cut.spans.shape[1]).numpy().astype(numpy.float32)
        for name in ("start_positions", "end_positions")
    )
    found = span_answers.answers(cut, start, end, best=5, longest=30)
    short = [q for q in questions if q.answers and len(tokenizer(q.answers[0][0]).input_ids) <= 20]
    assert len(short) > 50
    for question in short:
        assert question.answers[0][0].strip() in found[question.id].text  # a token may reach beyond the answer
        assert found[question.id].null_odds <= 0
    assert all(found[q.id].null_odds > 0 for q in questions if not q.answers)


def test_best_span_by_hand():
    spans = numpy.array([[-1, -1], [0, 2], [3, 5], [6, 8], [-1, -1]])
    start = numpy.array([9.0, 1.0, 3.0, 0.0, 9.0])
    end = numpy.array([9.0, 5.0, 0.0, 4.0, 9.0])
    assert span_answers.best_span(start, end, spans, best=3, longest=3) == (7.0, 2, 3)  # 8 would end before it starts
    assert span_answers.best_span(start, end, spans, best=3, longest=1) == (6.0, 1, 1)
    assert span_answers.best_span(start, end, spans, best=1, longest=3)[0] == -numpy.inf
    assert span_answers.best_span(start, end, numpy.full((5, 2), -1), best=3, longest=3)[0] == -numpy.inf


def test_squad_metrics_by_hand():
    """Articles, punctuation, case and spaces do not count; bags of words; the best reference; no answer."""
    assert metrics_squad.normalised("The  Cat's an-\tA hat, than") == "cats hat than"
    assert metrics_squad.exact_match("the Cat!", "a cat") == 1
    assert metrics_squad.exact_match("theatre", "atre") == 0
    assert metrics_squad.f1("the cat sat", "a cat on a mat") == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert metrics_squad.f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert (metrics_squad.f1("", "the"), metrics_squad.f1("", "cat"), metrics_squad.f1("dog", "cat")) == (1, 0, 0)
    answers = {"1": "blue cat", "2": "", "3": "dog", "4": ""}
    wanted = {"1": ["red cat", "cat"], "2": [], "3": [], "4": ["bird", "the"]}
    found = metrics_squad.scores(answers, wanted)
    assert found["exact_match"] == 25
    assert found["f1"] == pytest.approx(100 * (2 / 3 + 1) / 4)
    assert (found["has_answer_exact_match"], found["has_answer_f1"]) == (0, pytest.approx(100 / 3))
    assert (found["no_answer_exact_match"], found["no_answer_f1"]) == (50, 50)
    assert metrics_squad.scores({"1": "cat"}, {"1": ["cat"]}) == {"exact_match": 100, "f1": 100}


def test_glue_metrics_by_hand():
    wanted, predicted = numpy.array([1, 1, 1, 0, 0, 0]), numpy.array([1, 1, 0, 0, 0, 1])
    assert metrics_glue.accuracy(predicted, wanted) == pytest.approx(4 / 6)
    assert metrics_glue.f1(predicted, wanted) == pytest.approx(2 / 3)
    assert metrics_glue.matthews(predicted, wanted) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert metrics_glue.matthews(numpy.ones(6), wanted) == 0
    assert metrics_glue.f1(numpy.zeros(6), wanted) == 0
    scores, other = numpy.array([1.0, 2.0, 2.0, 9.0, 3.0]), numpy.array([2.0, 1.0, 7.0, 9.0, 7.0])
    numpy.testing.assert_array_equal(metrics_glue.ranks(scores), [1, 2.5, 2.5, 5, 4])
    assert metrics_glue.spearman(scores, other) == pytest.approx(scipy.stats.spearmanr(scores, other).statistic)
    assert metrics_glue.pearson(scores, other) == pytest.approx(scipy.stats.pearsonr(scores, other).statistic)
    assert metrics_glue.spearman(scores, -(scores**3)) == pytest.approx(-1)


def test_rows_keep_floats():
    rows = data_rows.Rows({"ids": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), "labels": torch.tensor([0.5, 1])})
    batch = data_rows.collate([rows[0], rows[1]])
    assert (len(rows), batch["ids"].dtype, batch["labels"].dtype) == (2, torch.int64, torch.float32)
