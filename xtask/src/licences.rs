//! Checks that every dependency is under a permissive licence.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::{hosts, root};

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

/// Accepted of a host of others as well: it is tested with the library, and linked into nothing that we ship.
const OF_HOSTS: [&str; 1] = ["MPL-2.0"];

/// Packages that bring a licence's text and do not name it: read, and found to be this one.
const READ: [(&str, &str); 1] = [("inherit-methods-macro", "BSD-3-Clause")];

/// Fails with the list of dependencies that are not.
pub fn check() -> Result<()> {
    check_workspace(&root(), &PERMISSIVE)?;
    check_workspace(&root().join("hosts/size"), &PERMISSIVE)?;
    check_workspace(&hosts::ostd(), &[&PERMISSIVE[..], &OF_HOSTS].concat())
}

fn check_workspace(folder: &Path, accepted: &[&str]) -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(folder)
        .other_options(vec!["--locked".to_string()])
        .exec()
        .with_context(|| format!("cargo metadata (is Cargo.lock up to date in {}?)", folder.display()))?;
    let mut refused = Vec::new();
    for package in &metadata.packages {
        let read = READ.iter().find(|(name, _)| *name == package.name.as_str());
        let problem = match package.license.as_deref().or(read.map(|(_, licence)| *licence)) {
            None => Some("no licence expression".to_string()),
            Some(text) => problem_with(text, accepted),
        };
        refused.extend(problem.map(|problem| format!("{} {}: {problem}", package.name, package.version)));
    }
    if !refused.is_empty() {
        bail!("not under a licence that is accepted:\n  {}", refused.join("\n  "));
    }
    let name = folder.strip_prefix(root()).unwrap_or(folder).display().to_string();
    let name = if name.is_empty() { "the workspace" } else { &name };
    println!("licences: all {} packages of {name} are under accepted ones", metadata.packages.len());
    Ok(())
}

/// What is wrong with a licence expression, if anything.
fn problem_with(text: &str, accepted: &[&str]) -> Option<String> {
    // Old crates write a slash for OR.
    match Expression::parse_mode(text, ParseMode::LAX) {
        Err(error) => Some(format!("{text}: {}", error.reason)),
        Ok(expression) if expression.evaluate(|requirement| is_accepted(requirement, accepted)) => None,
        Ok(_) => Some(text.to_string()),
    }
}

fn is_accepted(requirement: &LicenseReq, accepted: &[&str]) -> bool {
    requirement.license.id().is_some_and(|id| accepted.contains(&id.name))
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
            assert_eq!(problem_with(text, &PERMISSIVE), None, "{text}");
        }
    }

    #[test]
    fn copyleft_and_nonsense_do_not() {
        for text in ["GPL-3.0-only", "MIT AND MPL-2.0", "LGPL-2.1-or-later", "my own", ""] {
            assert!(problem_with(text, &PERMISSIVE).is_some(), "{text}");
        }
    }

    #[test]
    fn a_host_may_be_under_the_mozilla_licence() {
        assert_eq!(problem_with("MPL-2.0", &OF_HOSTS), None);
        assert!(problem_with("GPL-2.0-only", &OF_HOSTS).is_some());
    }
}
