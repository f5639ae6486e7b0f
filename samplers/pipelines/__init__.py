"""What samples inside diffusers pipelines, and what takes a pipeline apart for our own loop."""
