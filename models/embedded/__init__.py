"""The networks that come with the package: one folder each, in diffusers' layout plus a card."""
