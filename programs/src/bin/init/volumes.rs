//! Folders of the host, mounted where the job wants them.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use guest_link::job::Volume;
use guest_link::user::User;

/// Mounts one; the error is the kernel's, with what was done.
pub fn mount(volume: &Volume, user: Option<&User>) -> Result<(), (String, io::Error)> {
    let shown = String::from_utf8_lossy(&volume.path).into_owned();
    fs::create_dir_all(OsStr::from_bytes(&volume.path))
        .map_err(|error| (format!("mkdir {shown} for a volume"), error))?;
    let mut options = String::from("trans=virtio,version=9p2000.L");
    if let Some((owner, group)) = volume.owner {
        let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
        options.push_str(&format!(",owner={owner}:{uid},group={group}:{gid}"));
    }
    let c = |text: &[u8]| CString::new(text).expect("the job file's texts have no NUL");
    let (tag, path, options) = (c(volume.tag.as_bytes()), c(&volume.path), c(options.as_bytes()));
    let flags = if volume.read_only { libc::MS_RDONLY } else { 0 };
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    let result =
        unsafe { libc::mount(tag.as_ptr(), path.as_ptr(), c"9p".as_ptr(), flags, options.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err((format!("mount the volume {shown}"), io::Error::last_os_error())) }
}
