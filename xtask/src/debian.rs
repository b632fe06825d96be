//! Debian's packages: whether they are installed, and installing them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::step::Step;

/// Longer than any of our downloads should take.
const LIMIT: Duration = Duration::from_secs(900);
/// Whether the package lists were brought up to date by this run.
static UPDATED: AtomicBool = AtomicBool::new(false);

/// Whether a program is in the PATH.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// Whether all of these packages are installed.
pub fn are_installed(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        Command::new("dpkg-query")
            .args(["-W", "-f=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
    })
}

/// Installs packages with apt-get.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    if !has_program("apt-get") {
        bail!("this is not Debian or a child of it (there is no apt-get)");
    }
    let step = Step::new(&format!("install {} with apt-get", packages.join(" ")), why);
    if packages.iter().any(|package| !is_known(package)) {
        update(&step)?;
    }
    let mut words = vec!["install", "-y", "--no-install-recommends"];
    words.extend(packages);
    let first = apt_get_as_root(&words).and_then(|mut command| step.run(&mut command, LIMIT));
    if let Err(error) = first {
        // The lists may name versions that the archive has replaced since.
        if UPDATED.load(Ordering::SeqCst) {
            return Err(error);
        }
        update(&step)?;
        step.run(&mut apt_get_as_root(&words)?, LIMIT)?;
    }
    Ok(())
}

/// Fetches the newest version of a package into a folder, without installing it.
pub fn download(package: &str, folder: &Path, step: &Step) -> Result<()> {
    let command = || {
        let mut command = apt_get();
        command.args(["download", package]).current_dir(folder);
        command
    };
    if let Err(error) = step.run(&mut command(), LIMIT) {
        if UPDATED.load(Ordering::SeqCst) {
            return Err(error);
        }
        update(step)?;
        step.run(&mut command(), LIMIT)?;
    }
    Ok(())
}

/// The packages that a package depends on.
pub fn dependencies(package: &str, step: &Step) -> Result<Vec<String>> {
    if !is_known(package) {
        update(step)?;
    }
    let mut command = Command::new("apt-cache");
    let output = step.run(command.args(["depends", package]).env("LC_ALL", "C"), LIMIT)?;
    let depends = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.map(str::to_string).collect())
}

/// The packages that are not installed and would have to be for this one, itself among them.
pub fn missing_for(package: &str, step: &Step) -> Result<Vec<String>> {
    if !is_known(package) {
        update(step)?;
    }
    let mut command = apt_get();
    command.args(["--simulate", "--no-install-recommends", "install", package]);
    Ok(to_install(&step.run(&mut command, LIMIT)?))
}

/// The packages in a simulation's lines `Inst NAME (VERSION ...)`.
fn to_install(simulation: &str) -> Vec<String> {
    let lines = simulation.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines.filter_map(|rest| rest.split(' ').next().map(str::to_string)).collect()
}

/// Whether the package lists have a version to install.
fn is_known(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .output()
        .is_ok_and(|output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|candidate| candidate != "(none)")
}

fn update(step: &Step) -> Result<()> {
    step.run(&mut apt_get_as_root(&["update"])?, LIMIT)?;
    UPDATED.store(true, Ordering::SeqCst);
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command.args(["-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]);
    command
}

fn apt_get_as_root(words: &[&str]) -> Result<Command> {
    let inner = apt_get();
    let mut command = if geteuid().is_root() {
        inner
    } else if has_program("sudo") {
        // Asks now, while the terminal is ours; afterwards the output is piped.
        let status = Command::new("sudo").arg("-v").status().context("sudo does not start")?;
        if !status.success() {
            bail!("sudo does not let this user install packages");
        }
        let mut command = Command::new("sudo");
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get"]);
        command.args(inner.get_args());
        command
    } else {
        bail!("installing packages needs root, and there is no sudo");
    };
    command.args(words);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_tells_what_is_missing() {
        let text = "Reading package lists...\nInst libpq5 (15.18-0+deb12u1 Debian:12.1/stable [amd64])\n\
            Inst postgresql-15 [15.1] (15.18-0+deb12u1 Debian:12.1/stable [amd64])\nConf libpq5 (15.18)\n";
        assert_eq!(to_install(text), ["libpq5", "postgresql-15"]);
    }

    #[test]
    fn a_package_without_a_version_is_not_known() {
        assert!(has_candidate("qemu:\n  Installed: (none)\n  Candidate: 1:7.2\n"));
        assert!(!has_candidate("qemu:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
