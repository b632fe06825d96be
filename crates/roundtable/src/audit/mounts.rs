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

/// A path of a table of mounts as it is: blanks and the like stand there as `\\040`.
pub fn unescaped(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                bytes.push(
                    digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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

    #[test]
    fn blanks_in_paths_are_read() {
        assert_eq!(unescaped("/mnt/huge\\040pages\\134"), "/mnt/huge pages\\");
        assert_eq!(unescaped("/mnt/\\9\\04"), "/mnt/\\9\\04");
    }
}
