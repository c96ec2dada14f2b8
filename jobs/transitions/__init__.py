"""Steps, rewards and ends: what the learner learns from."""
