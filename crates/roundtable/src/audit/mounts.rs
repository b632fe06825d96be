//! The mounts that a process sees: its mountinfo, as proc(5) has it.

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The device, as `MAJOR:MINOR`.
    pub device: &'a str,
    /// Where it is mounted.
    pub place: &'a str,
    /// The type of file system.
    pub kind: &'a str,
    /// The file system's options, with commas between them.
    pub options: &'a str,
}

/// All of a table, in its order; what is no mount is left out.
pub fn mounts(mountinfo: &str) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        // The number of optional fields in the middle varies; a dash ends them.
        let (left, right) = line.split_once(" - ")?;
        let [mut left, mut right] = [left, right].map(|fields| fields.split(' '));
        Some(Mount {
            device: left.nth(2)?,
            place: left.nth(1)?,
            kind: right.next()?,
            options: right.nth(1).unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_broken_lines_do_not_matter() {
        let text = "23 1 0:25 / /dev/shm rw,nosuid shared:4 master:1 - tmpfs shm rw,size=9k\nx - y\n\
            1 1 0:5 / / rw - hugetlbfs none\nno dash\n";
        let all: Vec<Mount> = mounts(text).collect();
        let shm = Mount { device: "0:25", place: "/dev/shm", kind: "tmpfs", options: "rw,size=9k" };
        assert_eq!(all, [shm, Mount { device: "0:5", place: "/", kind: "hugetlbfs", options: "" }]);
    }
}
