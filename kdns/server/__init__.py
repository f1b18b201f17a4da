"""The server: builds blocks of plugins from a Corefile, carries queries to them, and lives: start, reload, stop."""
