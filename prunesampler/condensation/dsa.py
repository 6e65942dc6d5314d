"""Zhao and Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation"."""

from __future__ import annotations

from prunesampler.condensation.dc import DC


class DSA(DC):
    """Gradient matching from real images on, both sides and the network's training under the same augmentation."""

    init, augment = "real", "dsa"
