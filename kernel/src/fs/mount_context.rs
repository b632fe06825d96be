//! What fsopen(2) and fspick(2) give: a file system that is being described, until it can be mounted.

use alloc::string::String;
use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::iobuf::Sink;
use super::mount::{self, Mount};
use super::path::Path;
use super::registry::{MountFn, MountRequest};
use crate::errno::{Errno, Result};
use crate::memory::PAGE_SIZE;
use crate::memory::fallible::Text;
use crate::sync::Mutex;

/// What the context is for.
enum Purpose {
    /// A new file system.
    Create(MountFn),
    /// The file system at the root of a mount, which gets other options.
    Reconfigure(Path),
}

#[derive(Default)]
struct State {
    source: String,
    options: String,
    read_only: bool,
    /// The file system, as a mount that is nowhere yet: dropped, it goes with what it holds.
    made: Option<Arc<Mount>>,
    /// The mount was taken, or the change was made.
    done: bool,
}

/// A file system that is being described.
pub struct MountContext {
    purpose: Purpose,
    state: Mutex<State>,
}

impl FileOps for MountContext {
    /// Messages for who configures: the kernel's log has them.
    fn read_at(&self, _: &File, _: u64, _: &mut Sink) -> Result<usize> {
        Err(Errno::ENODATA)
    }
}

fn open(purpose: Purpose) -> Arc<File> {
    let context = MountContext { purpose, state: Mutex::new(State::default()) };
    File::anonymous(Kind::Anonymous, "[fscontext]", Arc::new(context), abi::O_RDWR)
}

/// For a new file system of a type.
pub fn create(make: MountFn) -> Arc<File> {
    open(Purpose::Create(make))
}

/// For the file system that is mounted at `path`; `EINVAL` unless that is the root of a mount.
pub fn pick(path: Path) -> Result<Arc<File>> {
    if !Arc::ptr_eq(&path.dentry, &path.mount.root) {
        return Err(Errno::EINVAL);
    }
    Ok(open(Purpose::Reconfigure(path)))
}

/// The context that an open file is; `EINVAL` for another one.
pub fn context_of(file: &File) -> Result<&MountContext> {
    file.ops_as::<MountContext>().ok_or(Errno::EINVAL)
}

impl MountContext {
    /// FSCONFIG_SET_FLAG and FSCONFIG_SET_STRING.
    pub fn set(&self, key: &str, value: Option<&str>) -> Result<()> {
        let mut state = self.state.lock();
        if state.made.is_some() || state.done {
            return Err(Errno::EBUSY);
        }
        match (key, value) {
            ("ro", None) => state.read_only = true,
            ("rw", None) => state.read_only = false,
            ("source", Some(_)) if !state.source.is_empty() => return Err(Errno::EINVAL),
            ("source", Some(value)) => state.source = value.into(),
            _ => {
                let mut options = Text::from(state.options.as_str());
                if !options.is_empty() {
                    options.push(',');
                }
                options.push_str(key);
                if let Some(value) = value {
                    options.push('=');
                    options.push_str(value);
                }
                let options = options.into_string()?;
                // mount(2) takes a page of them.
                if options.len() >= PAGE_SIZE
                    || key.contains(',')
                    || value.is_some_and(|text| text.contains(','))
                {
                    return Err(Errno::EINVAL);
                }
                if let Purpose::Create(make) = &self.purpose {
                    // An option that does not exist is refused here and now. What there is no room for shows when it is made.
                    match make(&MountRequest { source: &state.source, options: &options }) {
                        Ok(root) => drop(Mount::new(root, "none", 0)),
                        Err(Errno::EINVAL) => return Err(Errno::EINVAL),
                        Err(_) => {}
                    }
                }
                state.options = options;
            }
        }
        Ok(())
    }

    /// FSCONFIG_CMD_CREATE.
    pub fn make(&self) -> Result<()> {
        let mut state = self.state.lock();
        let Purpose::Create(make) = &self.purpose else { return Err(Errno::EBUSY) };
        if state.made.is_some() || state.done {
            return Err(Errno::EBUSY);
        }
        let source = if state.source.is_empty() { "none" } else { &state.source };
        let root = make(&MountRequest { source, options: &state.options })?;
        let read_only = if state.read_only { root.inode.superblock.begin_read_only() } else { 0 };
        state.made = Some(Mount::new(root, source, read_only));
        Ok(())
    }

    /// FSCONFIG_CMD_RECONFIGURE.
    pub fn reconfigure(&self) -> Result<()> {
        let state = self.state.lock();
        let Purpose::Reconfigure(path) = &self.purpose else { return Err(Errno::EBUSY) };
        let kept = path.mount.flags() & !abi::MS_RDONLY;
        let flags = kept | if state.read_only { abi::MS_RDONLY } else { 0 };
        mount::remount(path, flags, false, &state.options)
    }

    /// fsmount(2): the mount, once. `EINVAL` before it was made, `EBUSY` when it was taken.
    pub fn take(&self, flags: u32) -> Result<Path> {
        let mut state = self.state.lock();
        if state.done {
            return Err(Errno::EBUSY);
        }
        let mount = state.made.take().ok_or(Errno::EINVAL)?;
        state.done = true;
        drop(state);
        mount.set_flags(flags);
        mount::check_reveals_nothing(&mount)?;
        Ok(Path { dentry: mount.root.clone(), mount })
    }
}
