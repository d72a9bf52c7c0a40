"""The built-in actions, a module each; README.md says how to write one."""
