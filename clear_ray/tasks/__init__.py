"""Where queries with verifiable answers come from besides files, and how answers are scored.

    ReasoningGymSource (settings) -> generate_queries -> rows {query_id, prompt | messages, gold, task, metadata}
    load_scorer(name) -> Scorer: (text, gold, metadata) -> 0 to 1, or None where there is nothing to compare with

reasoning-gym and math-verify run in a process of their own (`referee`): some of their checks evaluate the answer as a
program, and neither can be stopped from inside a thread. So does a user's scorer (`scorer_process`), which may do anything.
"""

from clear_ray.config import Demonstration, ReasoningGymSource
from clear_ray.tasks.answers import extract_answer, has_complete_answer
from clear_ray.tasks.scorers import Scorer, load_scorer, scores_at_once
from clear_ray.tasks.source import generate_queries

__all__ = [
    "Demonstration",
    "ReasoningGymSource",
    "Scorer",
    "extract_answer",
    "generate_queries",
    "has_complete_answer",
    "load_scorer",
    "scores_at_once",
]
