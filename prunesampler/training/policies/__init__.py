"""What is drawn before every epoch: a file a policy."""
