//! What each measurement and each case begins with: a subsystem, a file of 1 GiB, processes that map it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hugetlb::{
    Chunk, Config, FallocateMode, File, Hugetlb, PageSize, PhysAddr, ProtocolKind, SLOT_SIZE, VirtAddr,
};
use ostd::arch::{read_tsc, tsc_freq};
use ostd::mm::UFrame;

use crate::machine::Ostd;
use crate::memory;
use crate::process::Process;
use crate::space::FIRST;
use crate::user::{self, Program, SHARED};

/// Pages that the measurements' file has.
pub const PAGES: u64 = 64;
pub const SIZE: u64 = PageSize::Size2M.bytes();
pub const PROTOCOLS: [ProtocolKind; 4] =
    [ProtocolKind::None, ProtocolKind::FileLock, ProtocolKind::VmaLock, ProtocolKind::FileTables];

/// One subsystem and one file of it.
#[derive(Clone)]
pub struct World {
    pub hugetlb: Arc<Hugetlb<Ostd>>,
    pub file: Arc<File<Ostd>>,
    pub code: UFrame,
}

impl World {
    pub fn new(protocol: ProtocolKind, code: &UFrame) -> World {
        let hugetlb = Hugetlb::new(Ostd, Config { default_size: PageSize::Size2M, protocol });
        assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(PAGES + 1, || false), PAGES + 1);
        let file = hugetlb.anonymous_file(PageSize::Size2M, SLOT_SIZE).expect("1 GiB are whole pages");
        World { hugetlb, file, code: code.clone() }
    }

    pub fn process(&self) -> Arc<Process> {
        let process = Process::new();
        user::map_code(&process, &self.code);
        process
    }

    /// A process that has the file mapped.
    pub fn sharer(&self) -> Arc<Process> {
        let process = self.process();
        process.map(&self.file, FIRST, SLOT_SIZE, SHARED).expect("memory for a mapping");
        process
    }

    /// Loads a word of each page in user mode; returns the faults that this took.
    pub fn touch(&self, process: &Arc<Process>) -> u64 {
        // Nobody else runs.
        let before = user::FAULTS.load(Ordering::Relaxed);
        let load = Program::Load { address: FIRST, pages: PAGES, stride: SIZE };
        assert_eq!(user::run(process, &self.file, &self.code, load), 0);
        user::FAULTS.load(Ordering::Relaxed) - before
    }

    /// Loads a word in user mode; [`user::KILLED`] when it may not.
    pub fn load(&self, process: &Arc<Process>, address: VirtAddr) -> i64 {
        user::run(process, &self.file, &self.code, Program::Load { address, pages: 1, stride: SIZE })
    }

    /// Stores a word in user mode; whether it may.
    pub fn store(&self, process: &Arc<Process>, address: VirtAddr, value: u64) -> bool {
        user::run(process, &self.file, &self.code, Program::Hammer { address, times: 1, value }) == 0
    }

    pub fn size(&self) -> PageSize {
        PageSize::Size2M
    }

    /// Page tables of the library and of the host.
    pub fn tables(&self) -> usize {
        memory::TABLES.lock().len()
    }

    /// Pages of the pool that nothing uses.
    pub fn free(&self) -> u64 {
        self.hugetlb.pool(PageSize::Size2M).statistics().free
    }

    /// Punches all pages out of the file; microseconds.
    pub fn punch(&self) -> u64 {
        let start = read_tsc();
        self.file.fallocate(FallocateMode::PunchHole, 0, PAGES * SIZE, || false).expect("whole pages");
        (read_tsc() - start) * 1_000_000 / tsc_freq()
    }

    /// Nothing is left: no page, no table of the library, no table of the host.
    pub fn end(self) {
        let World { hugetlb, file, .. } = self;
        drop(file);
        let pool = hugetlb.pool(PageSize::Size2M);
        assert_eq!(pool.statistics().free, PAGES + 1, "a page is missing");
        assert_eq!((hugetlb.sharing().tables, hugetlb.sharing().attachments), (0, 0));
        assert_eq!(pool.set_persistent(0, || false), 0);
        assert_eq!(memory::TABLES.lock().len(), 0, "a table is missing");
    }
}

/// The first word of a file's first page.
pub fn first_word(file: &File<Ostd>) -> u64 {
    match file.read(0, 8) {
        Chunk::Data(page) => word(page.address()),
        Chunk::Hole(_) | Chunk::End => panic!("the page is not there"),
    }
}

/// A word of a huge frame.
fn word(address: PhysAddr) -> u64 {
    // SAFETY: The address is that of an aligned word in a huge frame of the pool.
    unsafe { memory::linear(address).cast::<u64>().read_volatile() }
}
