//! Other people's fuzzers and stress programs in the place of ours: trinity and stress-ng from Debian's packages.
//!
//! The fuzzer's watcher starts them as the ordinary user, with the same bystander, checks and accounts around them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::fuzz::Load;
use crate::debian;
use crate::output_folder;
use crate::step::Step;

/// A program of Debian's, and how it is run as a part of a soak.
struct Outsider {
    name: &'static str,
    /// Its path in the package, and in the guest.
    path: &'static str,
    /// Several lines, each a guest of its own: what to run for how long is put in the place of `{}`.
    lines: &'static [&'static str],
}

/// What is not meant for a machine under test: trinity writes logs without end unless told not to, and stress-ng's `opcode`,
/// `dev`, `procfs` and the like need what this kernel has not.
const OUTSIDERS: &[Outsider; 2] = &[
    Outsider {
        name: "trinity",
        path: "/usr/bin/trinity",
        lines: &["trinity -q -l off -C 4 -N 100000000", "trinity -q -l off -C 2 -N 100000000 -g vm"],
    },
    Outsider {
        name: "stress-ng",
        path: "/usr/bin/stress-ng",
        lines: &[
            "stress-ng --oom-avoid --timeout {} --vm 2 --vm-bytes 32M --mmap 1 --mmap-bytes 16M --mremap 1 --mremap-bytes 4M",
            "stress-ng --oom-avoid --timeout {} --fork 2 --clone 1 --vfork 1 --exec 1 --zombie 1 --pthread 2",
            "stress-ng --oom-avoid --timeout {} --futex 1 --pipe 1 --sigq 1 --sigfd 1 --timer 1 --timerfd 1 --itimer 1 --nanosleep 1",
            "stress-ng --oom-avoid --timeout {} --shm 1 --shm-sysv 1 --memfd 1 --madvise 1 --mlock 1 --munmap 1 --mincore 1 --vma 1",
            "stress-ng --oom-avoid --timeout {} --brk 1 --stack 1 --bigheap 1 --opcode 1 --sysbadaddr 1 --fault 1 --rmap 1",
        ],
    },
];

/// Debian's fuzzer and stress program alone.
pub fn alone() -> Result<Load> {
    let lines = OUTSIDERS.iter().flat_map(|outsider| outsider.lines.iter().map(|line| vec![*line]));
    Ok(Load { name: "outsiders", beside: lines.collect(), alone: true, files: files()? })
}

/// All at once: the fuzzer's own calls beside theirs.
pub fn mixed() -> Result<Load> {
    let [trinity, stress] = OUTSIDERS;
    let pairs = stress
        .lines
        .iter()
        .enumerate()
        .map(|(place, line)| vec![trinity.lines[place % trinity.lines.len()], *line]);
    Ok(Load { name: "mixed load", beside: pairs.collect(), alone: false, files: files()? })
}

fn files() -> Result<Vec<(String, PathBuf)>> {
    let lists = OUTSIDERS.iter().map(Outsider::files).collect::<Result<Vec<_>>>()?;
    // A library of both is one file.
    let all: BTreeMap<_, _> = lists.into_iter().flatten().collect();
    Ok(all.into_iter().collect())
}

impl Outsider {
    /// The files that the guest needs, in pairs of the place there and here; fetched where they are missing.
    fn files(&self) -> Result<Vec<(String, PathBuf)>> {
        let folder = output_folder().join("outsiders").join(self.name);
        if !folder.join(&self.path[1..]).is_file() {
            fetch(self.name, &folder)?;
        }
        let program = folder.join(&self.path[1..]);
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        let output =
            Command::new("ldd").arg(&program).env("LD_LIBRARY_PATH", &libraries).output().context("ldd")?;
        let mut files = needed(&String::from_utf8_lossy(&output.stdout))?;
        files.insert(format!("/bin/{}", self.name), program);
        Ok(files.into_iter().collect())
    }
}

/// Downloads a package and what it depends on, as far as that is not installed, and unpacks it.
fn fetch(package: &str, folder: &Path) -> Result<()> {
    let step = Step::new(&format!("fetch {package}"), "the soak runs it; it is not installed");
    let parent = folder.parent().context("a folder below target")?;
    fs::create_dir_all(parent)?;
    let scratch = tempfile::tempdir_in(parent)?;
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree)?;
    for package in debian::missing_for(package, &step)?.iter().filter(|name| is_needed(name)) {
        let place = scratch.path().join(package);
        fs::create_dir(&place)?;
        debian::download(package, &place, &step)?;
        let archive = fs::read_dir(&place)?.flatten().next().context("no package came")?.path();
        step.run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&tree), Duration::from_secs(120))?;
    }
    fs::rename(&tree, folder)?;
    Ok(())
}

/// Libraries that the program is linked with; not the drivers and compilers that those would load.
fn is_needed(package: &str) -> bool {
    !package.starts_with("libllvm") && !package.ends_with("-dri") && !package.ends_with("-data")
}

/// The libraries in ldd's lines, and the interpreter.
fn needed(text: &str) -> Result<BTreeMap<String, PathBuf>> {
    // The file itself in the place of its symbolic link.
    let file = |path: &str| fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let mut files = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", "not", "found"] => anyhow::bail!("{name} is in none of the packages"),
            [name, "=>", path, _] => {
                _ = files.insert(format!("/lib/x86_64-linux-gnu/{name}"), PathBuf::from(path))
            }
            [path, _] if path.starts_with('/') => _ = files.insert(path.to_string(), file(path)),
            _ => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_interpreter_are_found_and_what_is_missing_is_told() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \tlibz.so.1 => /tmp/tree/libz.so.1 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let files = needed(text).unwrap();
        assert_eq!(files["/lib/x86_64-linux-gnu/libz.so.1"], Path::new("/tmp/tree/libz.so.1"));
        assert!(files.contains_key("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(files.len(), 3);
        assert!(needed("\tliba.so.1 => not found\n").is_err());
    }

    #[test]
    fn drivers_and_compilers_are_not_fetched() {
        assert!(is_needed("libjudydebian1") && is_needed("stress-ng"));
        assert!(!is_needed("libllvm15") && !is_needed("libgl1-mesa-dri"));
    }
}
