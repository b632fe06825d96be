//! Database servers for the audit's tests: the host's own, or Debian's packages unpacked below target/, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::step::Step;
use crate::{debian, output_folder};

/// A server that tests start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    PostgreSql,
    MariaDb,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Server::PostgreSql => "PostgreSQL",
            Server::MariaDb => "MariaDB",
        }
    }

    /// The package to install by hand, and the name of the folder that it is unpacked in.
    fn package(self) -> &'static str {
        match self {
            // It names the version that this Debian has in its one dependency.
            Server::PostgreSql => "postgresql",
            Server::MariaDb => "mariadb-server-core",
        }
    }

    /// A folder with `usr` below which are the programs and the libraries that go with them: `/` where they are installed.
    pub fn find_or_fetch(self) -> Result<PathBuf> {
        let fetched = output_folder().join(self.package());
        for root in [PathBuf::from("/"), fetched.clone()] {
            if self.is_in(&root) {
                return Ok(root);
            }
        }
        self.unpack(&fetched).with_context(|| {
            let (name, package) = (self.name(), self.package());
            format!("{name} cannot be fetched here: install Debian's package {package} by hand")
        })?;
        Ok(fetched)
    }

    fn is_in(self, root: &Path) -> bool {
        match self {
            Server::PostgreSql => {
                let versions = fs::read_dir(root.join("usr/lib/postgresql")).into_iter().flatten().flatten();
                versions.map(|version| version.path().join("bin")).any(|bin| {
                    ["initdb", "postgres", "psql"].iter().all(|program| bin.join(program).is_file())
                })
            }
            Server::MariaDb => root.join("usr/sbin/mariadbd").is_file(),
        }
    }

    fn unpack(self, folder: &Path) -> Result<()> {
        let step = Step::new(
            &format!("fetch {}", self.name()),
            "the audit's figures are held against its; it is not installed",
        );
        let parent = folder.parent().context("a folder below target")?;
        fs::create_dir_all(parent)?;
        let scratch = tempfile::tempdir_in(parent)?;
        let server = match self {
            Server::PostgreSql => debian::dependencies(self.package(), &step)?
                .into_iter()
                .find(|name| is_version_of("postgresql-", name))
                .context("the package lists do not say which version it is")?,
            Server::MariaDb => self.package().to_string(),
        };
        let tree = scratch.path().join("tree");
        for package in debian::missing_for(&server, &step)?.iter().filter(|package| self.needs(package)) {
            let place = scratch.path().join(package);
            fs::create_dir(&place)?;
            debian::download(package, &place, &step)?;
            let archive = fs::read_dir(&place)?.flatten().next().context("no package came")?.path();
            step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree), Duration::from_secs(120))?;
        }
        anyhow::ensure!(self.is_in(&tree), "there is no server in {server}");
        fs::rename(&tree, folder)?;
        Ok(())
    }

    /// The server, its programs and their libraries: no set-up scripts, and no compiler, which only PostgreSQL's JIT wants.
    fn needs(self, package: &str) -> bool {
        let is_library =
            package.starts_with("lib") && !package.starts_with("libllvm") && !package.ends_with("-perl");
        is_library
            || match self {
                Server::PostgreSql => {
                    is_version_of("postgresql-", package) || is_version_of("postgresql-client-", package)
                }
                Server::MariaDb => package == self.package(),
            }
    }
}

/// `postgresql-15` and the like.
fn is_version_of(start: &str, package: &str) -> bool {
    package.strip_prefix(start).is_some_and(|rest| rest.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_runs_with_is_fetched() {
        for package in ["postgresql-15", "postgresql-client-15", "libpq5", "libicu72"] {
            assert!(Server::PostgreSql.needs(package), "{package}");
        }
        for package in
            ["postgresql-common", "postgresql-client-common", "libllvm14", "libjson-perl", "ssl-cert"]
        {
            assert!(!Server::PostgreSql.needs(package), "{package}");
        }
        assert!(["mariadb-server-core", "libnuma1"].iter().all(|package| Server::MariaDb.needs(package)));
        assert!(!["mariadb-common", "mysql-common"].iter().any(|package| Server::MariaDb.needs(package)));
    }
}
