"""Sweeps: one teacher pass, many students, and a choice that can be defended."""
