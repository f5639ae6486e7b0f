"""fewstep: samples diffusion and flow networks in few network evaluations."""

__version__ = "0.1.0"
