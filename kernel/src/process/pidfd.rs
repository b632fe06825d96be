//! Descriptors that refer to a process: pidfd_open(2).

use alloc::sync::Arc;

use linux_raw_sys::general as abi;

use super::{Process, limits};
use crate::errno::Result;
use crate::fs::anonymous::Kind;
use crate::fs::poll::Events;
use crate::fs::{File, FileOps};
use crate::sync::WaitQueue;

struct PidFd {
    process: Arc<Process>,
}

impl FileOps for PidFd {
    fn poll(&self, _: &File) -> Events {
        // Readable once the process has ended, whether it was waited for or not.
        if self.process.has_ended() { Events::READABLE } else { Events::empty() }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.process.ended);
    }

    fn pollable(&self) -> bool {
        true
    }
}

/// A new descriptor of the current process for `process`; it is closed on execve(2).
pub fn open(process: &Arc<Process>, flags: u32) -> Result<i32> {
    let ops = Arc::new(PidFd { process: process.clone() });
    let file = File::anonymous(Kind::Anonymous, "[pidfd]", ops, abi::O_RDWR | flags);
    let current = super::current();
    let limit = current.process.limit(limits::NOFILE) as usize;
    current.files().install(file, 0, limit, true)
}

/// The process that a descriptor refers to.
pub fn process_of(file: &File) -> Option<Arc<Process>> {
    file.ops_as::<PidFd>().map(|pidfd| pidfd.process.clone())
}
