"""What is pushed to the Hub, and how."""
