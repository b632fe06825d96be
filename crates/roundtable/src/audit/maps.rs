//! Lines of /proc/PID/maps and smaps, as bytes: a file's name need not be UTF-8, nor be what it pretends to be.

use std::collections::BTreeSet;

/// One mapping, as its line in /proc/PID/maps says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// What may be done there.
    pub access: Access,
    /// The place in the file of its first byte.
    pub offset: u64,
    /// The file's device, major and minor.
    pub device: (u32, u32),
    /// The file's number on the device.
    pub inode: u64,
    /// What stands behind: a path, a name in brackets, or nothing.
    pub name: &'a [u8],
}

/// Permission bits of a mapping, and whether it may be shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Access {
    /// PROT_READ
    pub read: bool,
    /// PROT_WRITE
    pub write: bool,
    /// PROT_EXEC
    pub execute: bool,
    /// MAP_SHARED
    pub shared: bool,
}

impl Line<'_> {
    /// Whether a file stands behind the mapping. The number 0 is a good one: it is the first SysV segment's.
    pub fn has_file(&self) -> bool {
        self.name.first() == Some(&b'/')
    }
}

/// Parses one line of maps, without its line feed.
pub fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let range = fields.next()?;
    let access = fields.next()?;
    let offset = hex(fields.next()?)?;
    let device = fields.next()?;
    let inode = number(fields.next()?)?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    let (start, end) = pair(range, b'-')?;
    let (major, minor) = pair(device, b':')?;
    let [read, write, execute, shared] = access else { return None };
    let access = Access {
        read: *read == b'r',
        write: *write == b'w',
        execute: *execute == b'x',
        shared: *shared == b's',
    };
    let device = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    (start < end).then_some(Line { start, end, access, offset, device, inode, name })
}

/// The lines of a whole maps file; what is no such line is left out.
pub fn lines(maps: &[u8]) -> impl Iterator<Item = Line<'_>> {
    maps.split(|&byte| byte == b'\n').filter_map(parse_line)
}

fn pair(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((hex(&text[..at])?, hex(&text[at + 1..])?))
}

fn hex(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

/// A decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A mapping's VmFlags: the kernel's own two letters for each, so that none is lost that this program does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(BTreeSet<[u8; 2]>);

impl Flags {
    /// The flags behind `VmFlags:`.
    pub fn parse(text: &[u8]) -> Flags {
        let words = text.split(|byte| byte.is_ascii_whitespace());
        Flags(words.filter_map(|word| <[u8; 2]>::try_from(word).ok()).collect())
    }

    /// What the permission bits alone tell.
    pub fn of(access: Access) -> Flags {
        let all = [
            (access.read, *b"rd"),
            (access.write, *b"wr"),
            (access.execute, *b"ex"),
            (access.shared, *b"ms"),
        ];
        Flags(all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect())
    }

    /// Adds a protection key: the kernel keeps it among the flags and compares it with them, but smaps tells it apart.
    /// The default key 0 is none.
    pub fn add_protection_key(&mut self, key: u64) {
        if let Some(digit) = char::from_digit(key as u32, 16).filter(|_| key != 0) {
            self.0.insert([b'k', digit as u8]);
        }
    }

    /// Whether this flag is set.
    pub fn has(&self, name: &[u8; 2]) -> bool {
        self.0.contains(name)
    }

    /// The flags that the kernel compares before two mappings share a table: all but those of mlock.
    pub fn compared(&self) -> Flags {
        Flags(self.0.iter().copied().filter(|name| name != b"lo" && name != b"lf").collect())
    }

    /// Those that only one of the two has, in the kernel's letters.
    pub fn difference(&self, other: &Flags) -> Vec<String> {
        let names = self.0.symmetric_difference(&other.0);
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }
}

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(|name| String::from_utf8_lossy(name)).collect();
        f.write_str(&names.join(" "))
    }
}

/// What smaps adds to a mapping's line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Bytes of a page of the file, 0 when not told.
    pub page_size: u64,
    /// The flags, when told, with the protection key among them.
    pub flags: Option<Flags>,
}

/// Calls `take` with each mapping of an smaps file, until it says that it has seen enough.
pub fn for_each_in_smaps(
    mut smaps: impl std::io::BufRead,
    mut take: impl FnMut(&Line, Extra) -> bool,
) -> std::io::Result<()> {
    let mut header: Vec<u8> = Vec::new();
    let mut extra = Extra::default();
    let mut key = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        smaps.read_until(b'\n', &mut line)?;
        // A line that was cut off says less than it meant to: "20" of "2048 kB".
        let whole = line.strip_suffix(b"\n");
        let text = whole.unwrap_or_default();
        // Attributes begin with a capital letter, addresses are written in small ones.
        if text.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(value) = text.strip_prefix(b"KernelPageSize:") {
                let digits: Vec<u8> = value.iter().copied().filter(u8::is_ascii_digit).collect();
                extra.page_size = number(&digits).unwrap_or(0) << 10;
            } else if let Some(value) = text.strip_prefix(b"ProtectionKey:") {
                key = number(value).unwrap_or(0);
            } else if let Some(value) = text.strip_prefix(b"VmFlags:") {
                extra.flags = Some(Flags::parse(value));
            }
            continue;
        }
        let key_of_this = std::mem::take(&mut key);
        if let Some(flags) = &mut extra.flags {
            flags.add_protection_key(key_of_this);
        }
        if let Some(before) = parse_line(&header)
            && !take(&before, std::mem::take(&mut extra))
        {
            return Ok(());
        }
        if whole.is_none() {
            return Ok(());
        }
        header = text.to_vec();
        extra = Extra::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text = b"7f2a40000000-7f2a80000000 rw-s 40000000 00:0f 1234                       /anon_hugepage (deleted)";
        let line = parse_line(text).unwrap();
        assert_eq!((line.start, line.end, line.offset), (0x7f2a_4000_0000, 0x7f2a_8000_0000, 1 << 30));
        assert_eq!((line.device, line.inode), ((0, 15), 1234));
        assert_eq!(line.name, b"/anon_hugepage (deleted)");
        assert_eq!(line.access, Access { read: true, write: true, execute: false, shared: true });
        assert!(line.has_file());
        let line =
            parse_line(b"7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]")
                .unwrap();
        assert!(!line.has_file());
        assert_eq!(parse_line(b"00400000-00401000 r-xp 00000000 fe:00 7 ").unwrap().name, b"");
    }

    #[test]
    fn hostile_names_are_only_names() {
        for name in [
            &b"/SYSV1"[..],
            b"/SYSV\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4",
            b"/\xff\xfe bad",
            b"/a b  c",
            b"[stack:",
        ] {
            let mut text = b"1000-2000 rw-s 00000000 00:01 0   ".to_vec();
            text.extend_from_slice(name);
            assert_eq!(parse_line(&text).unwrap().name, name);
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in
            ["", "x", "1000 rw-s 0 0:1 0", "2000-1000 rw-s 0 0:1 0 ", "1-2 rws 0 0:1 0 ", "VmFlags: rd"]
        {
            assert_eq!(parse_line(text.as_bytes()), None, "{text}");
        }
    }

    const SMAPS: &[u8] = b"1000-2000 rw-s 00000000 00:0f 7   /memfd:a (deleted)\nSize:  4 kB\n\
        KernelPageSize:     2048 kB\nVmFlags: rd wr sh mr mw me ms de ht lo \n\
        3000-4000 r--p 00000000 00:00 0 \nKernelPageSize:        4 kB\nVmFlags: rd mr mw me \n";

    #[test]
    fn smaps_gives_page_sizes_and_flags() {
        let mut seen = Vec::new();
        for_each_in_smaps(SMAPS, |line, extra| {
            seen.push((line.start, extra.page_size, extra.flags.unwrap().has(b"ht")));
            true
        })
        .unwrap();
        assert_eq!(seen, [(0x1000, 2 << 20, true), (0x3000, 4096, false)]);
    }

    #[test]
    fn a_protection_key_counts_as_a_flag() {
        let smaps: &[u8] =
            b"1000-2000 rw-s 00000000 00:0f 7   /a\nProtectionKey:         3\nVmFlags: rd ht \n\
            2000-3000 rw-s 00000000 00:0f 7   /a\nVmFlags: rd ht \nProtectionKey:         0\n";
        let mut seen = Vec::new();
        for_each_in_smaps(smaps, |_, extra| {
            seen.push(extra.flags.unwrap());
            true
        })
        .unwrap();
        assert_eq!(seen[0].difference(&seen[1]), ["k3"]);
        assert_eq!(seen[1], Flags::parse(b"rd ht"));
    }

    #[test]
    fn smaps_is_read_no_further_than_needed() {
        let mut count = 0;
        for_each_in_smaps(SMAPS, |_, _| {
            count += 1;
            false
        })
        .unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn flags_of_mlock_do_not_count_and_unknown_ones_do() {
        let plain = Flags::parse(b" rd wr ms ht zz");
        let locked = Flags::parse(b" rd wr ms ht zz lo lf");
        assert_ne!(plain, locked);
        assert_eq!(plain.compared(), locked.compared());
        assert_eq!(plain.difference(&Flags::parse(b"rd ms ht")), ["wr", "zz"]);
    }
}
