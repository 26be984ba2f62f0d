"""Rows of still images of activities: drawn ones, a user's own, few shots of either."""
