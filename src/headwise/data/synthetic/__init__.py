"""Generators that stand in for a download: one module per upstream builder, found by its name.

A module ``headwise.data.synthetic.<builder>`` offers

* ``REVISION``: raised whenever a pixel, key or feature changes; part of every fingerprint;
* ``SIZES``: number of examples of each upstream split, e.g. ``{"train": 737280}``;
* ``key(split, index)``: the example's key, which decides its place in the order (see ``headwise.data.splits``);
* ``examples(split, indices)``: one mapping of feature names to values per example, as label rules expect them;
* ``render(split, indices)``: the images, ``(N, H, W, C)`` uint8;
* ``SLOW = True``, if its images should be drawn once, as upstream's own record files (``records``), and then read.

Adding such a module is all it takes: nothing lists them. Every other upstream set has a plain stand-in (``standin``).
"""
