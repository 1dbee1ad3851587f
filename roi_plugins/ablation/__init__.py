"""Ablations: plan -> cells -> runs -> results -> tables and figures."""
