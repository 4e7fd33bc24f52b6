"""Bridges to tools that run a model's attention themselves, and would leave its locality out in silence."""
