//! `/proc/PID` and `/proc/PID/task/TID`.
//!
//! A directory's inode, and that of each file in it, holds a [`Target`]: who is meant, not the process itself, which may end at any
//! time and is then gone from here.

mod descriptors;
mod map_files;
mod memory;
mod namespaces;
mod query;
mod status;

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::hide::Options;
use super::{bytes, parse_pid, superblock};
use crate::errno::{Errno, Result};
use crate::fs::dentry::Dentry;
use crate::fs::inode::{Attributes, Dirent, Inode, InodeOps};
use crate::fs::path::Path;
use crate::fs::pseudo::{Text, TextInode};
use crate::fs::stat::{DeviceId, FileType};
use crate::fs::{File, caller, mount_text};
use crate::memory::fallible;
use crate::memory::inject;
use crate::mm::{AddressSpace, mshare};
use crate::namespaces::View;
use crate::process::{self, Pid, Process, Thread, oom};
use crate::sched;
use namespaces::Setting;

/// A process, or one thread of it.
#[derive(Clone)]
pub struct Target {
    /// The kernel's own number of the process.
    pid: Pid,
    /// Where it is seen from.
    view: View,
    process: Weak<Process>,
    /// For `task/TID`.
    thread: Option<Weak<Thread>>,
    /// What the mount hides by which it was found.
    options: Options,
}

impl Target {
    /// The process, while it is there; `ESRCH` once it was waited for.
    fn process(&self) -> Result<Arc<Process>> {
        let process = self.process.upgrade().ok_or(Errno::ESRCH)?;
        let registered = process::find_global(self.pid).is_some_and(|p| Arc::ptr_eq(&p, &process));
        if registered { Ok(process) } else { Err(Errno::ESRCH) }
    }

    /// The thread that is meant: the first, or the one of `task/TID`.
    fn thread(&self) -> Result<Arc<Thread>> {
        let process = self.process()?;
        match &self.thread {
            None => process.leader().ok_or(Errno::ESRCH),
            Some(thread) => {
                let thread = thread.upgrade().ok_or(Errno::ESRCH)?;
                let registered = process::find_thread_global(thread.tid());
                let same = registered.is_some_and(|t| Arc::ptr_eq(&t, &thread));
                if same { Ok(thread) } else { Err(Errno::ESRCH) }
            }
        }
    }

    fn is_task(&self) -> bool {
        self.thread.is_some()
    }

    /// Distinguishes the inodes of processes, threads, and their files.
    fn ino(&self, file: u64) -> u64 {
        let id = match &self.thread {
            None => self.pid,
            Some(thread) => thread.upgrade().map_or(0, |t| t.tid()),
        };
        1 << 48 | u64::from(self.is_task()) << 47 | u64::from(id) << 24 | file
    }

    /// May the current thread look into the process, as ptrace(2) would let it? `EACCES`.
    fn check_access(&self) -> Result<()> {
        let process = self.process()?;
        if may_look_into(&process) { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// `EPERM` when the mount hides what is in the directory.
    fn check_open(&self) -> Result<()> {
        if self.options.opens(|| self.check_access().is_ok()) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// The memory of the process, into which the current thread may look: of the program about which that was asked. `None` for a zombie.
    fn memory(&self) -> Result<Option<Arc<AddressSpace>>> {
        self.process()?.mm_if(|| self.check_access())
    }

    /// Owner of the files: the effective user, or root for what may not be looked into.
    fn owner(&self) -> (u32, u32) {
        match self.process() {
            Ok(process) if process.is_dumpable() => {
                let credentials = process.credentials();
                (credentials.euid, credentials.egid)
            }
            _ => (0, 0),
        }
    }

    fn inode(&self, file: u64, kind: FileType, permissions: u32, ops: impl InodeOps) -> Arc<Inode> {
        let (uid, gid) = self.owner();
        let nlink = if kind == FileType::Directory { 2 } else { 1 };
        let attributes = Attributes { nlink, ..Attributes::new(permissions, uid, gid) };
        Inode::with_number(superblock(), self.ino(file), kind, DeviceId::default(), attributes, ops)
    }
}

/// May the current thread look into the process, as ptrace(2) would let it?
pub fn may_look_into(process: &Arc<Process>) -> bool {
    let thread = process::current();
    if Arc::ptr_eq(process, &thread.process) {
        return true;
    }
    let own = thread.credentials();
    let other = process.credentials();
    own.may_look_into(&other, (own.fsuid, own.fsgid), process.is_dumpable())
}

/// The inode number of `/proc/PID`.
pub fn directory_ino(pid: Pid) -> u64 {
    1 << 48 | u64::from(pid) << 24
}

/// The process whose `/proc/PID` the open file is. `ESRCH` when that has ended.
pub fn of_directory(file: &File) -> Option<Result<Arc<Process>>> {
    let directory = file.inode().ops_as::<ProcessDirectory>()?;
    (!directory.0.is_task()).then(|| directory.0.process())
}

/// The directory of a process.
pub fn lookup(
    dir: &Arc<Dentry>,
    name: &[u8],
    number: Pid,
    view: &View,
    options: Options,
) -> Result<Arc<Dentry>> {
    // Threads that are not the first can be named, but are not listed.
    let global = view.global(number).ok_or(Errno::ENOENT)?;
    let thread = process::find_thread_global(global).ok_or(Errno::ENOENT)?;
    let process = thread.process.clone();
    if !options.shows(|| may_look_into(&process)) {
        return Err(Errno::ENOENT);
    }
    let target = Target {
        options,
        pid: process.pid,
        view: view.clone(),
        process: Arc::downgrade(&process),
        thread: (!thread.is_leader()).then(|| Arc::downgrade(&thread)),
    };
    child_directory(dir, name, target)
}

fn child_directory(dir: &Arc<Dentry>, name: &[u8], target: Target) -> Result<Arc<Dentry>> {
    let same = |inode: &Inode| {
        inode.ops_as::<ProcessDirectory>().is_some_and(|d| {
            let one = |a: &Option<Weak<Thread>>| a.as_ref().map(Weak::as_ptr);
            Weak::ptr_eq(&d.0.process, &target.process)
                && one(&d.0.thread) == one(&target.thread)
                && d.0.options == target.options
        })
    };
    let make = || Ok(target.inode(0, FileType::Directory, 0o555, ProcessDirectory(target.clone())));
    let dentry = dir.child(name, same, make)?;
    // The owner changes with the process's identity.
    let (uid, gid) = target.owner();
    dentry.inode.update(|a| (a.uid, a.gid) = (uid, gid));
    Ok(dentry)
}

/// How an entry of such a directory is made.
enum Make {
    /// A text that anybody with the permissions may read.
    Text(fn(&Target) -> Result<Vec<u8>>),
    /// A text for those who may look into the process.
    Private(fn(&Target) -> Result<Vec<u8>>),
    /// A text that can be set.
    Setting(fn(&Target) -> Result<Vec<u8>>, fn(&Target, &[u8]) -> Result<()>),
    /// A symbolic link that leads to a place without going by its text.
    Link(fn(&Target) -> Result<Path>),
    /// `fd`, `fdinfo`.
    Descriptors { info: bool },
    /// `map_files`.
    MapFiles,
    /// `task`.
    Tasks,
    /// `mem`, `pagemap`, `maps`, `smaps`.
    Memory(memory::Kind),
    /// `ns`.
    Namespaces,
    /// Sets something of one of the process's namespaces.
    Namespace(Setting),
}

struct Entry {
    name: &'static str,
    permissions: u32,
    place: Place,
    make: Make,
}

/// Which of the directories have an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Both,
    /// Not `task/TID`.
    Process,
    /// `task/TID` alone.
    Task,
}

const fn entry(name: &'static str, permissions: u32, make: Make) -> Entry {
    Entry { name, permissions, place: Place::Both, make }
}

const ENTRIES: &[Entry] = &[
    Entry { place: Place::Process, ..entry("task", 0o555, Make::Tasks) },
    Entry { place: Place::Task, ..entry("children", 0o444, Make::Text(status::children)) },
    entry("fd", 0o500, Make::Descriptors { info: false }),
    entry("ns", 0o511, Make::Namespaces),
    Entry { place: Place::Process, ..entry("map_files", 0o500, Make::MapFiles) },
    entry("uid_map", 0o644, Make::Namespace(Setting::Users)),
    entry("gid_map", 0o644, Make::Namespace(Setting::Groups)),
    entry("setgroups", 0o644, Make::Namespace(Setting::Setgroups)),
    entry("timens_offsets", 0o644, Make::Namespace(Setting::TimeOffsets)),
    entry("fdinfo", 0o555, Make::Descriptors { info: true }),
    entry("environ", 0o400, Make::Private(memory::environ)),
    entry("auxv", 0o400, Make::Private(memory::auxv)),
    entry("status", 0o444, Make::Text(status::status)),
    entry("personality", 0o400, Make::Private(status::personality)),
    entry("limits", 0o444, Make::Text(status::limits)),
    entry("comm", 0o644, Make::Setting(comm, set_comm)),
    entry("syscall", 0o400, Make::Private(status::syscall)),
    entry("cmdline", 0o444, Make::Text(memory::cmdline)),
    entry("stat", 0o444, Make::Text(status::stat)),
    entry("statm", 0o444, Make::Text(memory::statm)),
    entry("maps", 0o444, Make::Memory(memory::Kind::Maps)),
    entry("numa_maps", 0o444, Make::Memory(memory::Kind::NumaMaps)),
    entry("mem", 0o600, Make::Memory(memory::Kind::Memory)),
    entry("cwd", 0o777, Make::Link(cwd)),
    entry("root", 0o777, Make::Link(root)),
    entry("exe", 0o777, Make::Link(exe)),
    entry("mounts", 0o444, Make::Text(mounts)),
    entry("mountinfo", 0o444, Make::Text(mountinfo)),
    entry("smaps", 0o444, Make::Memory(memory::Kind::Smaps)),
    entry("smaps_rollup", 0o444, Make::Private(memory::smaps_rollup)),
    entry("pagemap", 0o400, Make::Memory(memory::Kind::Pagemap)),
    entry("wchan", 0o444, Make::Text(status::wchan)),
    entry("cgroup", 0o444, Make::Text(cgroup)),
    entry("schedstat", 0o444, Make::Text(status::schedstat)),
    entry("oom_score", 0o444, Make::Text(oom_score)),
    entry("oom_adj", 0o644, Make::Setting(oom_adj, set_oom_adj)),
    entry("oom_score_adj", 0o644, Make::Setting(oom_score_adj, set_oom_score_adj)),
    entry("coredump_filter", 0o644, Make::Setting(dump_filter, set_dump_filter)),
    entry("io", 0o400, Make::Private(status::io)),
    entry(FAIL_NTH, 0o644, Make::Setting(fail_nth, set_fail_nth)),
];

/// The allocation of the thread that fails on purpose: only where that can be.
const FAIL_NTH: &str = "fail-nth";

/// Offset of the first entry.
const FIRST_OFFSET: u64 = 2;

/// `/proc/PID`.
struct ProcessDirectory(Target);

impl ProcessDirectory {
    fn entries(&self) -> impl Iterator<Item = (u64, &'static Entry)> {
        let elsewhere = if self.0.is_task() { Place::Process } else { Place::Task };
        let all = ENTRIES.iter().enumerate().map(|(i, e)| (i as u64 + 1, e));
        all.filter(move |(_, e)| e.place != elsewhere)
            .filter(|(_, e)| inject::IS_BUILT_IN || e.name != FAIL_NTH)
    }
}

impl InodeOps for ProcessDirectory {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        self.0.thread().map_err(|_| Errno::ENOENT)?;
        self.0.check_open()?;
        let (number, entry) = self.entries().find(|(_, e)| e.name.as_bytes() == name).ok_or(Errno::ENOENT)?;
        let target = self.0.clone();
        let (number, mode) = (number << 16, entry.permissions);
        let make = || {
            Ok(match entry.make {
                Make::Text(show) => target.text(
                    number,
                    mode,
                    ProcessText { target: target.clone(), show, store: None, private: false },
                ),
                Make::Private(show) => target.text(
                    number,
                    mode,
                    ProcessText { target: target.clone(), show, store: None, private: true },
                ),
                Make::Setting(show, store) => {
                    let text =
                        ProcessText { target: target.clone(), show, store: Some(store), private: false };
                    target.text(number, mode, text)
                }
                Make::Link(place) => {
                    let link = PlaceLink { target: target.clone(), place };
                    target.inode(number, FileType::Symlink, mode, link)
                }
                Make::Descriptors { info } => {
                    let ops = descriptors::Descriptors { target: target.clone(), info };
                    target.inode(number, FileType::Directory, mode, ops)
                }
                Make::Namespaces => {
                    target.inode(number, FileType::Directory, mode, namespaces::Links(target.clone()))
                }
                Make::Namespace(setting) => {
                    let ops = namespaces::SettingInode { target: target.clone(), setting };
                    target.inode(number, FileType::Regular, mode, ops)
                }
                Make::MapFiles => {
                    target.inode(number, FileType::Directory, mode, map_files::MapFiles(target.clone()))
                }
                Make::Tasks => target.inode(number, FileType::Directory, mode, Tasks(target.clone())),
                Make::Memory(kind) => {
                    let ops = memory::MemoryInode { target: target.clone(), kind };
                    target.inode(number, FileType::Regular, mode, ops)
                }
            })
        };
        let dentry = dir.child(name, |_| true, make)?;
        let (uid, gid) = self.0.owner();
        dentry.inode.update(|a| (a.uid, a.gid) = (uid, gid));
        Ok(dentry)
    }

    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        self.0.thread().map_err(|_| Errno::ENOENT)?;
        self.0.check_open()?;
        for (number, entry) in self.entries().filter(|(n, _)| n + FIRST_OFFSET > from) {
            let kind = match entry.make {
                Make::Link(_) => FileType::Symlink,
                Make::Descriptors { .. } | Make::MapFiles | Make::Tasks | Make::Namespaces => {
                    FileType::Directory
                }
                _ => FileType::Regular,
            };
            let ino = self.0.ino(number << 16);
            let next_offset = number + FIRST_OFFSET;
            if !emit(Dirent { ino, next_offset, kind, name: entry.name.as_bytes() }) {
                break;
            }
        }
        Ok(())
    }
}

impl Target {
    fn text(&self, number: u64, permissions: u32, text: ProcessText) -> Arc<Inode> {
        self.inode(number, FileType::Regular, permissions, TextInode(Arc::new(text)))
    }
}

/// A file about a process.
struct ProcessText {
    target: Target,
    show: fn(&Target) -> Result<Vec<u8>>,
    store: Option<Store>,
    private: bool,
}

/// Takes what a program writes to the file.
type Store = fn(&Target, &[u8]) -> Result<()>;

impl Text for ProcessText {
    fn show(&self) -> Result<Vec<u8>> {
        self.target.thread()?;
        if self.private {
            self.target.check_access()?;
        }
        (self.show)(&self.target)
    }

    fn store(&self, text: &[u8]) -> Result<()> {
        match self.store {
            Some(store) => store(&self.target, text),
            None => Err(Errno::EIO),
        }
    }
}

/// `exe`, `cwd`, `root`.
struct PlaceLink {
    target: Target,
    place: fn(&Target) -> Result<Path>,
}

impl PlaceLink {
    fn place(&self) -> Result<Path> {
        self.target.thread().map_err(|_| Errno::ENOENT)?;
        self.target.check_access()?;
        let place = (self.place)(&self.target)?;
        // It may be a program's that has taken the place of the other meanwhile.
        self.target.check_access()?;
        Ok(place)
    }
}

impl InodeOps for PlaceLink {
    fn readlink(&self, _: &Inode) -> Result<Vec<u8>> {
        self.place()?.display(&caller::root())
    }

    fn follow(&self) -> Option<Result<Path>> {
        Some(self.place())
    }
}

fn cwd(target: &Target) -> Result<Path> {
    Ok(target.thread()?.try_fs().ok_or(Errno::ENOENT)?.cwd())
}

fn root(target: &Target) -> Result<Path> {
    Ok(target.thread()?.try_fs().ok_or(Errno::ENOENT)?.root())
}

fn exe(target: &Target) -> Result<Path> {
    let mm = target.process()?.mm().ok_or(Errno::ENOENT)?;
    Ok(mm.executable().ok_or(Errno::ENOENT)?.path().clone())
}

fn mounts(target: &Target) -> Result<Vec<u8>> {
    bytes(mount_text::mounts(&root(target).map_err(|_| Errno::EINVAL)?)?)
}

fn mountinfo(target: &Target) -> Result<Vec<u8>> {
    bytes(mount_text::mountinfo(&root(target).map_err(|_| Errno::EINVAL)?)?)
}

fn cgroup(target: &Target) -> Result<Vec<u8>> {
    let mut text = fallible::Text::new();
    crate::cgroup::describe(&*target.process()?, &mut text);
    text.finish()
}

fn comm(target: &Target) -> Result<Vec<u8>> {
    bytes(format!("{}\n", target.thread()?.name()))
}

fn set_comm(target: &Target, text: &[u8]) -> Result<()> {
    let process = target.process()?;
    if !Arc::ptr_eq(&process, &process::current().process) {
        return Err(Errno::EINVAL);
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    target.thread()?.set_comm(text);
    Ok(())
}

fn oom_score_adj(target: &Target) -> Result<Vec<u8>> {
    bytes(format!("{}\n", target.process()?.oom_score_adj.load(Ordering::SeqCst)))
}

fn parse_signed(text: &[u8]) -> Result<i32> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    text.trim().parse().map_err(|_| Errno::EINVAL)
}

/// To make a process less likely to be killed than `least` says needs a privilege.
fn adjust(process: &Process, value: i32, least: i32, is_privileged: bool) -> Result<()> {
    if value < least && !is_privileged {
        return Err(Errno::EACCES);
    }
    process.oom_score_adj.store(value, Ordering::SeqCst);
    Ok(())
}

fn may_lower() -> bool {
    process::current().credentials().capable(abi::CAP_SYS_RESOURCE)
}

fn set_oom_score_adj(target: &Target, text: &[u8]) -> Result<()> {
    let value = parse_signed(text)?;
    if !(-1000..=1000).contains(&value) {
        return Err(Errno::EINVAL);
    }
    let (process, is_privileged) = (target.process()?, may_lower());
    adjust(&process, value, process.oom_score_adj_min.load(Ordering::SeqCst), is_privileged)?;
    if is_privileged {
        // Others who raise it may take that back.
        process.oom_score_adj_min.store(value, Ordering::SeqCst);
    }
    Ok(())
}

fn dump_filter(target: &Target) -> Result<Vec<u8>> {
    bytes(format!("{:08x}\n", target.process()?.dump_filter.load(Ordering::SeqCst)))
}

fn set_dump_filter(target: &Target, text: &[u8]) -> Result<()> {
    /// Nine kinds of memory.
    const KNOWN: u32 = 0x1ff;
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let value: u32 = crate::fs::proc::sysctl::parse(text)?;
    target.process()?.dump_filter.store(value & KNOWN, Ordering::SeqCst);
    Ok(())
}

fn fail_nth(target: &Target) -> Result<Vec<u8>> {
    bytes(format!("{}\n", target.thread()?.memory.countdown.get()))
}

fn set_fail_nth(target: &Target, text: &[u8]) -> Result<()> {
    let nth = parse_signed(text)?;
    target.thread()?.memory.countdown.set(u32::try_from(nth).map_err(|_| Errno::EINVAL)?);
    Ok(())
}

/// The older scale, from -17 to 15.
fn oom_adj(target: &Target) -> Result<Vec<u8>> {
    let value = target.process()?.oom_score_adj.load(Ordering::SeqCst);
    let scaled = if value == 1000 { 15 } else { value * 17 / 1000 };
    bytes(format!("{scaled}\n"))
}

fn set_oom_adj(target: &Target, text: &[u8]) -> Result<()> {
    let value = parse_signed(text)?;
    if !(-17..=15).contains(&value) {
        return Err(Errno::EINVAL);
    }
    let process = target.process()?;
    let scaled = if value == 15 { 1000 } else { value * 1000 / 17 };
    // As Linux has it, in this file what was raised is not taken back.
    adjust(&process, scaled, process.oom_score_adj.load(Ordering::SeqCst), may_lower())
}

/// How likely the process is to be killed when memory runs out, from 0 to 2000: its share of memory, in thousandths, and the adjustment.
/// What its open files hold is told to those who may look into it.
fn oom_score(target: &Target) -> Result<Vec<u8>> {
    let process = target.process()?;
    let adjustment = i64::from(process.oom_score_adj.load(Ordering::SeqCst));
    mshare::begin_decision();
    let pages = oom::pages(&process, may_look_into(&process)).map_or(0, |(pages, _)| pages);
    let total = (crate::memory::stats().total / 4096).max(1);
    let score = if adjustment == -1000 || process.pid == 1 {
        0
    } else {
        let points = (pages * 1000 / total) as i64 + adjustment;
        // As Linux scales it: 1000 plus the points, by two thirds.
        ((1000 + points) * 2 / 3).max(0)
    };
    bytes(format!("{score}\n"))
}

/// `/proc/PID/task`.
struct Tasks(Target);

impl InodeOps for Tasks {
    fn lookup(&self, dir: &Arc<Dentry>, name: &[u8]) -> Result<Arc<Dentry>> {
        let process = self.0.process().map_err(|_| Errno::ENOENT)?;
        let global = self.0.view.global(parse_pid(name)?).ok_or(Errno::ENOENT)?;
        let thread = process::find_thread_global(global).ok_or(Errno::ENOENT)?;
        if !Arc::ptr_eq(&thread.process, &process) {
            return Err(Errno::ENOENT);
        }
        let target = Target { thread: Some(Arc::downgrade(&thread)), ..self.0.clone() };
        child_directory(dir, name, target)
    }

    /// In the order in which the threads came: an offset is the place of the last one.
    fn readdir(&self, _: &Arc<Dentry>, from: u64, emit: &mut dyn FnMut(Dirent) -> bool) -> Result<()> {
        let process = self.0.process().map_err(|_| Errno::ENOENT)?;
        let mut show = |tid: u32, order: u64| {
            let name: String = format!("{tid}");
            emit(Dirent {
                ino: 1 << 48 | 1 << 47 | u64::from(tid) << 24,
                next_offset: order + FIRST_OFFSET + 1,
                kind: FileType::Directory,
                name: name.as_bytes(),
            })
        };
        // A process whose first thread has ended still shows it.
        let leader = process.leader();
        let ended = leader.as_ref().filter(|leader| leader.sched.is_dead() || !process.has_thread(leader));
        if from <= FIRST_OFFSET
            && let Some(leader) = ended
            && !show(self.0.view.thread(leader), 0)
        {
            return Ok(());
        }
        let mut last = from.saturating_sub(FIRST_OFFSET + 1);
        loop {
            let some = process.some_threads_after(last);
            let Some(behind) = some.last() else { return Ok(()) };
            last = behind.order();
            if !some.iter().all(|thread| show(self.0.view.thread(thread), thread.order())) {
                return Ok(());
            }
            drop(some);
            sched::cond_resched();
        }
    }
}
