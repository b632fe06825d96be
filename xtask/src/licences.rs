//! Checks that every dependency is under a permissive licence.

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::root;

/// What we accept: no copyleft in any form.
const PERMISSIVE: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    // In the lock file by a terminal library that is not built.
    "WTFPL",
    "Unlicense",
    "Zlib",
];

/// Fails with the list of dependencies that are not.
pub fn check() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .other_options(vec!["--locked".to_string()])
        .exec()
        .context("cargo metadata (is Cargo.lock up to date?)")?;
    let mut refused = Vec::new();
    for package in &metadata.packages {
        let problem = match &package.license {
            None => Some("no licence expression".to_string()),
            Some(text) => problem_with(text),
        };
        refused.extend(problem.map(|problem| format!("{} {}: {problem}", package.name, package.version)));
    }
    if !refused.is_empty() {
        bail!("not under a permissive licence:\n  {}", refused.join("\n  "));
    }
    println!("licences: all {} packages are under permissive ones", metadata.packages.len());
    Ok(())
}

/// What is wrong with a licence expression, if anything.
fn problem_with(text: &str) -> Option<String> {
    // Old crates write a slash for OR.
    match Expression::parse_mode(text, ParseMode::LAX) {
        Err(error) => Some(format!("{text}: {}", error.reason)),
        Ok(expression) if expression.evaluate(is_permissive) => None,
        Ok(_) => Some(text.to_string()),
    }
}

fn is_permissive(requirement: &LicenseReq) -> bool {
    requirement.license.id().is_some_and(|id| PERMISSIVE.contains(&id.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissive_expressions_pass() {
        for text in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert_eq!(problem_with(text), None, "{text}");
        }
    }

    #[test]
    fn copyleft_and_nonsense_do_not() {
        for text in ["GPL-3.0-only", "MIT AND MPL-2.0", "LGPL-2.1-or-later", "my own", ""] {
            assert!(problem_with(text).is_some(), "{text}");
        }
    }
}
