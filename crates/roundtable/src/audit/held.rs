//! What a recording has of huge pages beyond the mappings of processes: only the file systems of the host
//! itself can be asked for it.

use serde::{Deserialize, Serialize};

use super::LARGE;
use super::deadline::Deadline;
use super::files::FileId;
use super::holding::{self, Descriptor, Left, MountPoint, Segment};
use super::host::Host;
use super::source::Source;

/// The name of it, in a recording's folder.
pub const HELD: &str = "huge.json";

/// All that an account of the pools asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Mounts of hugetlbfs.
    pub mounts: Vec<MountPoint>,
    /// Files there that nobody maps.
    pub left: Vec<Left>,
    /// Files of huge pages that are open.
    pub open: Vec<Descriptor>,
    /// SysV segments that nobody has attached.
    pub segments: Vec<Segment>,
    /// Files that are mapped, with their pages.
    pub files: Vec<(FileId, u64)>,
}

impl Held {
    /// Asks the host for all of it.
    pub fn look(host: &Host) -> Held {
        let source = host.source;
        let never = Deadline::never();
        let mounts = holding::mounts(source, &host.census, &never);
        let mapped = host.groups.iter().map(|group| group.id).collect();
        let known = holding::places(&mapped);
        let left = holding::left_files(source, &mounts, &known, &never);
        let large = host.groups.iter().filter(|group| group.file.is_hugetlb || group.size >= LARGE);
        Held {
            open: holding::uses(host, &mounts, &known, &left).open,
            segments: holding::segments(source, &mapped),
            files: large.filter_map(|group| Some((group.id, holding::file_pages(source, group)?))).collect(),
            mounts,
            left,
        }
    }

    /// That of a recording; `None` of one that has none, of an older version.
    pub fn read(source: &Source) -> Option<Held> {
        serde_json::from_str(&source.text(HELD)?).ok()
    }
}
