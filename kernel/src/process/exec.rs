//! execve(2): another program in the same process.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::{Thread, de_thread, exit, fork, ptrace, rseq, user};
use crate::arch::interrupts;
use crate::arch::trap::{self, TrapFrame};
use crate::errno::{Errno, Result};
use crate::fs::{File, caller, path};
use crate::memory::fallible::{self, TryVec};
use crate::mm::exec::{self, Identity, Image, MAX_STRING, Request, StringList};
use crate::mm::uaccess::{read_cstr, read_user};
use crate::namespaces;
use crate::signal;

/// execve(2) and execveat(2), with addresses in user space.
pub fn execve(
    directory: i32,
    path_at: usize,
    arguments_at: usize,
    environment_at: usize,
    flags: u32,
    frame: &mut TrapFrame,
) -> Result<usize> {
    if flags & !(abi::AT_EMPTY_PATH | abi::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let thread = super::current();
    if fork::over_process_limit(&thread) {
        return Err(Errno::EAGAIN);
    }
    let name = crate::mm::uaccess::read_path(path_at)?;
    let (file, shown) = open(directory, &name, flags)?;
    let arguments = read_strings(arguments_at)?;
    let environment = read_strings(environment_at)?;
    let image = load(file, &shown, arguments, environment)?;
    commit(image, &name, frame)?;
    Ok(0)
}

/// The program of the first process, or another one that the kernel itself starts in the current process.
pub fn execute(path: &str, arguments: Vec<String>, environment: Vec<String>) -> Result<()> {
    let list = |strings: Vec<String>| -> Result<StringList> {
        let mut list = new_list();
        strings.into_iter().try_for_each(|string| list.push(string.into_bytes()))?;
        Ok(list)
    };
    let file = exec::open_program(path.as_bytes())?;
    let image = load(file, path.as_bytes(), list(arguments)?, list(environment)?)?;
    // SAFETY: the frame of this thread's way to user mode, at the top of its own stack.
    let frame = unsafe { &mut *trap::user_frame() };
    commit(image, path.as_bytes(), frame)
}

/// The file, and the name that the program is told: for a descriptor that of /dev/fd, as Linux makes it.
fn open(directory: i32, name: &[u8], flags: u32) -> Result<(Arc<File>, Vec<u8>)> {
    let by_descriptor = directory != abi::AT_FDCWD && name.first() != Some(&b'/');
    let shown = match by_descriptor {
        false => fallible::copy_of(name)?,
        true => name_by_descriptor(directory, name)?,
    };
    let start = caller::start(directory, name)?;
    if name.is_empty() {
        if flags & abi::AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        let place = start.base.clone();
        return Ok((exec::open_place(&start, &place)?, shown));
    }
    let follow = flags & abi::AT_SYMLINK_NOFOLLOW == 0;
    let place = path::resolve(&start, name, follow)?;
    if !follow && place.inode().kind == crate::fs::FileType::Symlink {
        return Err(Errno::ELOOP);
    }
    Ok((exec::open_place(&start, &place)?, shown))
}

/// `/dev/fd/FD`, and the name below it if there is one: with that, it may be longer than a path.
fn name_by_descriptor(directory: i32, name: &[u8]) -> Result<Vec<u8>> {
    let mut shown = alloc::format!("/dev/fd/{directory}").into_bytes();
    if !name.is_empty() {
        shown.try_push(b'/')?;
        shown.try_extend_from_slice(name)?;
    }
    Ok(shown)
}

/// An empty list for the current process.
fn new_list() -> StringList {
    StringList::new(super::current().process.charges.add(0))
}

/// An array of strings that ends with a null pointer; a null array is an empty one, as Linux has it.
fn read_strings(mut at: usize) -> Result<StringList> {
    let mut strings = new_list();
    let mut bytes = 0;
    while at != 0 {
        let string: usize = read_user(at)?;
        if string == 0 {
            break;
        }
        let string = read_cstr(string, MAX_STRING - 1, Errno::E2BIG)?;
        bytes += string.len() + 1 + size_of::<usize>();
        // The exact limit depends on the stack's and is the loader's matter; this one keeps the kernel's memory.
        if bytes > MOST_BYTES {
            return Err(Errno::E2BIG);
        }
        strings.push(string)?;
        at += size_of::<usize>();
        if super::current().kill_pending() {
            return Err(Errno::EINTR);
        }
        if strings.len().is_multiple_of(64) {
            crate::sched::cond_resched();
        }
    }
    Ok(strings)
}

/// Three quarters of the default stack: Linux's bound for all arguments.
const MOST_BYTES: usize = 6 << 20;

fn load(file: Arc<File>, name: &[u8], arguments: StringList, environment: StringList) -> Result<Image> {
    let identity = |_: &Arc<File>| {
        // Set-user-ID bits are not honoured, as on a mount with `nosuid`: no program gains rights by running.
        let own = super::current().credentials();
        Identity {
            uid: own.shown_uid(own.uid),
            euid: own.shown_uid(own.euid),
            gid: own.shown_gid(own.gid),
            egid: own.shown_gid(own.egid),
            secure: false,
        }
    };
    exec::load(Request { file, name, arguments, environment, identity: &identity })
}

/// Puts the new program in the place of the old one. After the point of no return an error ends the process.
fn commit(image: Image, name: &[u8], frame: &mut TrapFrame) -> Result<()> {
    let thread = super::current();
    let process = thread.process.clone();
    let tid = thread.tid();
    // Other threads may have ended already, and there is no way back then. This one ends by the kill that it was interrupted by, on its
    // way to user mode and not here: nobody would let go of the new memory.
    de_thread::de_thread(&thread)?;
    // Words in the old memory that the end of the program changes.
    super::futex::exit_robust_list(&thread);
    super::futex::leave_words(&thread, false);
    exit::clear_child_tid(&thread);
    rseq::forget(&thread);
    thread.trace.set_dispatched(false);
    process.note_resident();
    // What may be executed only, Linux's would_dump(), is shut from its first moment on: to take the old memory apart lasts.
    let old = user::replace_address_space(&thread, &image.space, image.readable);
    drop(old);
    drop(image.charge);
    exit::release_vfork(&process);
    process.actions.lock().reset_for_exec();
    *thread.signals.alt_stack.lock() = signal::AltStack::DISABLED;
    process.timers.exec();
    process.aio.clear();
    let restart = thread.restart.lock().take();
    drop(restart);
    if unshare_files(&thread).is_err() {
        // There is no way back to the old program. As above, not here.
        signal::force_signal(signal::SigInfo::kernel(signal::SIGKILL));
        return Err(Errno::ENOMEM);
    }
    namespaces::after_exec(&thread);
    process.membarrier.store(0, Ordering::SeqCst);
    exit::program_changed(&process);
    // Relaxed: a setting of its own.
    process.refused_gains.store(process.inherited_refusals(), Ordering::Relaxed);
    thread.set_comm(name.rsplit(|byte| *byte == b'/').next().unwrap_or(name));
    interrupts::without(|| {
        // SAFETY: the current thread's own context.
        unsafe { (*thread.context.get()).become_user() };
    });
    // Debuggers know the end of this call by its number.
    let orig_rax = frame.orig_rax;
    *frame = TrapFrame { orig_rax, ..TrapFrame::user(image.entry, image.stack) };
    ptrace::exec_event(frame, tid);
    Ok(())
}

/// The new program has a table of files of its own, without those that are to be closed.
fn unshare_files(thread: &Thread) -> Result<()> {
    let files = thread.files();
    // The process has one thread by now: another process shares the table.
    if files.is_shared() {
        thread.set_files(Some(Arc::new(files.duplicate()?)));
    }
    drop(files);
    thread.files().exec();
    Ok(())
}
