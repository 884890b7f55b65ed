"""Hostile input made by a fuzzer that sees which lines of the program it reaches.

`python3 -m tests.trust.fuzz TARGET --findings DIRECTORY [--runs N] [--seconds S]` runs one
target under libFuzzer (atheris); what it finds is left in DIRECTORY, one file each.
Without atheris, hypothesis makes the input, which does not see the program. With
`--replay FILE...` nothing else than what is in these files is tried.
"""
