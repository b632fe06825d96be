//! The host command: runs, measures and audits.
fn main() {}
