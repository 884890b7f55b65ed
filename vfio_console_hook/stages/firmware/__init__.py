"""What the stages for firmware framebuffers share, by who owns the memory.

Nothing here is a stage of its own. May import what stages may.
"""
