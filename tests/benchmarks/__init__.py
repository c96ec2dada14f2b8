"""What Nightjar costs, measured; run by hand, with `make bench`."""
