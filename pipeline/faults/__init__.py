"""A fault run: end workers, nodes, drivers and disks under a grid, and look for any trace of it.

Nothing here is used by a run of results. The only seam in the pipeline proper is
`pipeline.run.report.watched`, through which `pipeline.faults.gate` holds a worker at a chosen
moment; the faults themselves come from outside, through the operating system.
"""
