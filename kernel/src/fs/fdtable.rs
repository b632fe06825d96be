//! File descriptors: the small numbers by which a process knows its open files.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use super::dentry::Dentry;
use super::descriptors::Used;
use super::file::File;
use super::inode::Inode;
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::memory::{self, Pressure};
use crate::sync::SpinLock;

struct Slot {
    file: Arc<File>,
    close_on_exec: bool,
}

struct Table {
    slots: Vec<Option<Slot>>,
    used: Used,
}

impl Table {
    fn find_free(&self, from: usize) -> usize {
        self.used.first_free(from)
    }

    fn put(&mut self, fd: usize, slot: Slot) -> Result<Option<Slot>> {
        if fd >= self.slots.len() {
            let more = fd + 1 - self.slots.len();
            fallible::reserve(&mut self.slots, more)?;
            self.used.grow(fd + 1)?;
            self.slots.resize_with(fd + 1, || None);
        }
        self.used.insert(fd);
        Ok(self.slots[fd].replace(slot))
    }

    fn take(&mut self, fd: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(fd)?.take()?;
        self.used.remove(fd);
        Some(slot)
    }
}

/// The descriptors of a process, shared with those that it made with `CLONE_FILES`.
///
/// A descriptor that is closed while another thread uses it leaves that thread its file: `get` counts a
/// reference. Files are let go of outside of the table's lock.
pub struct FdTable {
    table: SpinLock<Table>,
    /// Differs from every other table's: the owner of fcntl(2) record locks.
    id: u64,
}

impl Default for FdTable {
    fn default() -> Self {
        Self::new()
    }
}

impl FdTable {
    /// An empty table.
    pub fn new() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        // Ordering: only the numbers have to differ.
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { table: SpinLock::new(Table { slots: Vec::new(), used: Used::new() }), id }
    }

    /// A copy for a child process: the same open files.
    pub fn duplicate(&self) -> Result<Self> {
        let new = Self::new();
        let table = self.table.lock();
        let used = table.slots.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let copy = |s: &Slot| Slot { file: s.file.clone(), close_on_exec: s.close_on_exec };
        let slots = fallible::collect(table.slots[..used].iter().map(|s| s.as_ref().map(copy)))?;
        *new.table.lock() = Table { slots, used: table.used.try_clone()? };
        Ok(new)
    }

    /// Differs from every other table's: the owner of record locks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The open file of a descriptor; `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Arc<File>> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let table = self.table.lock();
        table.slots.get(fd).and_then(Option::as_ref).map(|s| s.file.clone()).ok_or(Errno::EBADF)
    }

    /// Gives `file` the lowest free descriptor from `min` up; `EMFILE` when that is not below `limit`
    /// (RLIMIT_NOFILE).
    pub fn install(&self, file: Arc<File>, min: usize, limit: usize, close_on_exec: bool) -> Result<i32> {
        // Open files are kernel memory, which is not refused to anyone: so they are refused here in time.
        if memory::pressure() == Pressure::Critical {
            return Err(Errno::ENFILE);
        }
        let mut table = self.table.lock();
        let fd = table.find_free(min);
        if fd >= limit {
            drop(table);
            return Err(Errno::EMFILE);
        }
        table.put(fd, Slot { file, close_on_exec })?;
        Ok(fd as i32)
    }

    /// `EMFILE` when `install` could give no descriptor now.
    pub fn check_room(&self, limit: usize) -> Result<()> {
        if self.table.lock().find_free(0) < limit { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// Gives `file` the descriptor `fd`, closing what was there; `EBADF` when it is not below `limit`.
    pub fn replace(&self, fd: i32, file: Arc<File>, limit: usize, close_on_exec: bool) -> Result<()> {
        let fd = usize::try_from(fd).ok().filter(|fd| *fd < limit).ok_or(Errno::EBADF)?;
        let old = self.table.lock().put(fd, Slot { file, close_on_exec })?;
        self.let_go(old);
        Ok(())
    }

    /// close(2).
    pub fn close(&self, fd: i32) -> Result<()> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self.table.lock().take(fd).ok_or(Errno::EBADF)?;
        self.let_go(Some(slot));
        Ok(())
    }

    /// Closes the descriptors from `first` to `last`, or marks them close-on-exec.
    pub fn close_range(&self, first: usize, last: usize, mark_only: bool) {
        let mut fd = first;
        loop {
            let slot = {
                let mut table = self.table.lock();
                let end = table.slots.len().min(last.saturating_add(1));
                let Some(next) = (fd..end).find(|i| table.slots[*i].is_some()) else { return };
                fd = next + 1;
                if mark_only {
                    if let Some(slot) = &mut table.slots[next] {
                        slot.close_on_exec = true;
                    }
                    continue;
                }
                table.take(next)
            };
            self.let_go(slot);
        }
    }

    /// Whether execve(2) closes the descriptor.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let table = self.table.lock();
        table.slots.get(fd).and_then(Option::as_ref).map(|s| s.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets whether execve(2) closes the descriptor.
    pub fn set_close_on_exec(&self, fd: i32, close: bool) -> Result<()> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut table = self.table.lock();
        let slot = table.slots.get_mut(fd).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        slot.close_on_exec = close;
        Ok(())
    }

    /// execve(2): closes what is marked. The caller has made sure that nobody shares the table.
    pub fn exec(&self) {
        let mut fd = 0;
        loop {
            let slot = {
                let mut table = self.table.lock();
                let marked = |s: &Option<Slot>| s.as_ref().is_some_and(|s| s.close_on_exec);
                let Some(next) = table.slots.iter().skip(fd).position(marked) else { return };
                fd += next;
                table.take(fd)
            };
            self.let_go(slot);
        }
    }

    /// The lowest descriptor from `from` up that is open, with its file.
    pub fn next_open(&self, from: usize) -> Option<(i32, Arc<File>)> {
        let table = self.table.lock();
        let tail = table.slots.get(from..)?;
        let (i, slot) = tail.iter().enumerate().find_map(|(i, s)| s.as_ref().map(|s| (i, s)))?;
        Some(((from + i) as i32, slot.file.clone()))
    }

    /// Bytes of the kernel's memory that go with the descriptors, about: table, open files, and what these hold.
    pub fn kernel_bytes(&self) -> u64 {
        const FILE: u64 = size_of::<File>() as u64;
        /// The name, and perhaps an inode, of a file that has them for itself.
        const NAME: u64 = (size_of::<Dentry>() + size_of::<Inode>()) as u64;
        let mut bytes = self.capacity() as u64 * size_of::<Option<Slot>>() as u64;
        let mut from = 0;
        // One at a time: the table's lock is not held for long, however many there are.
        while let Some((fd, file)) = self.next_open(from) {
            let names = Arc::strong_count(file.dentry()) as u64;
            bytes += FILE + NAME / names + file.ops().kernel_bytes();
            from = fd as usize + 1;
        }
        bytes
    }

    /// Descriptors that the table has room for: `FDSize` in `/proc/PID/status`.
    pub fn capacity(&self) -> usize {
        self.table.lock().slots.len().next_multiple_of(64)
    }

    /// A descriptor of this table no longer refers to the file: POSIX has the process lose its record locks
    /// on it.
    fn let_go(&self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            slot.file.inode().locks.table_closed(self.id);
        }
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let slots = core::mem::take(&mut self.table.get_mut().slots);
        for slot in slots {
            self.let_go(slot);
        }
    }
}
