"""The relay: from AudioSocket legs to WebSocket sinks. It knows no AMI."""
