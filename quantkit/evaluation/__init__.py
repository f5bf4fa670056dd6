"""Evaluation: how good a model's predictions are, and how fast they come."""
