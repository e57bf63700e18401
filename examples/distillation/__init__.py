"""What `examples/long_minilm.py` is made of: texts, the teacher, the student, training, judging."""
