"""How fast the backends are, next to torch.nn, its peers and the machine's limits: ``python -m benchmarks run``, then ``report``.

==============  ===================================================================================
cases.py        what is measured: a case, and its weights and inputs
grids.py        the sets of cases to choose from
providers/      who is measured: torch.nn (the baseline), this package's backends, peers
baseline.py     which of its implementations torch.nn ran
gate.py         results are checked against torch.nn before anything is timed
timing.py       interleaved timing of all providers of a case
memory.py       peaks of memory
flops.py        operations of a case
wall.py         what the machine can do at most, and a case's share of it
machine.py      what the figures were measured on
arguments.py    numbers on the command line
runner.py       cases x providers -> the result file
results.py      reading and writing result files
report.py       a result file -> Markdown, and the tables in the documents
figures.py      a result file -> pictures
compare.py      two result files side by side
explain.py      one case, and the limit that binds it
targets.py      the speed this package is to reach
streaming.py    the latency of one streaming step: ``python -m benchmarks.streaming``
study/          LSTM or GRU? The textbooks' claims, measured: ``python -m benchmarks study``
test_speed.py   entries for pytest-benchmark
results/        committed result files, one directory per machine, named by hardware
gpu_acceptance  the same question, and more, on a GPU: ``python -m benchmarks.gpu_acceptance --out DIR``
==============  ===================================================================================

The guide is docs/benchmarking.md.
"""
