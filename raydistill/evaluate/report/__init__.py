"""Pages for people: one HTML file each that loads nothing and needs no server, of a run, of a gate's verdict."""
