"""Boards: profiles, building for them, running on them in an emulator."""
