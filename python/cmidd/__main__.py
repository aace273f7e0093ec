"""`python -m cmidd` is the command `cmidd`."""

from cmidd.cli import main

main()
