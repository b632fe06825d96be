//! Debian packages with what they depend on, for a guest: fetched by apt into a folder of ours, installed
//! nowhere.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use crate::archive::Archive;
use crate::tarball::{self, Layered};

/// The reason of an error: this host has no apt, or apt does not reach its archive. Every other error is a fault, of ours or of the names.
#[derive(Debug)]
pub struct OutOfReach;

impl fmt::Display for OutOfReach {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the packages' archive is out of reach")
    }
}

/// What a Debian system counts on to be there.
const BASE: [&str; 4] = ["base-files", "base-passwd", "libc-bin", "dash"];

/// Fetches packages and all that they depend on into `cache`, and unpacks them. Their set-up scripts do not
/// run.
pub fn unpack(names: &[String], cache: &Path) -> Result<Archive> {
    let mut archive = Archive::new();
    for tarball in tarballs(names, cache)? {
        tarball::read(File::open(&tarball)?, &mut archive, Layered::No)
            .with_context(|| tarball.display().to_string())?;
    }
    Ok(archive)
}

/// Fetches packages and all that they depend on into `cache`: the file system of each, as a tarball there.
pub fn tarballs(names: &[String], cache: &Path) -> Result<Vec<PathBuf>> {
    for name in names {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "+-.:=~_".contains(c);
        ensure!(
            name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_name),
            "{name:?} is no package's name"
        );
    }
    let tarball = |package: PathBuf| {
        let plain = package.with_extension("tar");
        if !plain.is_file() {
            extract(&package, &plain).with_context(|| package.display().to_string())?;
        }
        Ok(plain)
    };
    fetch(names, cache)?.into_iter().map(tarball).collect()
}

/// The file system of a package as a plain tarball.
fn extract(package: &Path, plain: &Path) -> Result<()> {
    let folder = plain.parent().context("a package lies in a folder")?;
    // By another name first: who is interrupted leaves no half of a tarball.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb does not start")?;
    let mut output = child.stdout.take().context("piped above")?;
    std::io::copy(&mut output, file.as_file_mut())?;
    ensure!(child.wait()?.success(), "dpkg-deb cannot read it");
    file.persist(plain)?;
    Ok(())
}

/// The package files, in the cache.
fn fetch(names: &[String], cache: &Path) -> Result<Vec<PathBuf>> {
    let archives = cache.join("archives");
    for folder in [&archives.join("partial"), &cache.join("lists/partial"), &cache.join("sets")] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    // One at a time: apt's files are in the cache, and it does not lock them for us.
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("the cache's lock")?;
    // What was found for the same names before: no need to ask apt, nor the network.
    let set = cache.join("sets").join(names.join(","));
    if let Ok(text) = fs::read_to_string(&set) {
        let files: Vec<_> = text.lines().map(|line| archives.join(line)).collect();
        if files.iter().all(|file| file.is_file()) {
            return Ok(files);
        }
    }
    // A system without packages: all that is needed is to be fetched, not only what this host lacks.
    let status = cache.join("status");
    fs::write(&status, "")?;
    eprintln!("roundtable: fetching {} and what belongs to it ({})", names.join(", "), archives.display());
    let mut words = vec!["--download-only", "--no-install-recommends", "-y", "install"];
    words.extend(BASE);
    words.extend(names.iter().map(String::as_str));
    let has_lists = || Ok::<_, Error>(fs::read_dir(cache.join("lists"))?.count() >= 3);
    let update = || {
        apt_get(cache, &["update"]).context(OutOfReach)?;
        // For apt it is no error that a list does not come.
        if has_lists()? { Ok(()) } else { Err(anyhow!("apt-get update brought no list").context(OutOfReach)) }
    };
    if !has_lists()? {
        update()?;
    }
    if apt_get(cache, &words).is_err() {
        // The lists may be of an older day than the archive.
        update()?;
        apt_get(cache, &words).map_err(|error| {
            let is_away = error.to_string().contains("Failed to fetch");
            if is_away { error.context(OutOfReach) } else { error }
        })?;
    }
    // By the lists as they are now; others that lie there are of an older day.
    words[0] = "--simulate";
    let files = files_of(&apt_get(cache, &words)?);
    ensure!(!files.is_empty(), "apt-get names no packages");
    for name in &files {
        ensure!(archives.join(name).is_file(), "{name} did not come");
    }
    fs::write(&set, files.join("\n"))?;
    Ok(files.into_iter().map(|name| archives.join(name)).collect())
}

/// The names under which apt stores the packages that it would install, in its order: it says of each
/// `Inst NAME (VERSION ARCHIVE [ARCHITECTURE])`.
fn files_of(simulation: &str) -> Vec<String> {
    let file = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let inside = rest.split_once('(')?.1.split_once(')')?.0;
        let version = inside.split(' ').next()?;
        let architecture = inside.rsplit_once('[')?.1.strip_suffix(']')?;
        // Of another architecture than the host's it stands behind the name, too.
        let name = name.split(':').next()?;
        let quoted = version.replace('%', "%25").replace('_', "%5f").replace(':', "%3a");
        Some(format!("{name}_{quoted}_{architecture}.deb"))
    };
    simulation.lines().filter_map(file).collect()
}

/// Runs apt-get on our own folders; nothing of the host's is read but its sources and keys.
fn apt_get(cache: &Path, words: &[&str]) -> Result<String> {
    let cache = fs::canonicalize(cache)?;
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    for option in [
        option("Dir::State", &cache),
        option("Dir::State::lists", &cache.join("lists")),
        option("Dir::State::status", &cache.join("status")),
        option("Dir::Cache", &cache),
        option("Dir::Cache::archives", &cache.join("archives")),
        "Debug::NoLocking=1".into(),
        "APT::Sandbox::User=root".into(),
        "Acquire::Retries=1".into(),
        "Acquire::http::Timeout=20".into(),
        "Acquire::Languages=none".into(),
    ] {
        command.args(["-o", &option]);
    }
    let output = command
        .arg("-q")
        .args(words)
        .output()
        .context("there is no apt-get on this host")
        .context(OutOfReach)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get {}: {}", words.join(" "), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_an_option_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["-o", "", "a b", "../x", "a/b"] {
            assert!(unpack(&[name.to_string()], scratch.path()).is_err(), "{name}");
        }
    }

    /// The versions that apt would install, and not others that were fetched on another day.
    #[test]
    fn files_are_named_as_apt_names_them() {
        let text = "NOTE: This is only a simulation!\nThe following NEW packages will be installed:\n  libc6 redis-server\n\
            Inst gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64]) []\n\
            Inst libc6 (2.36-9+deb12u10 Debian:12.15/oldstable [amd64])\n\
            Inst redis-server (5:7.0.15-1~deb12u10 Debian-Security:12/oldstable-security [amd64])\n\
            Inst base-passwd:arm64 (3.6.1 Debian:12.15/oldstable [arm64])\n\
            Inst libc-bin\nConf libc6 (2.36-9+deb12u10 Debian:12.15/oldstable [amd64])\n";
        assert_eq!(
            files_of(text),
            [
                "gcc-12-base_12.2.0-14+deb12u1_amd64.deb",
                "libc6_2.36-9+deb12u10_amd64.deb",
                "redis-server_5%3a7.0.15-1~deb12u10_amd64.deb",
                "base-passwd_3.6.1_arm64.deb",
            ]
        );
    }
}
