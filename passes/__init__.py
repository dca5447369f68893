"""Compiler passes: each maps one frozen record to the next."""
