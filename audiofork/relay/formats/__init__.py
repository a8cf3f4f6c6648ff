"""What goes over a fork's WebSocket, and what comes back."""
