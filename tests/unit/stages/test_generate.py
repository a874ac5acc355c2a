from __future__ import annotations

from clear_ray.stages.generate import asked_directly


def test_a_direct_answer_is_asked_for_at_the_end_of_the_prompt() -> None:
    assert asked_directly("What is 6 + 7?", "Only the number.") == "What is 6 + 7?\n\nOnly the number."
    conversation = (("system", "Be brief."), ("user", "What is 1 + 1?"), ("assistant", "2"), ("user", "And 6 + 7?"))
    *before, last = asked_directly(conversation, "Only the number.")
    assert tuple(before) == conversation[:-1]
    assert last == ("user", "And 6 + 7?\n\nOnly the number.")
    assert asked_directly(conversation, "") == conversation
