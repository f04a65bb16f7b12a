"""`python -m neobench` is the same as `neobench`."""

from neobench.cli import main

main()
