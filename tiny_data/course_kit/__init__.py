"""What tiny_data/course.py is made of: questions, oracles, checks, grading, the handout, the
key.
"""
