"""Chaos runs: faults of workers, nodes, drivers and disks under a grid, and checks of its results.

Nothing here is used by a run of results. The only seam in the pipeline proper is
`pipeline.run.reporting.watched`, through which `tests.chaos.failpoint` holds a worker at a chosen
moment; the faults themselves come from outside, through the operating system.
"""
