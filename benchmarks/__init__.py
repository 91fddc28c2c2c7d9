"""How fast the backends are, next to torch.nn: ``python -m benchmarks run --out FILE``, then ``... report FILE``.

==============  ===================================================================================
cases.py        what is measured: the grid, and each case's weights and inputs
providers.py    who is measured: torch.nn (the baseline) and this package's backends
gate.py         results are checked against torch.nn before anything is timed
timing.py       interleaved timing of all providers of a case
machine.py      what the figures were measured on
runner.py       cases x providers -> the result file
report.py       the result file -> Markdown, and the table in the README
results/        committed result files, one directory per machine, named by hardware
gpu_acceptance  the same question, and more, on a GPU: ``python -m benchmarks.gpu_acceptance --out DIR``
==============  ===================================================================================
"""
