"""From whatever the user gives to a validated `queries/` folder, and back to the OpenAI batch format.

    read_input (jsonl, documents, tables, parquet) -> SourceBatch
        -> ingest (requests or shapes, normalise, watches, duplicates) -> queries/*.parquet

Rows from elsewhere (a task generator, a Ray Dataset's Arrow batches) enter as a `SourceBatch` of their own and pass the
same checks. Everything streams: besides one batch of rows, 16 bytes a query are held to find ids given twice.
"""

from clear_ray.ingest.digest import InputDigest, read_digest
from clear_ray.ingest.files import read_input
from clear_ray.ingest.intake import IntakeRules, Watch, ingest
from clear_ray.ingest.lengths import PromptLimit
from clear_ray.ingest.normalise import NormalRow
from clear_ray.ingest.openai_output import write_openai_outputs
from clear_ray.ingest.row_reader import ReadingRules
from clear_ray.ingest.source import SourceBatch

__all__ = [
    "InputDigest",
    "IntakeRules",
    "NormalRow",
    "PromptLimit",
    "ReadingRules",
    "SourceBatch",
    "Watch",
    "ingest",
    "read_digest",
    "read_input",
    "write_openai_outputs",
]
