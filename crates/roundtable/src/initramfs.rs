//! The file system that our guests start with.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use guest_link::{Job, job, user};
use tempfile::TempPath;

use crate::archive::{Archive, Attributes, Node, Owners, Special};
use crate::content::Content;
use crate::program;

/// Folders that programs expect, with their permission bits.
const FOLDERS: [(&str, u32); 14] = [
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/sbin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt/huge", 0o755),
    ("mnt/huge-1g", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
];

/// Folders that are one with those below /usr: else a library that is asked for by both names would be there
/// twice, and be loaded twice.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// What a machine knows of itself.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
/// So many links on the way to a file, as on Linux.
const MOST_LINKS: usize = 40;

/// A guest's file system in the making.
#[derive(Clone, Debug)]
pub struct Initramfs {
    archive: Archive,
}

impl Initramfs {
    /// The usual folders, and the few files in /etc that the C library reads.
    pub fn new() -> Initramfs {
        let mut archive = Archive::new();
        for (path, mode) in FOLDERS {
            archive.put(path, Node::Folder(mode));
        }
        for name in MERGED {
            archive.put(name, Node::Link(format!("usr/{name}")));
        }
        for (path, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
            ("etc/hosts", HOSTS),
        ] {
            archive.put(path, Node::File(0o644, Content::Bytes(text.into())));
        }
        archive.put("dev/console", Node::Special(Special::Character(5, 1), 0o600));
        Initramfs { archive }
    }

    /// Nothing at all: the file system of an outsider's archive.
    pub fn empty() -> Initramfs {
        Initramfs { archive: Archive::new() }
    }

    /// Puts a program of the host at a guest path, with the libraries that it needs.
    pub fn add_program(&mut self, guest: &str, host: &Path) -> Result<()> {
        let needs = program::needs(host)?;
        if let Some(library) = needs.missing.first() {
            bail!("{}: its library {library} is not on the host", host.display());
        }
        needs.files.iter().try_for_each(|file| self.add_same(file))?;
        if Path::new(guest) == host { self.add_same(host) } else { self.add_file(guest, host) }
    }

    /// Puts a file of the host at the same path, by way of the same links. So a library with several names is
    /// one file in the guest, too, and a program finds what lies beside it.
    fn add_same(&mut self, host: &Path) -> Result<()> {
        let text = |path: &Path| {
            path.to_str().map(str::to_string).with_context(|| format!("{}: not UTF-8", path.display()))
        };
        let mut place = PathBuf::from("/");
        let mut rest: Vec<_> = host.iter().rev().map(ToOwned::to_owned).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_encoded_bytes() {
                b".." => {
                    place.pop();
                    continue;
                }
                // A slash leads back to the root.
                _ => place.push(&part),
            }
            let Ok(target) = std::fs::read_link(&place) else { continue };
            links += 1;
            ensure!(links <= MOST_LINKS, "{}: too many links", host.display());
            self.archive.put(&text(&place)?, Node::Link(text(&target)?));
            place.pop();
            rest.extend(target.iter().rev().map(ToOwned::to_owned));
        }
        self.add_file(&text(&place)?, &place)
    }

    /// Puts a file or a folder of the host at a guest path.
    pub fn add_file(&mut self, guest: &str, host: &Path) -> Result<()> {
        self.take(guest, host).map(drop)
    }

    /// Does that; gives the ELF files of a folder.
    fn take(&mut self, guest: &str, host: &Path) -> Result<Vec<PathBuf>> {
        let mut programs = Vec::new();
        let is_folder = host.is_dir();
        let mut each = |_: &str, file: &Path| {
            if is_folder && program::is_elf(file) {
                programs.push(file.to_path_buf());
            }
        };
        self.archive.put_host(guest, host, Owners::Root, &mut each)?;
        Ok(programs)
    }

    /// Puts a folder of the host at a guest path, as it is, with the libraries that programs in it need.
    /// Gives those that are neither in it nor on the host, each with its first user: such a program may never
    /// run.
    pub fn add_folder(&mut self, guest: &str, host: &Path) -> Result<Vec<(String, PathBuf)>> {
        let programs = self.take(guest, host)?;
        let inside: BTreeSet<_> = programs.iter().filter_map(|path| path.file_name()).collect();
        let mut missing = BTreeMap::new();
        for program in &programs {
            // What is no program of this machine is a file like others.
            let Ok(needs) = program::needs(program) else { continue };
            for file in needs.files.iter().filter(|file| !file.starts_with(host)) {
                self.add_same(file)?;
            }
            for library in needs.missing.into_iter().filter(|name| !inside.contains(OsStr::new(name))) {
                missing.entry(library).or_insert_with(|| program.clone());
            }
        }
        Ok(missing.into_iter().collect())
    }

    /// Whether there is something at a guest path.
    pub fn has(&self, guest: &str) -> bool {
        self.archive.entry(guest).is_some()
    }

    /// Puts these bytes at a guest path.
    pub fn add_bytes(&mut self, guest: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.archive.put(guest, Node::File(mode, Content::Bytes(bytes.into())));
    }

    /// Puts busybox at /bin/busybox, with a link for each of its programs that has no file yet.
    pub fn add_busybox(&mut self, host: &Path) -> Result<()> {
        self.add_program("bin/busybox", host)?;
        let output = Command::new(host)
            .arg("--list-full")
            .output()
            .with_context(|| format!("{} --list-full", host.display()))?;
        let names = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || names.is_empty() {
            bail!("{} --list-full names no programs", host.display());
        }
        for path in names.lines() {
            let path = path.strip_prefix("usr/").unwrap_or(path);
            if path != "bin/busybox" && self.archive.get(path).is_none() {
                self.archive.put(path, Node::Link("/bin/busybox".into()));
            }
        }
        Ok(())
    }

    /// A root file system as it is, with nothing of ours in it but what it cannot do without.
    pub fn of_root(archive: Archive) -> Initramfs {
        let mut initramfs = Initramfs { archive };
        for (path, mode) in FOLDERS.into_iter().filter(|(path, _)| !path.starts_with("usr/")) {
            if initramfs.archive.get(path).is_none() {
                initramfs.archive.put(path, Node::Folder(mode));
            }
        }
        // Images leave this file to whoever runs them; without it nothing is known of localhost.
        let hosts = initramfs.archive.get("etc/hosts");
        if hosts.is_none_or(|node| matches!(node, Node::File(_, content) if content.is_empty())) {
            initramfs.add_bytes("etc/hosts", 0o644, HOSTS);
        }
        initramfs.archive.put("dev/console", Node::Special(Special::Character(5, 1), 0o600));
        initramfs
    }

    /// Lays what another archive holds over this one.
    pub fn lay_over(&mut self, upper: Archive) {
        self.archive.lay_over(upper);
    }

    /// Adds a user who is not there yet, as a package's set-up would, with a folder of the same name.
    pub fn add_user(&mut self, name: &str) -> Result<()> {
        const ID: u32 = 1000;
        for (path, line) in [
            ("etc/passwd", format!("{name}:x:{ID}:{ID}:{name}:/home/{name}:/bin/sh\n")),
            ("etc/group", format!("{name}:x:{ID}:\n")),
        ] {
            let mut text = match self.archive.get(path) {
                Some(Node::File(_, content)) => content.read().with_context(|| path.to_string())?,
                _ => Vec::new(),
            };
            let known = text.split(|&byte| byte == b'\n').any(|line| {
                line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b':'))
            });
            if !known {
                text.extend(line.into_bytes());
                self.add_bytes(path, 0o644, text);
                let owner = (ID, ID);
                self.archive.put_owned(&format!("home/{name}"), Node::Folder(0o755), Attributes::of(owner));
            }
        }
        Ok(())
    }

    /// Whether the guest will know whom a job is to run as: better said here than there.
    pub fn check_user(&self, wanted: &str) -> Result<()> {
        let text = |path| -> Result<String> {
            match self.archive.follow(path) {
                Some(Node::File(_, content)) => Ok(String::from_utf8_lossy(&content.read()?).into_owned()),
                _ => Ok(String::new()),
            }
        };
        let found = user::find(wanted, &text("etc/passwd")?, &text("etc/group")?);
        ensure!(found.is_some(), "there is no user {wanted} in the guest's /etc/passwd");
        Ok(())
    }

    /// Puts our init and its job beside a root file system that may have a first process of its own.
    pub fn set_job_beside(&mut self, init: &Path, job: &Job) -> Result<()> {
        self.archive.put(".roundtable", Node::Folder(0o700));
        self.add_file(job::INIT_PATH, init)?;
        self.add_bytes(job::PATH, 0o600, job.encode());
        Ok(())
    }

    /// Makes our init PID 1, with this job.
    pub fn set_job(&mut self, init: &Path, job: &Job) -> Result<()> {
        self.add_program("init", init)?;
        self.archive.put(".roundtable", Node::Folder(0o700));
        self.add_bytes(job::PATH, 0o600, job.encode());
        Ok(())
    }

    /// Writes the archive to a file of its own in `folder`, which goes with what is returned.
    pub fn write_temporary(&self, folder: &Path, gzip: bool) -> Result<TempPath> {
        let path = tempfile::Builder::new()
            .prefix("initramfs-")
            .suffix(".cpio")
            .tempfile_in(folder)
            .with_context(|| folder.display().to_string())?
            .into_temp_path();
        self.archive.write_file(&path, gzip).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Default for Initramfs {
    fn default() -> Initramfs {
        Initramfs::new()
    }
}

/// Parses `HOST[:GUEST]`; without a guest path the file has the same absolute path there.
pub fn parse_file_option(text: &str) -> Result<(PathBuf, String)> {
    let (host, guest) = match text.rsplit_once(':') {
        Some((host, guest)) if guest.starts_with('/') => (host, guest.to_string()),
        Some(_) => bail!("{text}: the path in the guest starts with a slash"),
        None => {
            let path = std::path::absolute(text)?;
            (text, path.to_str().with_context(|| format!("{text}: not UTF-8"))?.to_string())
        }
    };
    Ok((PathBuf::from(host), guest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_option_names_host_and_guest() {
        assert_eq!(parse_file_option("a/b:/c").unwrap(), (PathBuf::from("a/b"), "/c".into()));
        assert_eq!(parse_file_option("/a/b").unwrap(), (PathBuf::from("/a/b"), "/a/b".into()));
        assert!(parse_file_option("a:b").is_err());
    }

    #[test]
    fn libraries_keep_their_links_and_are_there_once() {
        let mut initramfs = Initramfs::new();
        let sh = Path::new("/bin/sh");
        initramfs.add_program("/bin/sh", sh).unwrap();
        let real = std::fs::canonicalize(sh).unwrap();
        let at = |path: &Path| initramfs.archive.get(path.to_str().unwrap());
        assert!(matches!(at(&real), Some(Node::File(_, Content::Host(_)))), "{}", real.display());
        if let Ok(target) = std::fs::read_link(sh) {
            assert_eq!(at(sh), Some(&Node::Link(target.to_str().unwrap().into())));
        }
        for file in program::needs(sh).unwrap().files {
            let real = std::fs::canonicalize(&file).unwrap();
            assert!(matches!(at(&real), Some(Node::File(..))), "{} is {}", file.display(), real.display());
        }
    }

    #[test]
    fn a_folder_brings_the_libraries_of_its_programs() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("programs");
        std::fs::create_dir(&inside).unwrap();
        std::fs::copy("/bin/sh", inside.join("shell")).unwrap();
        std::fs::write(inside.join("text"), "\x7fEL").unwrap();
        let mut initramfs = Initramfs::new();
        assert_eq!(initramfs.add_folder("/opt", folder.path()).unwrap(), []);
        assert!(matches!(initramfs.archive.get("opt/programs/shell"), Some(Node::File(..))));
        for file in program::needs(Path::new("/bin/sh")).unwrap().files {
            assert!(initramfs.archive.get(file.to_str().unwrap()).is_some(), "{}", file.display());
        }
    }

    #[test]
    fn busybox_links_leave_programs_alone() {
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.is_file())
        else {
            eprintln!("skipped: no busybox here");
            return;
        };
        let mut initramfs = Initramfs::new();
        initramfs.add_bytes("bin/sh", 0o755, "mine");
        initramfs.add_busybox(busybox).unwrap();
        assert_eq!(initramfs.archive.get("usr/bin/cat"), initramfs.archive.get("bin/cat"));
        assert!(matches!(initramfs.archive.get("bin/sh"), Some(Node::File(..))));
        assert_eq!(initramfs.archive.get("bin/cat"), Some(&Node::Link("/bin/busybox".into())));
    }
}
