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
                "tables are shared; every fault takes the file's lock, so a truncate, hole punch or fork \
                 holds up all faults on the file"
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
    /// The version does not tell: a vendor's kernel that takes fixes over by itself, or a branch about which
    /// nothing is known.
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

/// The stable releases with the fixes of CVE-2025-38084 and CVE-2025-38085, which came together.
const UNSHARE_FIXES: &[Version] =
    &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 95), v(6, 12, 35), v(6, 15, 4)];

const BUGS: [Bug; 7] = [
    Bug {
        id: "unshare-race",
        what: "memory of one program may be overwritten by another's page fault, where processes share huge \
            pages and one unmaps, truncates or punches them: data are lost without a message (before 5.7)",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(5, 7, 0),
        fixed_in: &[],
        open: &[],
    },
    Bug {
        id: "file-lock-stalls",
        what: "programs that share huge pages stand still while another one forks, ends, truncates or \
            punches: page faults wait for it, 2 s were measured (5.7 to 6.0)",
        since: v(5, 7, 0),
        since_in: &[],
        until: v(6, 1, 0),
        fixed_in: &[],
        open: &[],
    },
    Bug {
        id: "CVE-2024-57883",
        what: "huge pages stay in use when nobody has them any more, until the host boots, where memory \
            offlining, DAMON or idle page tracking runs while programs share tables: the pool shrinks bit \
            by bit",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 13, 0),
        fixed_in: &[v(5, 10, 239), v(5, 15, 186), v(6, 1, 142), v(6, 6, 72), v(6, 12, 9)],
        open: &[],
    },
    Bug {
        id: "CVE-2025-38084",
        what: "a program that unmaps or protects a part of a shared mapping may corrupt its page tables, by \
            which any program could read or write others' memory",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 16, 0),
        fixed_in: UNSHARE_FIXES,
        open: &[],
    },
    Bug {
        id: "CVE-2025-38085",
        what: "get_user_pages of one process (direct I/O, futexes) may read the page table of another one \
            while it is unshared, and so get the wrong memory",
        since: v(2, 6, 20),
        since_in: &[],
        until: v(6, 16, 0),
        fixed_in: UNSHARE_FIXES,
        open: &[],
    },
    Bug {
        id: "slow-unshare",
        what: "a server that starts and ends many processes on shared huge pages (a database with new \
            connections all the time) is up to four times slower at it, and interrupts all CPUs each time; \
            cured in December 2025 and taken over into 5.10.253, 5.15.203, 6.1.167, 6.6.127, 6.12.74 and \
            6.18.13: boot one of these or a newer one",
        since: v(6, 16, 0),
        since_in: UNSHARE_FIXES,
        until: v(7, 0, 0),
        fixed_in: &[v(5, 10, 253), v(5, 15, 203), v(6, 1, 167), v(6, 6, 127), v(6, 12, 74), v(6, 18, 13)],
        open: &[(6, 19)],
    },
    Bug {
        id: "CVE-2026-23100",
        what: "tools that read smaps take shared huge pages for private ones (Private_Hugetlb), and mbind \
            or migrate_pages may move pages that others use",
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

/// Whether a release's number stays while its vendor adds fixes. Those that follow the stable branches with
/// their numbers (Fedora, Arch, Amazon, Flatcar, WSL and others) are taken at their word.
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
#[path = "kernel_version_tests.rs"]
mod tests;
