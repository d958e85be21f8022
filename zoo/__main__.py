"""`python -m zoo`: the same as `pocketzoo`."""

from zoo.main import main

main()
