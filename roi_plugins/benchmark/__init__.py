"""The op side by side with its peers: time, memory, and how far it is from what the memory allows.

``cases`` says what is measured, ``peers`` how the others are called, ``measure`` measures, ``train_step``
does so for a whole detector, and ``report`` keeps the results and writes tables and the figure.
"""
