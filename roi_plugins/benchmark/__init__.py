"""The op side by side with its peers: time, memory, and how far it is from what the memory allows.

``cases`` says what is measured, ``peers`` how the others are called, ``measure`` measures, ``cuda_graph``
times a GPU without its host, and ``train_step`` measures whole detectors. ``record`` keeps the results, and
``report`` makes tables and the figure of them.
"""
