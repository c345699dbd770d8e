"""Exact judges for scenes: what a picture shows, whether that was asked, and how often it should have happened."""
