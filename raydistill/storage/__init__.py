"""Where everything lies: artefacts by content, locks, a node's copies, garbage. It knows only `errors`."""
