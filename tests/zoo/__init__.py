"""A kernel module full of crashes, and the machine they are met on."""
