"""Downstream tasks: six classification tasks asked zero-shot of the model being edited.

The items are those of GLUE and MMLU as the editing literature measures them (arXiv 2502.05759,
2410.02355): 100 items each, a greedy answer of at most five tokens, F1 weighted by the frequency of
the right answers; and beside it the variant that compares the answers' likelihoods.
"""

from rledit.measurements.downstream.measure import TaskScore, measure_downstream, weighted_f1
from rledit.measurements.downstream.tasks import TASKS, Item, Task, items_of

__all__ = [
    "TASKS",
    "Item",
    "Task",
    "TaskScore",
    "items_of",
    "measure_downstream",
    "weighted_f1",
]
