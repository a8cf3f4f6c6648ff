"""What several hosts share, over NATS: who is there, who leads, and what is noted of forks."""
