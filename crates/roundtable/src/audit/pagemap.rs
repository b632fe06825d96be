//! Which addresses of a process have pages, from /proc/PID/pagemap.
//!
//! Linux 6.7 and later answer with ranges (PAGEMAP_SCAN); before that, one entry is read for each base page. Either
//! way the kernel takes the process's mapping lock for reading, for one short step at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use procfs::process::Process;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::collect::{self, Missing};
use super::deadline::Deadline;
use super::recording::Ranges;
use super::source::Source;

/// Bytes of one entry.
const ENTRY: u64 = 8;
/// Entries read at once where there are no ranges to be had: 32 MiB of base pages of 4 KiB.
const CHUNK: usize = 8192;
/// The largest area that is read entry by entry.
const LARGEST_READ: u64 = 1 << 40;
/// Ranges taken at once.
const RANGES: usize = 512;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The frame's number, 0 for those who may not know it.
const FRAME: u64 = (1 << 55) - 1;

/// A populated range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Mapped by entries of a higher level than base pages are, as huge pages of either kind.
    pub huge: bool,
    /// Pages of a file or of shared memory, not anonymous ones.
    pub file: bool,
}

/// An open pagemap.
pub struct Pagemap<'a> {
    source: &'a Source,
    way: Way,
}

/// Where the answers come from.
enum Way {
    /// Ranges from the kernel.
    Scan(File),
    /// Entry by entry from a kernel that knows no ranges.
    Read(File),
    Recording(Ranges),
}

/// Each of the steps of a walk asks, for one process may have any amount of memory.
fn in_time(deadline: &Deadline) -> io::Result<()> {
    if deadline.is_past() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

fn missing(walked: io::Result<()>) -> Result<(), Missing> {
    walked.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Missing::Late,
        _ => Missing::Gone,
    })
}

impl<'a> Pagemap<'a> {
    /// Opens a process's.
    pub fn open(source: &'a Source, handle: &Process) -> Result<Pagemap<'a>, Missing> {
        let way = if source.is_recording() {
            Way::Recording(Ranges::open(source, handle)?)
        } else {
            Way::Scan(collect::open(source, handle, "pagemap")?)
        };
        Ok(Pagemap { source, way })
    }

    /// Calls `take` with the populated ranges of these areas, which are in order; a range may go over several areas.
    /// Ends early, with what it has given so far, when the deadline is past.
    pub fn populated(
        &mut self,
        areas: &[(u64, u64)],
        deadline: &Deadline,
        mut take: impl FnMut(Range),
    ) -> Result<(), Missing> {
        let (Some(first), Some(last)) = (areas.first(), areas.last()) else { return Ok(()) };
        if let Way::Recording(ranges) = &self.way {
            ranges.within(first.0, last.1).for_each(take);
            return Ok(());
        }
        if let Way::Scan(file) = &self.way {
            match self.scan(file, first.0, last.1, deadline, &mut take) {
                // An older kernel.
                Err(error) if is_unknown(&error) => {
                    self.way = Way::Read(file.try_clone().map_err(|_| Missing::Gone)?);
                }
                result => return missing(result),
            }
        }
        let Way::Read(file) = &self.way else { return Ok(()) };
        // An area that is larger has been reserved rather than filled; entry by entry it would take minutes.
        let readable = areas.iter().filter(|(start, end)| end - start <= LARGEST_READ);
        missing(
            readable
                .into_iter()
                .try_for_each(|&(start, end)| self.read(file, start, end, deadline, &mut take)),
        )
    }

    fn scan(
        &self,
        file: &File,
        start: u64,
        end: u64,
        deadline: &Deadline,
        take: &mut impl FnMut(Range),
    ) -> io::Result<()> {
        let mut ranges = vec![PageRegion::default(); RANGES];
        let mut at = start;
        while at < end {
            in_time(deadline)?;
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end,
                vec: ranges.as_mut_ptr() as u64,
                vec_len: RANGES as u64,
                category_anyof_mask: categories::PRESENT | categories::SWAPPED,
                return_mask: categories::HUGE | categories::FILE,
                ..ScanArgument::default()
            };
            // SAFETY: the argument has the layout that the call wants and names a vector of `vec_len` elements that
            // lives through the call; no flag is set by which the call would change anything in the process.
            let found = unsafe { rustix::ioctl::ioctl(file, Scan(&mut argument)) }?;
            self.source.count(1, (found * size_of::<PageRegion>()) as u64);
            for range in &ranges[..found.min(RANGES)] {
                let has = |category| range.categories & category != 0;
                take(Range {
                    start: range.start,
                    end: range.end,
                    huge: has(categories::HUGE),
                    file: has(categories::FILE),
                });
            }
            if argument.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN does not advance"));
            }
            at = argument.walk_end;
        }
        Ok(())
    }

    fn read(
        &self,
        file: &File,
        start: u64,
        end: u64,
        deadline: &Deadline,
        take: &mut impl FnMut(Range),
    ) -> io::Result<()> {
        let page = self.source.geometry.page();
        let mut buffer = vec![0; CHUNK * ENTRY as usize];
        let mut open: Option<Range> = None;
        let mut at = start;
        while at < end {
            in_time(deadline)?;
            let wanted = ((end - at) / page).min(CHUNK as u64) * ENTRY;
            if wanted == 0 {
                break;
            }
            let read = file.read_at(&mut buffer[..wanted as usize], at / page * ENTRY)?;
            self.source.count(1, read as u64);
            // The end of the address space.
            if read < ENTRY as usize {
                break;
            }
            for bytes in buffer[..read].chunks_exact(ENTRY as usize) {
                let entry = u64::from_ne_bytes(bytes.try_into().expect("chunks of eight"));
                let file = entry & 1 << 61 != 0;
                let populated = entry & (PRESENT | SWAPPED) != 0;
                match &mut open {
                    Some(range) if populated && range.file == file => range.end = at + page,
                    _ => {
                        open.take().into_iter().for_each(&mut *take);
                        open = populated.then_some(Range { start: at, end: at + page, huge: false, file });
                    }
                }
                at += page;
            }
        }
        open.into_iter().for_each(take);
        Ok(())
    }

    /// The frame that is mapped at an address; `None` where none is, or where only root may know.
    pub fn frame(&self, address: u64) -> Option<u64> {
        let (Way::Scan(file) | Way::Read(file)) = &self.way else { return None };
        let mut bytes = [0; ENTRY as usize];
        file.read_exact_at(&mut bytes, address / self.source.geometry.page() * ENTRY).ok()?;
        self.source.count(1, ENTRY);
        let entry = u64::from_ne_bytes(bytes);
        (entry & PRESENT != 0 && entry & FRAME != 0).then_some(entry & FRAME)
    }
}

fn is_unknown(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOTTY, Errno::INVAL, Errno::NOSYS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Bits of the kernel's `PAGE_IS_...`.
mod categories {
    pub const FILE: u64 = 1 << 2;
    pub const PRESENT: u64 = 1 << 3;
    pub const SWAPPED: u64 = 1 << 4;
    pub const HUGE: u64 = 1 << 6;
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

struct Scan<'a>(&'a mut ScanArgument);

// SAFETY: the opcode is PAGEMAP_SCAN's, whose argument is a `struct pm_scan_arg` that the kernel reads and
// writes; what it returns is a count.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArgument>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut rustix::ffi::c_void) -> rustix::io::Result<usize> {
        Ok(output as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(entries: &[u64]) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pagemap");
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let file = File::open(path).unwrap();
        (folder, file)
    }

    #[test]
    fn entries_become_ranges() {
        let (folder, file) = file_of(&[0, PRESENT | 7, SWAPPED, 0, PRESENT | 1 << 61, PRESENT]);
        let source = Source::recorded(folder.path());
        let mut map = Pagemap { source: &source, way: Way::Read(file) };
        let mut seen = Vec::new();
        map.populated(&[(0, 6 << 12)], &Deadline::never(), |range| {
            seen.push((range.start >> 12, range.end >> 12, range.file))
        })
        .unwrap();
        assert_eq!(seen, [(1, 3, false), (4, 5, true), (5, 6, false)]);
        assert_eq!(map.frame(1 << 12), Some(7));
        assert_eq!(map.frame(2 << 12), None, "swapped");
        assert_eq!(map.frame(100 << 12), None, "behind the end");
        let mut count = 0;
        map.populated(&[(5 << 12, 600 << 12)], &Deadline::never(), |_| count += 1).unwrap();
        assert_eq!(count, 1, "a file that ends before the range");
    }

    /// This process, this kernel: whatever way the kernel offers.
    #[test]
    fn our_own_pages_are_seen() {
        let source = Source::host();
        let page = source.geometry.page();
        let value = Box::new([1u8; 64]);
        let address = value.as_ptr() as u64 & !(page - 1);
        for scans in [true, false] {
            let file = File::open("/proc/self/pagemap").unwrap();
            let way = if scans { Way::Scan(file) } else { Way::Read(file) };
            let mut map = Pagemap { source: &source, way };
            let mut pages = 0;
            map.populated(&[(address, address + page)], &Deadline::never(), |range| {
                pages += (range.end - range.start) / page
            })
            .unwrap();
            assert_eq!(pages, 1, "scans: {scans}");
        }
    }
}
