"""The check of an exercise: dots, a wrong answer, one that fails, and the right one."""
import pytest
import torch

from consistency_models.exercises import check


def said(capsys, answer, **told):
    """What the check of an exercise with the answer 8 prints"""
    check(answer, lambda n: n * 0.25 == 2, "how many make one?", "Four times two.", **told)
    return capsys.readouterr().out


def test_dots_are_asked_for_an_answer_and_nothing_is_computed(capsys):
    never = lambda answer: pytest.fail("computed without an answer")
    check(..., never, "how many make one?", "Four times two.", never)
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: put your answer") and printed.endswith("Hint: how many make one?\n")


@pytest.mark.parametrize("answer", [6, 6., torch.tensor(6)])
def test_a_wrong_answer_gets_the_hint_and_what_it_leads_to(capsys, answer):
    assert said(capsys, answer) == "Not yet. Hint: how many make one?\n"
    printed = said(capsys, answer, told=lambda n: f"{n:g} steps lead to {n * 0.25:g}.")
    assert printed == "Not yet. 6 steps lead to 1.5. Hint: how many make one?\n"


@pytest.mark.parametrize("answer", [8, 8., torch.tensor(8)])
def test_a_right_answer_gets_its_sentence_and_no_hint(capsys, answer):
    assert said(capsys, answer) == "Right. Four times two.\n"
    assert said(capsys, answer, told=lambda n: "Two. ") == "Right. Two. Four times two.\n"


def test_what_fails_is_not_right_yet_and_says_why(capsys):
    assert said(capsys, "eight") == "Not yet: this failed (can't multiply sequence by non-int of type 'float'). Hint: how many make one?\n"
    assert said(capsys, 6, told=lambda n: 1 / 0) == "Not yet: this failed (division by zero). Hint: how many make one?\n"
    assert said(capsys, 8, told=lambda n: 1 / 0) == "Right. Four times two.\n"
    assert said(capsys, None).startswith("Not yet: this failed (")
