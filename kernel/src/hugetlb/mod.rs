//! Huge pages in the kernel: the library `hugetlb` on this kernel's memory, and what user space sees of it.
//!
//! | file | what |
//! | --- | --- |
//! | `lab` | what kernels that are broken on purpose have: tables under the protocol that corrupts memory |
//! | `machine` | frames, tables, locks and TLBs for the library |
//! | `area` | an area of an address space that maps huge pages |
//! | `check` | the page-table checker |
//! | `file` | a file of huge pages as the file layer sees it; memfd_create(MFD_HUGETLB) |
//! | `filesystem` | hugetlbfs: mount options, inodes, statfs |
//! | `settings` | boot parameters, `/proc/sys/vm`, `/sys/kernel/mm/hugepages`, `/proc/meminfo` |

mod area;
mod check;
mod file;
mod filesystem;
#[cfg(feature = "lab")]
mod lab;
mod machine;
mod settings;

use alloc::sync::Arc;

pub use self::area::{HugeArea, HugeLeftover};
pub use self::file::{HUGE_FILE, HugeFile, memfd};
pub use self::machine::{Kernel, SpaceTables};
pub use self::settings::check_may_use_shm;
use crate::errno::Errno;
use crate::fs::File;
use crate::sync::Once;
use ::hugetlb::{Error, Hugetlb, PageSize};

/// The proof that the areas lock of an address space is held.
pub type SpaceToken = ::hugetlb::SpaceToken<machine::SpaceTables>;

/// The token of a new address space.
pub fn token(tables: &Arc<crate::mm::PageTables>) -> SpaceToken {
    SpaceToken::new(machine::SpaceTables(tables.clone()))
}

static SYSTEM: Once<Arc<Hugetlb<Kernel>>> = Once::new();

/// A round of checks over all address spaces.
pub type CheckRound = ::hugetlb::CheckRound<Kernel>;

/// The subsystem.
fn system() -> &'static Arc<Hugetlb<Kernel>> {
    SYSTEM.get().expect("huge pages are set up at boot")
}

/// Sets the pools up as the command line says, while memory is in one piece.
pub fn init() {
    settings::init();
}

/// Makes hugetlbfs and the settings known, once the file layer is up.
pub fn register() -> crate::errno::Result<()> {
    crate::fs::register_filesystem("hugetlbfs", filesystem::mount);
    settings::register()?;
    check::init();
    Ok(())
}

/// The size of `MAP_HUGETLB` without a size, bytes.
pub fn default_page_size() -> u64 {
    system().default_size().bytes()
}

/// Is it the size of huge pages of this machine?
pub fn is_page_size(bytes: u64) -> bool {
    PageSize::from_bytes(bytes).is_some()
}

/// The page size of an open file of huge pages; `None` for other files.
pub fn page_size_of(file: &Arc<File>) -> Option<u64> {
    file.ops_as::<HugeFile>().map(HugeFile::page_size)
}

/// The kernel's error number for the library's error.
fn errno(error: Error) -> Errno {
    Errno::new(error.errno())
}
