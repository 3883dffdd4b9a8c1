"""Medical volumes: inverse problems with a learned prior. `operators` measure, `noise` disturbs what they measure."""
