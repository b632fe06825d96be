//! Regions of msharefs: a mount, files, what is mapped inside.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::child::{self, Child};
use crate::file::Fd;
use crate::harness::skip;
use crate::mem::{Map, RW, SHARED};
use crate::procfs;
use crate::shared::Shared;
use crate::sys::{PAGE, c_string, check, is_linux, pid};

/// Where it is mounted by convention.
pub const MOUNT: &str = "/sys/fs/mshare";
/// `f_type`.
pub const MAGIC: i64 = 0x4d53_4852;

/// The argument of `MSHAREFS_CREATE_MAPPING`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NewMapping {
    pub region_offset: u64,
    pub size: u64,
    pub offset: u64,
    pub prot: u32,
    pub flags: u32,
    pub fd: i32,
}

#[repr(C)]
struct Range {
    region_offset: u64,
    size: u64,
}

#[repr(C)]
struct Protect {
    range: Range,
    prot: u32,
    flags: u32,
}

/// `_IOW('x', number, size)`.
pub const fn command(number: u32, size: usize) -> u32 {
    1 << 30 | (size as u32) << 16 | (b'x' as u32) << 8 | number
}

pub const CREATE_MAPPING: u32 = command(0, size_of::<NewMapping>());
pub const UNMAP: u32 = command(1, size_of::<Range>());
pub const PROTECT: u32 = command(2, size_of::<Protect>());

/// Mounts msharefs at [`MOUNT`] unless it is there. `ENODEV` where the kernel has none.
pub fn mount() -> Result<(), Errno> {
    if std::path::Path::new(MOUNT).join("mshare_info").exists() {
        return Ok(());
    }
    let (source, target, kind) = (c_string("none"), c_string(MOUNT), c_string("msharefs"));
    // SAFETY: all are NUL-terminated and live through the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
        .map(drop)
}

/// What sizes and addresses are multiples of, bytes.
pub fn granule() -> usize {
    procfs::number(&format!("{MOUNT}/mshare_info")) as usize
}

/// One of the kernel's counts: `regions`, `attachments`, `pages`, `table_bytes`.
pub fn count(name: &str) -> u64 {
    procfs::number(&format!("/sys/kernel/mm/mshare/{name}"))
}

/// An open region and its name, which goes when this is dropped by the process that made it.
#[derive(Debug)]
pub struct Region {
    pub fd: Fd,
    pub path: String,
    pub size: usize,
    /// The process that removes the name; 0 for none.
    pub maker: i32,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Region {
    /// A new one without a size.
    pub fn unsized_one() -> Region {
        let path = format!("{MOUNT}/region-{}-{}", pid(), NEXT.fetch_add(1, Ordering::SeqCst));
        let fd = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).expect("a new region");
        Region { fd, path, size: 0, maker: pid() }
    }

    /// A new one of the smallest size.
    pub fn new() -> Region {
        Region::of(1)
    }

    /// A new one of so many granules.
    pub fn of(granules: usize) -> Region {
        let mut region = Region::unsized_one();
        region.size = granules * granule();
        region.fd.truncate(region.size as u64).expect("the size of a region");
        region
    }

    /// Opened once more, with other rights.
    pub fn open(&self, flags: i32) -> Result<Fd, Errno> {
        Fd::open(&self.path, flags)
    }

    pub fn ioctl<T>(&self, command: u32, argument: &T) -> Result<(), Errno> {
        ioctl(&self.fd, command, argument)
    }

    /// MSHAREFS_CREATE_MAPPING with MAP_FIXED.
    pub fn map(
        &self,
        at: usize,
        size: usize,
        prot: i32,
        flags: i32,
        fd: i32,
        offset: u64,
    ) -> Result<(), Errno> {
        self.ioctl(
            CREATE_MAPPING,
            &NewMapping {
                region_offset: at as u64,
                size: size as u64,
                offset,
                prot: prot as u32,
                flags: (flags | libc::MAP_FIXED) as u32,
                fd,
            },
        )
    }

    /// Shared anonymous memory inside.
    #[track_caller]
    pub fn map_shared(&self, at: usize, size: usize) {
        self.map(at, size, RW, SHARED | libc::MAP_ANONYMOUS, -1, 0).expect("a shared mapping inside");
    }

    /// MSHAREFS_UNMAP.
    pub fn unmap(&self, at: usize, size: usize) -> Result<(), Errno> {
        self.ioctl(UNMAP, &Range { region_offset: at as u64, size: size as u64 })
    }

    /// MSHAREFS_PROTECT.
    pub fn protect(&self, at: usize, size: usize, prot: i32) -> Result<(), Errno> {
        let range = Range { region_offset: at as u64, size: size as u64 };
        self.ioctl(PROTECT, &Protect { range, prot: prot as u32, flags: 0 })
    }

    /// Attaches all of it, wherever the kernel chooses.
    #[track_caller]
    pub fn attach(&self) -> Map {
        self.try_attach(RW).expect("an attachment")
    }

    pub fn try_attach(&self, prot: i32) -> Result<Map, Errno> {
        Map::new(self.size, prot, SHARED, self.fd.raw(), 0)
    }

    pub fn unlink(&self) {
        std::fs::remove_file(&self.path).expect("unlink of a region");
    }
}

impl Default for Region {
    fn default() -> Region {
        Region::new()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.maker == pid() {
            // Tests may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where tests map inside: not at the begin, and in two tables of the lowest level.
pub const AT: usize = (1 << 30) - PAGE;

/// Mounts msharefs, or skips the test.
pub fn ready() {
    match mount() {
        Ok(()) => {}
        Err(Errno::ENODEV) => skip("this kernel has no msharefs"),
        // Linux has no such directory.
        Err(Errno::ENOENT) if is_linux() => skip("this kernel has no msharefs"),
        Err(error) => panic!("mount of msharefs: {error}"),
    }
}

/// A region with two pages of shared memory at [`AT`].
pub fn with_memory() -> Region {
    ready();
    let region = Region::new();
    region.map_shared(AT, 2 * PAGE);
    region
}

/// A child that attaches, counts itself, and looks once it is told to.
pub fn looker(region: &Region, control: &Shared, look: impl FnOnce(&Map)) -> Child {
    let child = child::fork(|| {
        let map = region.attach();
        control.add(0);
        control.wait(1, 1);
        look(&map);
    });
    control.wait(0, 1);
    child
}

/// The kernel's own checker of page tables finds nothing.
#[track_caller]
pub fn checked() {
    let result = std::fs::read_to_string("/sys/kernel/mm/hugepages/sharing/check").expect("the checker");
    assert!(result.starts_with("ok"), "{result}");
}

/// ioctl(2) on a region's descriptor.
pub fn ioctl<T>(fd: &Fd, command: u32, argument: &T) -> Result<(), Errno> {
    // SAFETY: the kernel reads the argument only.
    check(unsafe { libc::ioctl(fd.raw(), command.into(), std::ptr::from_ref(argument)) }).map(drop)
}
