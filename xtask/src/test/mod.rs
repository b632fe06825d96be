//! Runs all tests.

use anyhow::Result;
use clap::Args;

/// Which tests to run.
#[derive(Args, Clone, Debug)]
pub struct TestOptions {
    /// Only tests with this in their name
    #[arg(long, value_name = "NAME")]
    pub filter: Option<String>,
}

pub fn run(options: &TestOptions) -> Result<i32> {
    anyhow::bail!("{options:?}")
}
