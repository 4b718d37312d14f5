"""A tiny CLIP, pretrained for real, and the motion clips that show what prompts add to it."""
