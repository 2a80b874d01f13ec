"""What a person looks at: videos and curves."""
