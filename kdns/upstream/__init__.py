"""Exchanges with upstream servers: sockets, connections, health. Which upstream is asked is the plugin's choice."""
