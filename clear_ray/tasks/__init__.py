"""Where queries with verifiable answers come from besides files, and how answers are scored.

    ReasoningGymSource (settings) -> generate_queries -> rows {query_id, prompt | messages, gold, task, metadata}
    load_scorer(name) -> Scorer: (text, gold, metadata) -> 0 to 1, or None where there is nothing to compare with
        text -> thinking -> marks -> the answer by its kind (quantities, choices, wordings, mathematics, structured, programs)
        gold -> the accepted answers, by the same rule -> compared -> Verdict
    survey_queries(folder, scorer) -> Survey: whether that scorer can read the gold answers of a batch

reasoning-gym and math-verify run in a process of their own (`referee`): some of their checks evaluate the answer as a
program, and neither can be stopped from inside a thread. So does a user's scorer (`scorer_process`), which may do anything,
and a program that a model wrote (`code_process`), which may read and write next to nothing.
"""

from clear_ray.config.input import Demonstration, ReasoningGymSource
from clear_ray.tasks.answers import extract_answer, has_complete_answer
from clear_ray.tasks.kinds import KINDS, Kind, canonical, extract, same_answer
from clear_ray.tasks.scorers import Scorer, get_ready, judged_by, load_scorer, scores_at_once
from clear_ray.tasks.source import generate_queries
from clear_ray.tasks.survey import Survey, survey_queries
from clear_ray.tasks.verdict import Verdict

__all__ = [
    "KINDS",
    "Demonstration",
    "Kind",
    "ReasoningGymSource",
    "Scorer",
    "Survey",
    "Verdict",
    "canonical",
    "extract",
    "extract_answer",
    "generate_queries",
    "get_ready",
    "has_complete_answer",
    "judged_by",
    "load_scorer",
    "same_answer",
    "scores_at_once",
    "survey_queries",
]
