"""The frozen CLIP towers: where weights come from, and how they are loaded and run."""
