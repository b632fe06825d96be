//! The file system that our guests start with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_link::{Job, job};
use tempfile::TempPath;

use crate::archive::{Archive, Content, Node};
use crate::program;

/// Folders that programs expect, with their permission bits.
const FOLDERS: [(&str, u32); 14] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("lib", 0o755),
    ("lib64", 0o755),
    ("mnt/huge", 0o755),
    ("mnt/huge-1g", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
];

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
        for (path, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("etc/hosts", "127.0.0.1 localhost\n"),
        ] {
            archive.put(path, Node::File(0o644, Content::Bytes(text.into())));
        }
        archive.put("dev/console", Node::Device(5, 1, 0o600));
        Initramfs { archive }
    }

    /// Nothing at all: the file system of an outsider's archive.
    pub fn empty() -> Initramfs {
        Initramfs { archive: Archive::new() }
    }

    /// Puts a program of the host at a guest path, with the libraries that it needs.
    pub fn add_program(&mut self, guest: &str, host: &Path) -> Result<()> {
        for (guest, host) in program::needs(host)? {
            self.add_file(&guest, &host)?;
        }
        self.add_file(guest, host)
    }

    /// Puts a file or a folder of the host at a guest path.
    pub fn add_file(&mut self, guest: &str, host: &Path) -> Result<()> {
        self.archive.put_host(guest, host).with_context(|| host.display().to_string())
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
    fn busybox_links_leave_programs_alone() {
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.is_file())
        else {
            eprintln!("skipped: no busybox here");
            return;
        };
        let mut initramfs = Initramfs::new();
        initramfs.add_bytes("bin/sh", 0o755, "mine");
        initramfs.add_busybox(busybox).unwrap();
        assert!(matches!(initramfs.archive.get("bin/sh"), Some(Node::File(..))));
        assert_eq!(initramfs.archive.get("bin/cat"), Some(&Node::Link("/bin/busybox".into())));
    }
}
