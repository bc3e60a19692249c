"""What happens to a job's record, from the topic to its outcome; the only package that imports Faust."""
