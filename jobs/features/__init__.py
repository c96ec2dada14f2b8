"""Counts and rates of users and items, from daily partials."""
