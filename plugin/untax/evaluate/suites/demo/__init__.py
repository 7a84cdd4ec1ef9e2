"""Three tasks on the bundled data: gain, preference and tax."""
