//! File descriptors: the small numbers by which a process knows its open files.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::dentry::Dentry;
use super::descriptors::Used;
use super::file::File;
use super::inode::Inode;
use super::slots::{PIECE, Slot, Slots};
use crate::errno::{Errno, Result};
use crate::memory::{self, Pressure};
use crate::process::limits;
use crate::sched;
use crate::sync::{Mutex, SpinLock};

struct Table {
    slots: Slots,
    used: Used,
}

impl Table {
    fn find_free(&self, from: usize) -> usize {
        self.used.first_free(from)
    }

    /// Puts the slot in, and gives what was there. Without memory for it the slot stays with the caller, and so it does (`EMFILE`) when the
    /// table would have to grow over `fs.nr_open`.
    fn put(&mut self, fd: usize, slot: &mut Option<Slot>) -> Result<Option<Slot>> {
        if fd >= self.slots.len() && fd >= limits::nr_open() {
            return Err(Errno::EMFILE);
        }
        self.used.grow(fd + 1)?;
        let old = self.slots.put(fd, slot)?;
        self.used.insert(fd);
        Ok(old)
    }

    fn take(&mut self, fd: usize) -> Option<Slot> {
        let slot = self.slots.take(fd)?;
        self.used.remove(fd);
        Some(slot)
    }
}

/// The descriptors of a process, shared with those that it made with `CLONE_FILES`.
///
/// A descriptor that is closed while another thread uses it leaves that thread its file: `get` counts a
/// reference. Files are let go of outside of the table's lock.
pub struct FdTable {
    /// Held by whoever changes the table, and by who copies it a piece at a time. Taken before the other one.
    changing: Mutex<()>,
    table: SpinLock<Table>,
    /// Differs from every other table's: the owner of fcntl(2) record locks.
    id: u64,
    /// Threads that have it. Whoever only looks at it has a reference for a moment, and decides nothing by that: neither whether a new program
    /// has the table for itself, nor when its descriptors are closed.
    users: AtomicUsize,
    /// The last sum over threads, by its number, that has the table in it.
    counted: AtomicU64,
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
        let table = SpinLock::growing(Table { slots: Slots::new(), used: Used::new() });
        Self { changing: Mutex::new(()), table, id, users: AtomicUsize::new(0), counted: AtomicU64::new(0) }
    }

    /// A thread has it from now on.
    pub fn enter(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    /// A thread has it no more. The last one closes all.
    pub fn leave(&self) {
        if self.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.close_all();
        }
    }

    fn close_all(&self) {
        self.each(0, usize::MAX, |_| true, |_| true);
    }

    /// Whether other threads than the caller's have it.
    pub fn is_shared(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 1
    }

    /// A copy for a child process: the same open files. `EMFILE` when `fs.nr_open` was made smaller than the last of them is.
    pub fn duplicate(&self) -> Result<Self> {
        let mut new = Self::new();
        let _changing = self.changing.lock();
        // What was copied when memory ran out is freed as every table is.
        let copy = new.table.get_mut();
        let pieces = {
            let table = self.table.lock();
            let len = table.used.end().next_multiple_of(PIECE);
            if len > limits::nr_open().next_multiple_of(PIECE) {
                return Err(Errno::EMFILE);
            }
            copy.used = table.used.try_clone()?;
            len / PIECE
        };
        for piece in 0..pieces {
            let copied = self.table.lock().slots.copy_piece(piece, &mut copy.slots);
            copied?;
            sched::cond_resched();
        }
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
        table.slots.get(fd).map(|s| s.file.clone()).ok_or(Errno::EBADF)
    }

    /// Gives `file` the lowest free descriptor from `min` up; `EMFILE` when that is not below `limit`
    /// (RLIMIT_NOFILE).
    pub fn install(&self, file: Arc<File>, min: usize, limit: usize, close_on_exec: bool) -> Result<i32> {
        // Open files are kernel memory, which is not refused to anyone: so they are refused here in time.
        if memory::pressure() == Pressure::Critical {
            return Err(Errno::ENFILE);
        }
        // A file that does not get a descriptor is dropped without locks.
        let mut slot = Some(Slot { file, close_on_exec });
        let _changing = self.changing.lock();
        let mut table = self.table.lock();
        let fd = table.find_free(min);
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        table.put(fd, &mut slot)?;
        Ok(fd as i32)
    }

    /// `EMFILE` when `install` could give no descriptor now.
    pub fn check_room(&self, limit: usize) -> Result<()> {
        if self.table.lock().find_free(0) < limit { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// Gives `file` the descriptor `fd`, closing what was there; `EBADF` when it is not below `limit`.
    pub fn replace(&self, fd: i32, file: Arc<File>, limit: usize, close_on_exec: bool) -> Result<()> {
        let fd = usize::try_from(fd).ok().filter(|fd| *fd < limit).ok_or(Errno::EBADF)?;
        let mut slot = Some(Slot { file, close_on_exec });
        let old = {
            let _changing = self.changing.lock();
            self.table.lock().put(fd, &mut slot)?
        };
        self.let_go(old);
        Ok(())
    }

    /// close(2).
    pub fn close(&self, fd: i32) -> Result<()> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = {
            let _changing = self.changing.lock();
            self.table.lock().take(fd)
        };
        self.let_go(Some(slot.ok_or(Errno::EBADF)?));
        Ok(())
    }

    /// Closes the descriptor if it is one of this file.
    pub fn close_file(&self, fd: i32, file: &Arc<File>) {
        let Ok(fd) = usize::try_from(fd) else { return };
        let slot = {
            let _changing = self.changing.lock();
            let mut table = self.table.lock();
            let is_it = table.slots.get(fd).is_some_and(|slot| Arc::ptr_eq(&slot.file, file));
            if is_it { table.take(fd) } else { None }
        };
        self.let_go(slot);
    }

    /// Closes the descriptors from `first` to `last`, or marks them close-on-exec.
    pub fn close_range(&self, first: usize, last: usize, mark_only: bool) {
        self.each(
            first,
            last,
            |_| true,
            |slot| {
                if mark_only {
                    slot.close_on_exec = true;
                }
                !mark_only
            },
        );
    }

    /// Shows `visit` each open descriptor from `first` to `last` for which `test` says yes, and closes it when that says so.
    fn each(
        &self,
        first: usize,
        last: usize,
        test: impl Fn(&Slot) -> bool,
        visit: impl Fn(&mut Slot) -> bool,
    ) {
        let mut at = first;
        loop {
            let closed = {
                let _changing = self.changing.lock();
                let mut table = self.table.lock();
                if at > last || at >= table.slots.len() {
                    return;
                }
                match table.slots.find(at, &test) {
                    Ok(fd) if fd > last => return,
                    Ok(fd) => {
                        at = fd + 1;
                        let close = table.slots.get_mut(fd).is_some_and(&visit);
                        if close { table.take(fd) } else { None }
                    }
                    Err(next) => {
                        at = next;
                        None
                    }
                }
            };
            self.let_go(closed);
            sched::cond_resched();
        }
    }

    /// Whether execve(2) closes the descriptor.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let table = self.table.lock();
        table.slots.get(fd).map(|s| s.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets whether execve(2) closes the descriptor.
    pub fn set_close_on_exec(&self, fd: i32, close: bool) -> Result<()> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let _changing = self.changing.lock();
        let mut table = self.table.lock();
        let slot = table.slots.get_mut(fd).ok_or(Errno::EBADF)?;
        slot.close_on_exec = close;
        Ok(())
    }

    /// execve(2): closes what is marked. The caller has made sure that nobody shares the table.
    pub fn exec(&self) {
        self.each(0, usize::MAX, |slot| slot.close_on_exec, |_| true);
    }

    /// The lowest descriptor from `from` up that is open, with its file.
    pub fn next_open(&self, from: usize) -> Option<(i32, Arc<File>)> {
        let mut at = from;
        loop {
            let table = self.table.lock();
            if at >= table.slots.len() {
                return None;
            }
            match table.slots.find(at, |_| true) {
                Ok(fd) => return table.slots.get(fd).map(|slot| (fd as i32, slot.file.clone())),
                Err(next) => at = next,
            }
        }
    }

    /// Whether the sum with this number does not have the table in it yet; from now on it has. Of two sums at once each may have it twice.
    pub fn is_new_in(&self, sum: u64) -> bool {
        // Relaxed: see above.
        self.counted.swap(sum, Ordering::Relaxed) != sum
    }

    /// Bytes of the kernel's memory that go with the descriptors, about: table, open files, and what these hold.
    pub fn kernel_bytes(&self) -> u64 {
        const FILE: u64 = size_of::<File>() as u64;
        /// The name, and perhaps an inode, of a file that has them for itself.
        const NAME: u64 = (size_of::<Dentry>() + size_of::<Inode>()) as u64;
        let mut bytes = self.table.lock().slots.bytes() as u64;
        let mut from = 0;
        // One at a time: the table's lock is not held for long, however many there are.
        while let Some((fd, file)) = self.next_open(from) {
            let names = Arc::strong_count(file.dentry()) as u64;
            bytes += FILE + NAME / names + file.ops().kernel_bytes();
            from = fd as usize + 1;
            if from.is_multiple_of(64) {
                sched::cond_resched();
            }
        }
        bytes
    }

    /// Descriptors that the table has room for: `FDSize` in `/proc/PID/status`.
    pub fn capacity(&self) -> usize {
        self.table.lock().used.room().next_multiple_of(64)
    }

    /// A descriptor of this table no longer refers to the file: POSIX has the process lose its record locks
    /// on it.
    fn let_go(&self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            slot.file.inode().locks.table_closed(self.id);
            let stays = Arc::strong_count(&slot.file) > 1;
            let then = if stays { slot.file.ops().descriptor_closed(&slot.file) } else { None };
            drop(slot);
            if let Some(then) = then {
                then();
            }
        }
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        // Of a copy that no thread ever had.
        self.close_all();
        while self.table.get_mut().slots.drop_last_piece() {
            sched::cond_resched();
        }
    }
}
