//! The length of paths, for a machine whose clock counts instructions.

use std::time::Instant;

use guest_link::profile::marked;
use guest_link::record::{Operation, Record};
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, Map, NORESERVE, PRIVATE, RW, SHARED, madvise, mmap};
use roundtable_programs::sys::faults;

use crate::stage::{Stage, touch};

/// Pages of the file that is measured on.
const PAGES: usize = Operation::PrivateFault.turns() as usize + 1;
/// Touches of each of them that do not fault, to know what the loop itself takes.
const LOOPS: usize = 16;

/// Measures on a file of its own: nobody shares it.
pub fn measure(stage: &Stage) -> Result<(), String> {
    let file = huge::sized(512);
    file.fallocate(0, 0, (PAGES * HUGE) as u64).map_err(|error| format!("fallocate: {}", error.desc()))?;
    let place = Map::reserve(GIB, GIB);
    let map = |flags| mmap(place.address, GIB, RW, flags | FIXED | NORESERVE, file.raw(), 0).expect("mmap");
    for (operation, flags) in [(Operation::SharedFault, SHARED), (Operation::PrivateFault, PRIVATE)] {
        map(flags);
        touch(place.address, PAGES);
        madvise(place.address, GIB, libc::MADV_DONTNEED).map_err(|error| error.to_string())?;
        // The first page brings the table; what is measured are the faults that find it.
        touch(place.address, 1);
        let (before, _) = faults();
        let start = Instant::now();
        marked(operation, || touch(place.address + HUGE, PAGES - 1));
        let with_faults = start.elapsed().as_nanos() as u64;
        let (after, _) = faults();
        let start = Instant::now();
        (0..LOOPS).for_each(|_| touch(place.address + HUGE, PAGES - 1));
        let without = start.elapsed().as_nanos() as u64 / LOOPS as u64;
        let count = PAGES as u64 - 1;
        stage.say(&Record::Path {
            path: operation.name().to_string(),
            length: with_faults.saturating_sub(without) / count,
            faults_percent: (after - before) * 100 / count,
        });
    }
    let calls = Operation::Call.turns();
    let start = Instant::now();
    marked(Operation::Call, || {
        for _ in 0..calls {
            // SAFETY: takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
    });
    let length = start.elapsed().as_nanos() as u64 / calls;
    stage.say(&Record::Path { path: Operation::Call.name().to_string(), length, faults_percent: 0 });
    Ok(())
}
