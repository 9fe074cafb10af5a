"""Files written whole, cores and memory, worker pools, signals, output, the manners of the command line."""
