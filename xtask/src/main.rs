//! Sets up, builds, runs and tests Roundtable.
fn main() {}
