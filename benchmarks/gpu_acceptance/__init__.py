"""Everything that can only be proved and measured on a GPU, in one command of at most ten minutes:
``python -m benchmarks.gpu_acceptance --out DIR``.

===================  ==================================================================================================
conductor.py         runs the stages: a child process each, a share of the time each, faults recorded and stepped over
stage.py             a stage's side of it: rows, written as they come; the clock; when to give up
schedules.py         making a layer take one schedule, and seeing what was launched
problems.py          the numbers of a case, results by name, the error budget against a float64 oracle
timing.py            interleaved times of the host's clock, of the device's and of replayed CUDA graphs
layers.py            one pass of one layer, for what is compiled ahead and what is tuned
compiling.py         compiles Triton's kernels of later stages in the background
report.py            DIR -> Markdown
documents.py         DIR -> what README and documents show of it: tables and a picture
tables.py            DIR -> the tables of measurements that plans read
refit.py             DIR -> the constants of the CUDA kernels' cost model
-------------------  --------------------------------------------------------------------------------------------------
machine.py           stage 1: hardware, driver, versions, switches
build.py             stage 2: compiles the CUDA kernels for the GPU that is here
parity.py            stage 3: every schedule against the oracle
repeatability.py     stage 4: the same bits again, also from a CUDA graph
speed.py             stage 5: times and memory next to torch.nn (cuDNN)
tuning.py            stage 6: every tiling that fits, timed: the winners
mechanisms.py        stage 7: what launches, barriers, caches and products cost; its kernels are in csrc/cuda/mechanisms.cu
                     and mechanism_kernels.py
peers.py             stage 8: other projects' Triton kernels, where installed
profiles.py          stage 9: profiler and sanitizer, where installed
===================  ==================================================================================================

Each stage writes DIR/<stage>.json as it goes, so that a run that is cut short is useful as far as it came. The most valuable
stages come first, and in each the most telling rows.
"""
