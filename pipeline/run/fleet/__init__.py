"""Execution on Ray: workers, gangs, the task queue, progress, and stall reports."""
