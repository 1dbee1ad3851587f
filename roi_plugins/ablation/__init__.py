"""Ablations: plan -> trials -> runs -> results -> tables and figures."""
