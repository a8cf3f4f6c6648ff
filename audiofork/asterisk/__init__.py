"""The connections to Asterisk (AMI and ARI): questions, actions, events, and the taps for audio."""
