"""What passes between the control plane and the relay, and by which way."""
