"""Measures the op beside its peers: time, memory, and how close it is to the limit of the memory bandwidth.

``cases`` defines what is measured, and ``peers`` how the peers are called. ``measure`` measures,
``cuda_graph`` times a GPU without its host, and ``train_step`` measures whole detectors. ``record`` saves the
results, and ``report`` makes tables and a figure from them. ``growth`` measures how cost grows with each
dimension of the work, and ``growth_report`` shows it. ``against`` compares a benchmark with an earlier one.
``other_load`` tells whether others disturbed a measurement.
"""
