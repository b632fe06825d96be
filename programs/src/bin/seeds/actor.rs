//! A process of a sequence: it does its steps and says what came of them.

use std::fmt::Write;

use roundtable_programs::Errno;
use roundtable_programs::cgroup;
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{self, Answer, call};
use roundtable_programs::mem::{ANON, FIXED};
use roundtable_programs::uffd::{self, Uffd};

use super::step::{Place, REGIONS, Step, What};

/// get_mempolicy(2) of an address.
const MPOL_F_ADDR: usize = 2;

/// What a process has.
pub struct Actor<'a> {
    pub files: &'a [Fd],
    /// Its control group.
    pub group: &'a cgroup::Group,
    /// Huge pages of the pool that are not the sequence's.
    pub others: u64,
    /// Of its own memory, made when it is first asked for.
    pub uffd: Option<Uffd>,
}

/// A result as it is written down.
fn said(answer: Answer) -> String {
    match answer {
        Ok(value) => value.to_string(),
        Err(error) => format!("{error:?}"),
    }
}

/// The same for a call that gives an address.
fn placed(answer: Answer, wanted: usize) -> String {
    match answer {
        Ok(address) if address == wanted => "there".into(),
        Ok(_) => "elsewhere".into(),
        Err(error) => format!("{error:?}"),
    }
}

fn faulted<T: std::fmt::Display>(result: Result<T, Fault>, at: usize) -> String {
    match result {
        Ok(value) => value.to_string(),
        // The address as the distance from where the access was.
        Err(fault) => {
            format!("signal {} code {} at {:+}", fault.signal, fault.code, fault.address as i64 - at as i64)
        }
    }
}

impl Actor<'_> {
    /// Does a step that is not for the process's life.
    pub fn run(&mut self, step: Step) -> String {
        let range = |at: Place| [at.address(), at.length()];
        match step {
            Step::Map { at, what, protection, flags, offset } => {
                let (fd, more, offset) = match what {
                    What::File(file) => (self.files[file].raw(), 0, offset),
                    What::Huge => (-1, ANON | libc::MAP_HUGETLB, 0),
                    What::Base => (-1, ANON, 0),
                };
                let [address, length] = range(at);
                let mapped = kinds::map(address, length, protection, flags | more | FIXED, fd, offset);
                cleared(mapped, at);
                placed(mapped, address)
            }
            Step::Unmap { at } => said(kinds::unmap(at.address(), at.length())),
            Step::Protect { at, protection } => {
                said(kinds::protect(at.address(), at.length(), protection as usize))
            }
            Step::Move { from, to, flags } => {
                let [address, length] = range(from);
                let moved = kinds::remap(address, length, to.length(), flags as usize, to.address());
                if flags & libc::MREMAP_FIXED != 0 {
                    cleared(moved, to);
                }
                let result = placed(moved, to.address());
                // Where the kernel has chosen the place, nobody looks: it goes.
                if let Ok(address) = moved
                    && result == "elsewhere"
                    && !inside(address)
                {
                    _ = kinds::unmap(address, to.length());
                }
                result
            }
            Step::Load { at } => faulted(fault::load(at.address()), at.address()),
            Step::Store { at, value } => {
                faulted(fault::store(at.address(), value).map(|()| "stored"), at.address())
            }
            Step::Truncate { file, length } => said(self.files[file].truncate(length as u64).map(|()| 0)),
            Step::Allocate { file, mode, offset, length } => {
                said(self.files[file].fallocate(mode, offset as u64, length as u64).map(|()| 0))
            }
            Step::Read { file, page } => {
                let mut word = [0; 8];
                let read = self.files[file].read_at(&mut word, (page * HUGE) as u64);
                format!("{} {}", said(read), u64::from_ne_bytes(word))
            }
            Step::Write { file } => said(self.files[file].write_at(&[1; 8], 0)),
            Step::Seek { file, page, whence } => said(call(
                libc::SYS_lseek,
                [self.files[file].raw() as usize, page * HUGE, whence as usize, 0, 0, 0],
            )),
            Step::Stat { file } => {
                let (stat, system) = (self.files[file].stat(), self.files[file].statfs());
                let (all, free) = (system.f_blocks, system.f_bfree);
                format!("{} bytes {} blocks; {all} {free}", stat.st_size, stat.st_blocks)
            }
            Step::Seal { file, seals } => {
                let fd = self.files[file].raw() as usize;
                said(call(libc::SYS_fcntl, [fd, libc::F_ADD_SEALS as usize, seals as usize, 0, 0, 0]))
            }
            Step::Advise { at, advice } => said(kinds::advise(at.address(), at.length(), advice)),
            Step::Lock { at, on } => {
                let number = if on { libc::SYS_mlock } else { libc::SYS_munlock };
                said(call(number, [at.address(), at.length(), 0, 0, 0, 0]))
            }
            Step::Sync { at, flags } => {
                said(call(libc::SYS_msync, [at.address(), at.length(), flags as usize, 0, 0, 0]))
            }
            Step::Register { at, mode } => {
                forget_shared(at);
                said(self.uffd().register_at(at.address(), at.length(), mode))
            }
            Step::Unregister { at } => {
                said(self.uffd().ioctl(uffd::UNREGISTER, &mut [at.address() as u64, at.length() as u64]))
            }
            Step::Copy { at, value, mode } => {
                let mut page = vec![0; HUGE];
                page[..8].copy_from_slice(&value.to_ne_bytes());
                counted(self.uffd().copy(at.address(), &page, mode))
            }
            Step::Zero { at } => counted(self.uffd().of_range(uffd::ZEROPAGE, at.address(), HUGE, 0)),
            Step::WriteProtect { at, on } => {
                said(self.uffd().protect(at.address(), at.length(), u64::from(on)))
            }
            Step::Continue { at } => counted(self.uffd().of_range(uffd::CONTINUE, at.address(), HUGE, 0)),
            Step::Bind { at, mode, nodes, flags } => {
                let nodes = (&raw const nodes) as usize;
                said(call(libc::SYS_mbind, [at.address(), at.length(), mode, nodes, 64, flags]))
            }
            Step::SetPolicy { mode, nodes } => {
                said(call(libc::SYS_set_mempolicy, [mode, (&raw const nodes) as usize, 64, 0, 0, 0]))
            }
            Step::Policy { at } => policy(at),
            Step::Maps => maps(),
            Step::Limit { reserved, pages } => {
                let name = if reserved { "hugetlb.2MB.rsvd.max" } else { "hugetlb.2MB.max" };
                let written = match pages {
                    Some(pages) => self.group.write(name, pages * HUGE),
                    None => self.group.write(name, "max"),
                };
                said(written.map(|()| 0))
            }
            Step::Usage => {
                let names = ["current", "rsvd.current", "max"];
                let all =
                    names.map(|name| self.group.read(&format!("hugetlb.2MB.{name}")).trim().to_string());
                // Linux may count a fault that fails twice.
                let failed = self.group.value("hugetlb.2MB.events", "max") != 0;
                format!("{} {failed}", all.join(", "))
            }
            Step::Pool { pages } => (huge::set_pool(pages + self.others) - self.others).to_string(),
            Step::Overcommit { pages } => {
                huge::set_overcommit(pages);
                "0".into()
            }
            Step::Fork { .. } | Step::Exit | Step::Reap { .. } => unreachable!("of its life"),
        }
    }

    fn uffd(&mut self) -> &Uffd {
        // A fault that nobody resolves is a signal, and the process goes on.
        self.uffd.get_or_insert_with(|| Uffd::new(uffd::SIGBUS | uffd::ALL_KINDS))
    }
}

fn counted(result: Result<i64, Errno>) -> String {
    result.map_or_else(|error| format!("{error:?}"), |count| count.to_string())
}

/// A call that was to replace what is at a place and has failed: on Linux it may have taken away what was there, here never. It goes.
fn cleared(answer: Answer, at: Place) {
    if answer.is_err() {
        let (address, length) = at.whole();
        _ = kinds::unmap(address, length);
    }
}

/// Which pages of a file a process has entries for when it registers shared memory depends on tables that it shared until then, on both
/// kernels: here it has none.
fn forget_shared(at: Place) {
    let (start, length) = at.whole();
    for line in std::fs::read_to_string("/proc/self/maps").expect("maps").lines() {
        let Some((from, to, _)) = area(line).filter(|(.., rights)| rights.contains('s')) else { continue };
        let (from, to) = (from.max(start), to.min(start + length));
        if from < to {
            _ = kinds::advise(from, to - from, libc::MADV_DONTNEED);
        }
    }
}

/// Start, end and rights of the area that a line of `/proc/PID/maps` is about.
fn area(line: &str) -> Option<(usize, usize, &str)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?, words.next()?))
}

fn inside(address: usize) -> bool {
    REGIONS.iter().any(|(start, pages)| (*start..start + pages * HUGE).contains(&address))
}

fn policy(at: Place) -> String {
    let (mut mode, mut nodes) = (0i32, 0u64);
    let arguments = [(&raw mut mode) as usize, (&raw mut nodes) as usize, 64, at.address(), MPOL_F_ADDR, 0];
    format!("{} {mode} {nodes}", said(call(libc::SYS_get_mempolicy, arguments)))
}

/// What `/proc/self/smaps` and `numa_maps` say of the regions. How many pages of a file a process has entries for is the kernel's own
/// business: ours shows those that others have touched.
fn maps() -> String {
    const SHOWN: [&str; 4] = ["Size:", "KernelPageSize:", "MMUPageSize:", "VmFlags:"];
    let mut text = String::new();
    let mut shown = false;
    for line in std::fs::read_to_string("/proc/self/smaps").expect("smaps").lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).expect("an address");
            let (start, end) = (number(start), number(end));
            shown = inside(start);
            if shown {
                let rights = words.next().unwrap_or_default();
                let offset = words.next().unwrap_or_default();
                let region = usize::from(start >= REGIONS[1].0);
                let base = REGIONS[region].0;
                _ = write!(text, "\n    {region} {:#x}-{:#x} {rights} {offset}", start - base, end - base);
            }
        } else if shown && SHOWN.contains(&first) {
            // Ours has no soft-dirty bits, which Linux shows as set from the start.
            let value: Vec<&str> = words.filter(|word| !["kB", "sd"].contains(word)).collect();
            _ = write!(text, " {first}{}", value.join(","));
        }
    }
    for line in std::fs::read_to_string("/proc/self/numa_maps").expect("numa_maps").lines() {
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| usize::from_str_radix(word, 16).ok());
        let Some(address) = address.filter(|address| inside(*address)) else { continue };
        let policy = words.next().unwrap_or_default();
        let region = usize::from(address >= REGIONS[1].0);
        _ = write!(text, "\n    {region} {:#x} {policy}", address - REGIONS[region].0);
    }
    text
}
