//! What the running kernel does about shared page tables, and which known bugs it carries, as far as its version tells.
//!
//! The versions are those of the Linux kernel's own CVE records (CNA) and of the stable branches' changelogs.

use serde::Serialize;

use super::source::Source;

/// A version of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// As in 6.12.35.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

/// A version, for tables.
const fn v(major: u32, minor: u32, patch: u32) -> Version {
    Version { major, minor, patch }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// The numbers at the start of a release such as `6.12.43+deb13-amd64`.
    pub fn parse(release: &str) -> Option<Version> {
        let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        let mut numbers = release[..end].split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Version { major, minor, patch })
    }

    fn branch(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

/// How a fault is kept from using a table that is being unshared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// No table is shared.
    None,
    /// Not at all: the race is open.
    Unfenced,
    /// Every fault holds the file's mapping lock.
    FileLock,
    /// Every fault holds its own mapping's lock.
    VmaLock,
    /// There is nothing to keep: tables belong to the file, and no process takes one away. Roundtable's own kernel.
    FileTables,
}

impl Protocol {
    /// By the name that Roundtable's own kernel gives it.
    fn named(name: &str) -> Option<Protocol> {
        match name {
            "unfenced" => Some(Protocol::Unfenced),
            "file-lock" => Some(Protocol::FileLock),
            "vma-lock" => Some(Protocol::VmaLock),
            "file-tables" => Some(Protocol::FileTables),
            _ => None,
        }
    }

    /// In an operator's words.
    pub fn describe(self) -> &'static str {
        match self {
            Protocol::None => "this kernel shares no page tables",
            Protocol::Unfenced => {
                "tables are shared, and nothing keeps a fault from using one that is just taken away"
            }
            Protocol::FileLock => {
                "tables are shared; every fault takes the file's lock, so a truncate, hole punch or fork holds up all faults on the file"
            }
            Protocol::VmaLock => "tables are shared; every fault takes the lock of its own mapping",
            Protocol::FileTables => {
                "tables belong to the file; who maps it uses them, at whatever address, length and protection"
            }
        }
    }
}

/// Whether a bug is in the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The version has it.
    Present,
    /// The version has its fix.
    Fixed,
    /// The version never had it.
    NotAffected,
    /// The version does not tell: a vendor's kernel that takes fixes over by itself, or a branch about which nothing is known.
    Unknown,
}

/// A known bug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its number, or a name where it has none.
    pub id: &'static str,
    /// What it does.
    pub what: &'static str,
    /// Whether it is here.
    pub status: Status,
}

/// A row of the table of bugs.
struct Bug {
    id: &'static str,
    what: &'static str,
    /// First mainline version with it.
    since: Version,
    /// Further branches with it, from that version on: a fix that made a new bug was taken over there.
    since_in: &'static [Version],
    /// First mainline version without it.
    until: Version,
    /// First version of each stable branch without it.
    fixed_in: &'static [Version],
    /// Branches about which is not known when they were fixed.
    open: &'static [(u32, u32)],
}

const BUGS: [Bug; 7] = [
    Bug {
        id: "unshare-race",
        what: "a page fault may write into a page table that was just taken away from its process (no lock before 5.7)",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(5, 7, 0),
        fixed_in: &[],
        open: &[],
    },
    Bug {
        id: "file-lock-stalls",
        what: "page faults wait for truncate, hole punch, fork and exit of every process that maps the file; waits of 2 s were measured (5.7 to 6.0)",
        since: v(5, 7, 0),
        since_in: &[],
        until: v(6, 1, 0),
        fixed_in: &[],
        open: &[],
    },
    Bug {
        id: "CVE-2024-57883",
        what: "whoever holds a reference to a page table (memory offlining, DAMON, idle page tracking) makes it look shared: it and its pages leak",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 13, 0),
        fixed_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 72), v(6, 12, 9)],
        open: &[],
    },
    Bug {
        id: "CVE-2025-38084",
        what: "when a mapping is split, its tables may be shared again before the split is done",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 16, 0),
        fixed_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 95), v(6, 12, 35), v(6, 15, 4)],
        open: &[],
    },
    Bug {
        id: "CVE-2025-38085",
        what: "lockless walkers may read the page table of another process while it is unshared",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 16, 0),
        fixed_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 95), v(6, 12, 35), v(6, 15, 4)],
        open: &[],
    },
    Bug {
        id: "slow-unshare",
        what: "the fix of CVE-2025-38085 interrupts all CPUs for each table that is unshared: fork and exit of processes that share many tables are several times slower",
        since: v(6, 16, 0),
        since_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 95), v(6, 12, 35), v(6, 15, 4)],
        until: v(7, 0, 0),
        fixed_in: &[v(5, 10, 253), v(5, 15, 203), v(6, 1, 167), v(6, 6, 127), v(6, 12, 74)],
        open: &[(6, 18), (6, 19)],
    },
    Bug {
        id: "CVE-2026-23100",
        what: "shared tables are taken for private ones: smaps says Private_Hugetlb, and migration may move pages that others map",
        since: v(6, 13, 0),
        since_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 72), v(6, 12, 9)],
        until: v(6, 19, 0),
        fixed_in: &[v(5, 10, 253), v(5, 15, 203), v(6, 1, 167), v(6, 6, 127), v(6, 12, 74), v(6, 18, 8)],
        open: &[],
    },
];

impl Bug {
    fn status(&self, version: Version, own_fixes: bool) -> Status {
        let of_branch =
            |list: &[Version]| list.iter().copied().find(|entry| entry.branch() == version.branch());
        let begun = match of_branch(self.since_in) {
            Some(since) => version >= since || version >= self.since,
            None => version >= self.since,
        };
        let fixed = version >= self.until || of_branch(self.fixed_in).is_some_and(|fixed| version >= fixed);
        // What a mainline release changed, vendors that stay on an older one may have or not.
        let certain =
            !own_fixes || (version >= self.until || self.since_in.is_empty() && version < self.since);
        match (begun, fixed) {
            _ if !certain => Status::Unknown,
            (_, true) => Status::Fixed,
            (false, _) => Status::NotAffected,
            _ if self.open.contains(&version.branch()) => Status::Unknown,
            _ => Status::Present,
        }
    }
}

/// The running kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// The version of kernel.org that it is made from.
    pub version: Option<Version>,
    /// `uname -m`
    pub machine: String,
    /// Whether it shares PMD tables of hugetlbfs.
    pub shares: bool,
    /// Why it does or does not, in one sentence.
    pub reason: String,
    /// How faults are fenced.
    pub protocol: Protocol,
    /// The known bugs.
    pub findings: Vec<Finding>,
    /// Whether its vendor takes fixes over without changing the version.
    pub vendor_fixes: bool,
}

/// Reads what the running kernel says of itself.
pub fn running(source: &Source) -> Kernel {
    const OWN: &str = "sys/kernel/mm/hugepages/sharing/protocol";
    let kernel = linux(source);
    match source.text(OWN) {
        Some(name) => of_our_own(kernel, name.trim(), &format!("/{OWN}")),
        None => kernel,
    }
}

/// Roundtable's kernel: its release is that of the Linux whose system calls it has, and tells nothing of its tables.
fn of_our_own(kernel: Kernel, protocol: &str, place: &str) -> Kernel {
    let known = Protocol::named(protocol);
    Kernel {
        version: None,
        shares: known.is_some(),
        protocol: known.unwrap_or(Protocol::None),
        reason: format!("{place} says {protocol}"),
        findings: Vec::new(),
        vendor_fixes: false,
        ..kernel
    }
}

fn linux(source: &Source) -> Kernel {
    // A container's /proc need not have all.
    let asked =
        || (!source.is_recording()).then(|| rustix::system::uname().release().to_string_lossy().into_owned());
    let release =
        source.text("proc/sys/kernel/osrelease").or_else(asked).unwrap_or_default().trim().to_string();
    let build = source.text("proc/version").unwrap_or_default();
    let signature = source.text("proc/version_signature");
    let machine = source
        .text("proc/sys/kernel/arch")
        .map(|text| text.trim().to_string())
        .unwrap_or_else(|| rustix::system::uname().machine().to_string_lossy().into_owned());
    let config = config(source, &release);
    describe(&release, &build, signature.as_deref(), &machine, config.as_deref(), source.geometry.page())
}

/// Judges a kernel by its release, its line in /proc/version, Ubuntu's signature, its machine and its configuration.
pub fn describe(
    release: &str,
    build: &str,
    signature: Option<&str>,
    machine: &str,
    config: Option<&str>,
    page: u64,
) -> Kernel {
    let (version, vendor_fixes) = true_version(release, build, signature);
    let (shares, reason) = shares(version, machine, config, page);
    let protocol = match version {
        _ if !shares => Protocol::None,
        Some(version) if version < v(5, 7, 0) => Protocol::Unfenced,
        Some(version) if version < v(6, 1, 0) => Protocol::FileLock,
        _ => Protocol::VmaLock,
    };
    let findings = match version {
        Some(version) if shares => BUGS
            .iter()
            .map(|bug| Finding { id: bug.id, what: bug.what, status: bug.status(version, vendor_fixes) })
            .collect(),
        _ => Vec::new(),
    };
    Kernel {
        release: release.to_string(),
        version,
        machine: machine.to_string(),
        shares,
        reason,
        protocol,
        findings,
        vendor_fixes,
    }
}

/// The kernel.org version behind a release, and whether fixes come without it changing.
fn true_version(release: &str, build: &str, signature: Option<&str>) -> (Option<Version>, bool) {
    // Ubuntu names its base behind its own number: "Ubuntu 5.15.0-91.101-generic 5.15.131".
    if let Some(base) = signature.and_then(|text| Version::parse(text.split_whitespace().next_back()?)) {
        return (Some(base), true);
    }
    // Debian names the stable version in its build: "... Debian 6.1.137-1 (2025-05-07)".
    // Its compiler, named before the '#', may be Debian's as well.
    let built = build.split_once('#').map_or("", |(_, built)| built);
    if let Some(base) = built.split_once("Debian ").and_then(|(_, version)| Version::parse(version)) {
        return (Some(base), false);
    }
    (Version::parse(release), stays_at_its_version(release))
}

/// Whether a release's number stays while its vendor adds fixes. Those that follow the stable branches with their numbers
/// (Fedora, Arch, Amazon, Flatcar, WSL and others) are taken at their word.
fn stays_at_its_version(release: &str) -> bool {
    // Red Hat and its children with Oracle's, SUSE, openEuler, Anolis and Alibaba, Proxmox.
    let marks = [".el", "-default", ".uek", ".oe", ".an", ".al", "-pve"];
    // Ubuntu and Debian, where they do not tell their base: 6.8.0-1021-aws, 6.1.0-37-amd64.
    let numbered = || {
        let (base, rest) = release.split_once('-')?;
        Some(base.split('.').nth(2)? == "0" && rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let next_is_digit = |mark: &str| {
        let behind = release.split_once(mark).map(|(_, behind)| behind);
        behind
            .is_some_and(|behind| !mark.starts_with('.') || behind.starts_with(|c: char| c.is_ascii_digit()))
    };
    marks.into_iter().any(next_is_digit) || numbered().unwrap_or(false)
}

fn shares(version: Option<Version>, machine: &str, config: Option<&str>, page: u64) -> (bool, String) {
    if let Some(config) = config {
        // Newer kernels have the second name; the older one says what the architecture wants.
        let [hugetlb, new, old] = SHARING_OPTIONS;
        let is_set = |name: &str| config.lines().any(|line| line.strip_prefix(name) == Some("=y"));
        let has_hugetlb = is_set(hugetlb);
        return match (has_hugetlb, is_set(new), is_set(old)) {
            (false, _, _) => (false, "it is built without CONFIG_HUGETLB_PAGE".into()),
            (_, true, _) => (true, format!("{new}=y")),
            (_, _, true) => (true, format!("{old}=y")),
            _ => (false, format!("it is built without {old}")),
        };
    }
    let old = version.is_some_and(|version| version < v(2, 6, 20));
    let by = "by the architecture; its configuration cannot be read";
    match machine {
        _ if old => (false, "Linux shares tables since 2.6.20".into()),
        "x86_64" => (true, by.into()),
        "aarch64" if page <= 16 << 10 => (true, by.into()),
        "aarch64" => (false, "arm64 with base pages of 64 KiB has no table to share".into()),
        "riscv64" => (true, by.into()),
        other => (false, format!("Linux shares no huge-page tables on {other}")),
    }
}

/// The options of the kernel's configuration that decide whether tables are shared.
pub const SHARING_OPTIONS: [&str; 3] =
    ["CONFIG_HUGETLB_PAGE", "CONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING", "CONFIG_ARCH_WANT_HUGE_PMD_SHARE"];

/// The kernel's configuration, where it shows it.
pub fn config(source: &Source, release: &str) -> Option<String> {
    use std::io::Read;
    if let Ok(file) = std::fs::File::open(source.path("proc/config.gz")) {
        let mut text = String::new();
        if flate2::read::GzDecoder::new(source.counted(file)).read_to_string(&mut text).is_ok() {
            return Some(text);
        }
    }
    source.text(&format!("boot/config-{release}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(release: &str, id: &str) -> Status {
        let kernel = describe(release, "", None, "x86_64", None, 4096);
        kernel.findings.iter().find(|finding| finding.id == id).unwrap().status
    }

    #[test]
    fn each_protocol_has_its_time() {
        let protocol = |release| describe(release, "", None, "x86_64", None, 4096).protocol;
        assert_eq!(protocol("2.6.18"), Protocol::None);
        assert_eq!(protocol("4.19.0-6"), Protocol::Unfenced);
        assert_eq!(protocol("5.6.19"), Protocol::Unfenced);
        assert_eq!(protocol("5.7.0"), Protocol::FileLock);
        assert_eq!(protocol("6.0.12"), Protocol::FileLock);
        assert_eq!(protocol("6.1.0"), Protocol::VmaLock);
        assert_eq!(protocol("7.2.0-rc1"), Protocol::VmaLock);
    }

    #[test]
    fn stable_branches_are_told_apart() {
        for (release, expected) in [
            ("6.12.34", Status::Present),
            ("6.12.35", Status::Fixed),
            ("6.6.94", Status::Present),
            ("6.6.95", Status::Fixed),
            ("6.14.9", Status::Present),
            ("6.16.0", Status::Fixed),
            ("5.4.200", Status::Present),
        ] {
            assert_eq!(status(release, "CVE-2025-38085"), expected, "{release}");
        }
    }

    #[test]
    fn the_slow_fix_comes_with_the_fix_and_goes_later() {
        for (release, expected) in [
            ("6.12.34", Status::NotAffected),
            ("6.12.35", Status::Present),
            ("6.12.74", Status::Fixed),
            ("6.15.3", Status::NotAffected),
            ("6.17.2", Status::Present),
            ("6.18.44", Status::Unknown),
            ("7.0.1", Status::Fixed),
        ] {
            assert_eq!(status(release, "slow-unshare"), expected, "{release}");
        }
        assert_eq!(status("6.12.8", "CVE-2026-23100"), Status::NotAffected);
        assert_eq!(status("6.12.40", "CVE-2026-23100"), Status::Present);
        assert_eq!(status("6.18.8", "CVE-2026-23100"), Status::Fixed);
    }

    /// A kernel as a vendor ships it: release, what is said in /proc/version behind the compiler, Ubuntu's signature; what
    /// is made of it: the version, whether the vendor's own fixes make it uncertain, the protocol, and whether it has
    /// CVE-2025-38085 and its slow fix.
    type Vendor = (&'static str, &'static str, Option<&'static str>, Version, bool, Protocol, Status, Status);

    #[test]
    fn vendors_kernels_tell_what_they_tell() {
        use Protocol::{FileLock, Unfenced, VmaLock};
        use Status::{Fixed, NotAffected, Present, Unknown};
        let table: &[Vendor] = &[
            // Debian 10, 11, 12, 13, and 12 with backports; a cloud image; one that hides its build.
            (
                "4.19.0-27-amd64",
                "#1 SMP Debian 4.19.316-1 (2024-06-25)",
                None,
                v(4, 19, 316),
                false,
                Unfenced,
                Present,
                NotAffected,
            ),
            (
                "5.10.0-35-amd64",
                "#1 SMP Debian 5.10.237-1 (2025-05-19)",
                None,
                v(5, 10, 237),
                false,
                FileLock,
                Present,
                NotAffected,
            ),
            (
                "5.10.0-36-amd64",
                "#1 SMP Debian 5.10.244-1 (2025-09-29)",
                None,
                v(5, 10, 244),
                false,
                FileLock,
                Fixed,
                Present,
            ),
            (
                "6.1.0-37-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)",
                None,
                v(6, 1, 140),
                false,
                VmaLock,
                Present,
                NotAffected,
            ),
            (
                "6.1.0-38-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.147-1 (2025-08-02)",
                None,
                v(6, 1, 147),
                false,
                VmaLock,
                Fixed,
                Present,
            ),
            (
                "6.12.43+deb13-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)",
                None,
                v(6, 12, 43),
                false,
                VmaLock,
                Fixed,
                Present,
            ),
            (
                "6.12.30+bpo-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.30-1~bpo12+1 (2025-06-14)",
                None,
                v(6, 12, 30),
                false,
                VmaLock,
                Present,
                NotAffected,
            ),
            (
                "6.12.117+deb12-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~deb12u1 (2026-10-01)",
                None,
                v(6, 12, 117),
                false,
                VmaLock,
                Fixed,
                Fixed,
            ),
            ("6.1.0-37-amd64", "", None, v(6, 1, 0), true, VmaLock, Unknown, Unknown),
            // Ubuntu 20.04, 22.04, 24.04, 25.04; a cloud's kernel that hides its signature.
            (
                "5.4.0-216-generic",
                "#236-Ubuntu SMP",
                Some("Ubuntu 5.4.0-216.236-generic 5.4.291"),
                v(5, 4, 291),
                true,
                Unfenced,
                Unknown,
                Unknown,
            ),
            (
                "5.15.0-91-generic",
                "#101-Ubuntu SMP",
                Some("Ubuntu 5.15.0-91.101-generic 5.15.131"),
                v(5, 15, 131),
                true,
                FileLock,
                Unknown,
                Unknown,
            ),
            (
                "6.8.0-52-generic",
                "#53-Ubuntu SMP PREEMPT_DYNAMIC",
                Some("Ubuntu 6.8.0-52.53-generic 6.8.12"),
                v(6, 8, 12),
                true,
                VmaLock,
                Unknown,
                Unknown,
            ),
            (
                "6.14.0-15-generic",
                "#15-Ubuntu SMP PREEMPT_DYNAMIC",
                Some("Ubuntu 6.14.0-15.15-generic 6.14.0"),
                v(6, 14, 0),
                true,
                VmaLock,
                Unknown,
                Unknown,
            ),
            (
                "6.17.0-5-generic",
                "#5-Ubuntu SMP PREEMPT_DYNAMIC",
                Some("Ubuntu 6.17.0-5.5-generic 6.17.0"),
                v(6, 17, 0),
                true,
                VmaLock,
                Fixed,
                Unknown,
            ),
            ("6.8.0-1021-aws", "#23-Ubuntu SMP", None, v(6, 8, 0), true, VmaLock, Unknown, Unknown),
            // Red Hat 7, 8, 9, 10; Rocky; Oracle's.
            (
                "3.10.0-1160.119.1.el7.x86_64",
                "#1 SMP Tue Jun 4 14:43:51 UTC 2024",
                None,
                v(3, 10, 0),
                true,
                Unfenced,
                Unknown,
                Unknown,
            ),
            (
                "4.18.0-553.el8_10.x86_64",
                "#1 SMP Fri May 10 15:19:13 EDT 2024",
                None,
                v(4, 18, 0),
                true,
                Unfenced,
                Unknown,
                Unknown,
            ),
            (
                "5.14.0-427.13.1.el9_4.x86_64",
                "#1 SMP PREEMPT_DYNAMIC Wed Apr 10 10:29:16 EDT 2024",
                None,
                v(5, 14, 0),
                true,
                FileLock,
                Unknown,
                Unknown,
            ),
            (
                "6.12.0-55.9.1.el10_0.x86_64",
                "#1 SMP PREEMPT_DYNAMIC",
                None,
                v(6, 12, 0),
                true,
                VmaLock,
                Unknown,
                Unknown,
            ),
            (
                "5.15.0-300.163.18.1.el9uek.x86_64",
                "#2 SMP",
                None,
                v(5, 15, 0),
                true,
                FileLock,
                Unknown,
                Unknown,
            ),
            // SUSE, openEuler, Alibaba, Proxmox.
            (
                "6.4.0-150600.23.42-default",
                "#1 SMP PREEMPT_DYNAMIC",
                None,
                v(6, 4, 0),
                true,
                VmaLock,
                Unknown,
                Unknown,
            ),
            (
                "5.10.0-136.12.0.86.oe2203sp1.x86_64",
                "#1 SMP",
                None,
                v(5, 10, 0),
                true,
                FileLock,
                Unknown,
                Unknown,
            ),
            ("5.10.134-16.3.al8.x86_64", "#1 SMP", None, v(5, 10, 134), true, FileLock, Unknown, Unknown),
            (
                "6.8.12-4-pve",
                "#1 SMP PREEMPT_DYNAMIC PMX 6.8.12-4 (2024-11-06T15:04Z)",
                None,
                v(6, 8, 12),
                true,
                VmaLock,
                Unknown,
                Unknown,
            ),
            // Those who follow the stable branches, and somebody's own.
            (
                "6.15.3-200.fc42.x86_64",
                "#1 SMP PREEMPT_DYNAMIC",
                None,
                v(6, 15, 3),
                false,
                VmaLock,
                Present,
                NotAffected,
            ),
            (
                "6.1.128-136.201.amzn2023.x86_64",
                "#1 SMP PREEMPT_DYNAMIC",
                None,
                v(6, 1, 128),
                false,
                VmaLock,
                Present,
                NotAffected,
            ),
            (
                "6.12.1-arch1-1",
                "#1 SMP PREEMPT_DYNAMIC",
                None,
                v(6, 12, 1),
                false,
                VmaLock,
                Present,
                NotAffected,
            ),
            (
                "5.15.167.4-microsoft-standard-WSL2",
                "#1 SMP",
                None,
                v(5, 15, 167),
                false,
                FileLock,
                Present,
                NotAffected,
            ),
            ("6.6.95-flatcar", "#1 SMP PREEMPT_DYNAMIC", None, v(6, 6, 95), false, VmaLock, Fixed, Present),
            ("6.18.44-fc-v657", "#1 SMP", None, v(6, 18, 44), false, VmaLock, Fixed, Unknown),
            ("6.0.0", "#1 SMP", None, v(6, 0, 0), false, FileLock, Present, NotAffected),
            ("6.16.0-rc7+", "#1 SMP", None, v(6, 16, 0), false, VmaLock, Fixed, Present),
        ];
        for (release, built, signature, version, vendor_fixes, protocol, bug, slow) in table {
            // Debian's compiler is named before the '#', on kernels that are not Debian's as well.
            let build =
                format!("Linux version {release} (a@b) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0) {built}");
            let kernel = describe(release, &build, *signature, "x86_64", None, 4096);
            assert_eq!(
                (kernel.version, kernel.vendor_fixes, kernel.protocol),
                (Some(*version), *vendor_fixes, *protocol),
                "{release}"
            );
            let status = |id| kernel.findings.iter().find(|finding| finding.id == id).unwrap().status;
            assert_eq!((status("CVE-2025-38085"), status("slow-unshare")), (*bug, *slow), "{release}");
            // Both came and went in the same releases.
            assert_eq!(status("CVE-2025-38084"), *bug, "{release}");
        }
    }

    #[test]
    fn our_own_kernel_says_itself_what_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let sharing = folder.path().join("sys/kernel/mm/hugepages/sharing");
        std::fs::create_dir_all(&sharing).unwrap();
        let source = Source::recorded(folder.path());
        for (name, protocol) in [
            ("file-tables", Protocol::FileTables),
            ("vma-lock", Protocol::VmaLock),
            ("file-lock", Protocol::FileLock),
            ("none-of-these", Protocol::None),
        ] {
            std::fs::write(sharing.join("protocol"), format!("{name}\n")).unwrap();
            let kernel = running(&source);
            assert_eq!((kernel.protocol, kernel.shares), (protocol, protocol != Protocol::None));
            assert!(kernel.findings.is_empty(), "Linux's bugs are Linux's");
        }
    }

    #[test]
    fn architecture_and_configuration_decide_whether_there_is_sharing() {
        let shares = |machine, config, page| describe("6.12.1", "", None, machine, config, page).shares;
        assert!(
            shares("x86_64", None, 4096) && shares("aarch64", None, 4096) && shares("riscv64", None, 4096)
        );
        assert!(!shares("aarch64", None, 65536) && !shares("s390x", None, 4096));
        let on = "CONFIG_HUGETLB_PAGE=y\nCONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING=y\n";
        assert!(shares("x86_64", Some(on), 4096));
        assert!(shares("x86_64", Some("CONFIG_HUGETLB_PAGE=y\nCONFIG_ARCH_WANT_HUGE_PMD_SHARE=y\n"), 4096));
        assert!(!shares("x86_64", Some("CONFIG_HUGETLB_PAGE=y\n"), 4096));
        assert!(!shares("x86_64", Some("# CONFIG_HUGETLB_PAGE is not set\n"), 4096));
    }
}
