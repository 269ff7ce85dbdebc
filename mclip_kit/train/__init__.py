"""Training: a run of a recipe, its one loop, and what comes beside the steps (callbacks/)."""
