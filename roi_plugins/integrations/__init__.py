"""Bindings to detection frameworks: one each, and none imports another's framework."""
