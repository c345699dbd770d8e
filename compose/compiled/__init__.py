"""Kernels compiled together with their targets: :func:`compile_kernel`."""

from boltzmix.compose.compiled.block import Block, Trace, compile_kernel

__all__ = ["Block", "Trace", "compile_kernel"]
