"""The link between the control plane and the relay: its messages and its transports."""
