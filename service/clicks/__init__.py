"""Clicks on our buttons in Slack: whether one is genuine, what it asks for, who may, and how the clicker hears of it.

The story itself is `service/interactions.py`.
"""

PATH = "/slack/interactions"
