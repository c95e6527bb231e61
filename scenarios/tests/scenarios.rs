//! Turns every scenario case into a test of its own name.

fn main() {}
