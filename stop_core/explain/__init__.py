"""Figures of the prompts: for one clip, and over a training."""
