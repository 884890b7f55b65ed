"""Hostile input made by a fuzzer that sees which lines of the program it reaches.

`python3 -m tests.trust.fuzz TARGET [-runs=N] [-seed=N] [-max_total_time=S] [FILE...]` runs one
target under libFuzzer (atheris); what it finds is left in --findings, one file each.
Without atheris, hypothesis makes the input, which does not see the program.
"""
