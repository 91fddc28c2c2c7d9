"""LSTM or GRU? What textbooks say of them, measured: ``python -m benchmarks study``.

=============  ====================================================================================================
arms.py        who is compared: equal hidden size, equal parameters; formulas for parameters and operations
footprint.py   parameters, operations, memory: counted
speed.py       a layer's step, a stream's latency, a language model's step: timed
tasks.py       adding, copying, parity after a lag; English text
learning.py    one training loop for all of them
series.py      real series, few points
speech.py      spoken words (examples/speech_commands.py)
ablations.py   the cells with gates taken away
parts.py       what is measured at which sizes, in parts
store.py       a part's result file; stops anywhere and goes on
claims.py      the claims, what counts as evidence, and the rules of the verdicts
report.py      result files -> Markdown; figures.py -> plots
=============  ====================================================================================================
"""
