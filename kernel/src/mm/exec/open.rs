//! The files of programs: opening them, and keeping writers out while they run.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::fs::path::{self, Start};
use crate::fs::{File, FileType, Path, access, caller};

/// Opens the program at `path`, relative to the current thread's working directory.
pub fn open_program(path: &[u8]) -> Result<Arc<File>> {
    let context = caller::context();
    let root = context.root();
    let start = Start { root, base: context.cwd(), credentials: caller::credentials(), resolve: 0 };
    let place = path::resolve(&start, path, true)?;
    open_place(&start, &place)
}

/// Opens the program at a place. `EACCES` unless it is a regular file that may be executed, on a mount that allows it.
pub fn open_place(start: &Start, place: &Path) -> Result<Arc<File>> {
    let inode = place.inode();
    if inode.kind != FileType::Regular || place.mount.has(abi::MS_NOEXEC) {
        return Err(Errno::EACCES);
    }
    start.credentials.check(inode, access::EXECUTE)?;
    let flags = abi::O_RDONLY | abi::O_LARGEFILE;
    let ops = inode.ops.open(place, flags)?;
    let file = File::new(place.clone(), ops, flags);
    inode.ops.opened(&file)?;
    Ok(file)
}

/// Whether the current thread may read the file, which it may execute.
pub(super) fn may_read(file: &File) -> bool {
    caller::credentials().check(file.inode(), access::READ).is_ok()
}

/// A program's file that nobody may write to while this lives.
pub struct Executable(Arc<File>);

impl Executable {
    /// `ETXTBSY` while somebody has the file open for writing.
    pub fn new(file: Arc<File>) -> Result<Arc<Self>> {
        file.inode().deny_writing()?;
        Ok(Arc::new(Self(file)))
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.0
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        self.0.inode().allow_writing();
    }
}
