//! The mount table as text: `/proc/mounts` and `/proc/PID/mountinfo`.

use crate::memory::fallible::Text;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use linux_raw_sys::general as abi;

use super::mount::{self, Mount};
use super::path::{Path, within_file_system};
use crate::{process, sched};

/// Blanks, line ends and backslashes as octal numbers, since blanks separate the fields. It may be longer than a page, and is put where that
/// can fail.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    ' ' | '\t' | '\n' | '\\' | '#' => write!(out, "\\{:03o}", c as u32)?,
                    c => out.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(out, "\\{byte:03o}")?;
            }
        }
        Ok(())
    }
}

fn escape(text: &[u8]) -> Escaped<'_> {
    Escaped(text)
}

/// The flags of the mount itself, `rw` or `ro` in front.
fn flag_text(flags: u32) -> String {
    const NAMES: [(u32, &str); 7] = [
        (abi::MS_NOSUID, ",nosuid"),
        (abi::MS_NODEV, ",nodev"),
        (abi::MS_NOEXEC, ",noexec"),
        (abi::MS_NOATIME, ",noatime"),
        (abi::MS_NODIRATIME, ",nodiratime"),
        (abi::MS_RELATIME, ",relatime"),
        (abi::MS_NOSYMFOLLOW, ",nosymfollow"),
    ];
    let mut out = String::from(read_only_text(flags));
    for (flag, name) in NAMES {
        if flags & flag != 0 {
            out.push_str(name);
        }
    }
    out
}

fn read_only_text(flags: u32) -> &'static str {
    if flags & abi::MS_RDONLY != 0 { "ro" } else { "rw" }
}

/// Where the mount is, as seen from `root`; `None` when it is not below that.
fn mount_point(mount: &Arc<Mount>, root: &Path) -> Option<Vec<u8>> {
    let inside = Path { mount: mount.clone(), dentry: mount.root.clone() };
    let (text, reachable) = inside.to_text(root).ok()?;
    reachable.then_some(text)
}

/// The lines of all mounts that may be seen from `root`. Whoever is to end does not read the rest.
fn lines(root: &Path, mut line: impl FnMut(&mut Text, &Arc<Mount>)) -> crate::errno::Result<Text> {
    let mut out = Text::new();
    mount::each_visible(root, |mount| {
        line(&mut out, mount);
        sched::cond_resched();
        !process::try_current().is_some_and(|thread| thread.kill_pending())
    })?;
    Ok(out)
}

/// `/proc/mounts` for a process with this root.
pub fn mounts(root: &Path) -> crate::errno::Result<Text> {
    lines(root, |out, mount| {
        let Some(point) = mount_point(mount, root) else { return };
        let _ = writeln!(
            out,
            "{} {} {} {}{} 0 0",
            escape(mount.source.as_bytes()),
            escape(&point),
            mount.superblock.kind,
            flag_text(mount.flags()),
            mount.superblock.ops.options(),
        );
    })
}

/// What of its file system the mount shows.
pub(super) fn root_text(mount: &Mount) -> crate::errno::Result<Vec<u8>> {
    // Groups are seen from a namespace's own.
    let group = crate::cgroup::path_of_inode(&mount.root.inode).and_then(|text| text.into_string().ok());
    group.map_or_else(|| within_file_system(&mount.root), |path| Ok(path.into_bytes()))
}

/// `/proc/PID/mountinfo` for a process with this root.
pub fn mountinfo(root: &Path) -> crate::errno::Result<Text> {
    lines(root, |out, mount| {
        let Some(point) = mount_point(mount, root) else { return };
        let parent = mount.place().map_or(mount.id, |place| place.mount.id);
        let Ok(inner) = root_text(mount) else { return };
        let dev = mount.superblock.dev;
        let _ = writeln!(
            out,
            "{} {} {}:{} {} {} {}{} - {} {} {}{}",
            mount.id,
            parent,
            dev.major,
            dev.minor,
            escape(&inner),
            escape(&point),
            flag_text(mount.flags()),
            mount::propagation::fields(mount),
            mount.superblock.kind,
            escape(mount.source.as_bytes()),
            read_only_text(mount.superblock.flags()),
            mount.superblock.ops.options(),
        );
    })
}
