"""Tests see the CPU as two devices, whatever the machine, as the programs do on two cores."""

from highway_jax import parallel

parallel.split_cpu(2)
