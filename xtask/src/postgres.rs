//! PostgreSQL for the audit's tests: the host's own, or Debian's package unpacked below target/, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::step::Step;
use crate::{debian, output_folder};

/// Names the version that this Debian has in its one dependency.
const META_PACKAGE: &str = "postgresql";

/// A folder with `usr/lib/postgresql/VERSION/bin` and the libraries that go with it: `/` where PostgreSQL is installed.
pub fn find_or_fetch() -> Result<PathBuf> {
    let fetched = output_folder().join("postgresql");
    for root in [PathBuf::from("/"), fetched.clone()] {
        if has_server(&root) {
            return Ok(root);
        }
    }
    unpack(&fetched)
        .context("PostgreSQL cannot be fetched here: install Debian's package postgresql by hand")?;
    Ok(fetched)
}

fn has_server(root: &Path) -> bool {
    let versions = fs::read_dir(root.join("usr/lib/postgresql")).into_iter().flatten().flatten();
    versions
        .map(|version| version.path().join("bin"))
        .any(|bin| ["initdb", "postgres", "psql"].iter().all(|program| bin.join(program).is_file()))
}

fn unpack(folder: &Path) -> Result<()> {
    let step = Step::new("fetch PostgreSQL", "the audit's figures are held against its; it is not installed");
    let parent = folder.parent().context("a folder below target")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::tempdir_in(parent)?;
    let server = debian::dependencies(META_PACKAGE, &step)?
        .into_iter()
        .find(|name| is_server(name))
        .context("the package lists do not say which version it is")?;
    let tree = scratch.path().join("tree");
    for package in debian::missing_for(&server, &step)?.iter().filter(|package| is_needed(package)) {
        let place = scratch.path().join(package);
        fs::create_dir(&place)?;
        debian::download(package, &place, &step)?;
        let archive = fs::read_dir(&place)?.flatten().next().context("no package came")?.path();
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree), Duration::from_secs(120))?;
    }
    anyhow::ensure!(has_server(&tree), "there is no server in {server}");
    fs::rename(&tree, folder)?;
    Ok(())
}

/// `postgresql-15` and the like.
fn is_server(package: &str) -> bool {
    package.strip_prefix("postgresql-").is_some_and(|rest| rest.parse::<u32>().is_ok())
}

/// The server, its programs and their libraries: no set-up scripts, and no compiler, which only its JIT wants.
fn is_needed(package: &str) -> bool {
    is_server(package)
        || package.strip_prefix("postgresql-client-").is_some_and(|rest| rest.parse::<u32>().is_ok())
        || package.starts_with("lib") && !package.starts_with("libllvm") && !package.ends_with("-perl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_runs_with_is_fetched() {
        for package in ["postgresql-15", "postgresql-client-15", "libpq5", "libicu72"] {
            assert!(is_needed(package), "{package}");
        }
        for package in
            ["postgresql-common", "postgresql-client-common", "libllvm14", "libjson-perl", "ssl-cert"]
        {
            assert!(!is_needed(package), "{package}");
        }
    }
}
